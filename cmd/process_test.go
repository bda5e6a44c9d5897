package cmd_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// terminal starts args in a pseudo-terminal of its own. Nobody looks at its
// screen: closing it closes the terminal.
func (p *project) terminal(args ...string) *os.File {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = p.dir, environ
	tty, err := pty.Start(cmd)
	p.check(err)
	p.began(cmd)
	return tty
}

// screen copies what the terminal shows into the project's log.
func (p *project) screen(tty *os.File) {
	screen, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	p.check(err)
	go func() {
		defer screen.Close()
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			screen.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
}

func (p *project) serving() bool {
	s, err := p.tryStatus()
	return err == nil && s.State == "serving"
}

// TestMakeRunInATerminal is the first session of a new user.
func TestMakeRunInATerminal(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("no make")
	}
	tty := p.terminal("sh", "-c", "trap : INT; make run; echo PROMPT")
	defer tty.Close()
	p.screen(tty)
	p.wait("the program to serve", p.serving)
	if got := p.get("/hello/"); got != "Hello, world" {
		t.Fatalf("GET /hello/ = %q", got)
	}
	before := p.status()
	for i, next := range []string{"one", "two", "three"} {
		last := []string{"Hello, world", "one", "two"}[i]
		p.edit("modules/hello/hello.go", `"`+last+`"`, `"`+next+`"`)
		p.wait(next, func() bool { return p.get("/hello/") == next })
		if s := p.settled(); s.SupervisorPID != before.SupervisorPID || s.Generation != before.Generation+i+1 {
			t.Fatalf("supervisor %d, generation %d; want %d, %d", s.SupervisorPID, s.Generation, before.SupervisorPID, before.Generation+i+1)
		}
	}
	if strings.Contains(p.printed(), "PROMPT") {
		t.Fatal("the prompt came back before Ctrl-C")
	}
	tty.Write([]byte{3})
	p.ended()
	if left := p.processes(); len(left) > 0 {
		t.Errorf("the shell went on while processes %v were left", left)
	}
	p.wait("the prompt", func() bool { return strings.Contains(p.printed(), "PROMPT") })
}

// stuck is a hello module whose Shutdown does not return.
var stuck = strings.Replace(brokenHello("", "", "", "", ""), "func (h *Hello) Shutdown(context.Context) error { return nil }",
	"func (h *Hello) Shutdown(context.Context) error { select {} }", 1)

func TestASecondCtrlCKillsAtOnce(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.write("modules/hello/hello.go", stuck)
	p.edit("config/main.yaml", "hook_timeout: 3s", "hook_timeout: 10m")
	tty := p.terminal("bin/orchestrator", "run")
	defer tty.Close()
	p.screen(tty)
	p.wait("the program to serve", p.serving)
	tty.Write([]byte{3})
	p.wait("the program to stop", func() bool {
		s, err := p.tryStatus()
		return err == nil && s.State == "stopping"
	})
	tty.Write([]byte{3})
	if code := p.ended(); code != 130 {
		t.Errorf("run ended with %d, want 130", code)
	}
	if left := p.processes(); len(left) > 0 {
		t.Errorf("processes %v were left", left)
	}
}

func TestClosingTheTerminalStops(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	tty := p.terminal("bin/orchestrator", "run")
	p.wait("the program to serve", p.serving)
	tty.Close()
	p.ended()
	p.wait("everything to end", func() bool { return len(p.processes()) == 0 })
}

func TestSIGHUPReloads(t *testing.T) {
	t.Parallel()
	p, _, _ := binaryProject(t)
	p.check(p.cmd.Process.Signal(syscall.SIGHUP))
	p.wait("generation 2", func() bool { return p.status().Generation == 2 })
}

// TestKillingTheSupervisorLeavesNothing also starts the next run at once.
func TestKillingTheSupervisorLeavesNothing(t *testing.T) {
	t.Parallel()
	p, good, _ := binaryProject(t)
	p.reload("--binary", good)
	old := p.processes()
	p.check(p.cmd.Process.Kill())
	p.ended()
	killed, gone := time.Now(), make(chan time.Duration)
	go func() {
		there := func(pid int) bool { return syscall.Kill(pid, 0) == nil }
		for slices.ContainsFunc(old, there) && time.Since(killed) < patience {
			time.Sleep(10 * time.Millisecond)
		}
		gone <- time.Since(killed)
	}()
	p.startServing()
	if took := <-gone; took > 5*time.Second {
		t.Errorf("the old processes were there for %v", took)
	}
}

func TestACrashedWorkerIsStartedAgain(t *testing.T) {
	t.Parallel()
	p, good, _ := binaryProject(t)
	p.reload("--binary", good, "--wait-probation")
	before := p.status()
	p.check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.wait("another generation to serve", func() bool {
		s, err := p.tryStatus()
		return err == nil && s.State == "serving" && s.Generation > before.Generation
	})
	if got := p.get("/hello/"); got != "Hello, moon" {
		t.Errorf("GET /hello/ = %q, want what the crashed build answered", got)
	}
	if !strings.Contains(p.printed(), "and with it the state in memory of [counter]") {
		t.Errorf("the lost state was not mentioned:\n%s", p.printed())
	}
	if _, code := p.reload("--binary", good); code != 0 {
		t.Errorf("the next reload: exit %d, want 0", code)
	}
}

// TestAsPID1 runs as the first process of a PID namespace, as in a container.
func TestAsPID1(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("unshare", "--pid", "--fork", "--kill-child", "true").CombinedOutput(); err != nil {
		t.Skipf("no PID namespaces here: %v %s", err, out)
	}
	p := testProject(t)
	p.edit("config/main.yaml", "hot_reload: true", "hot_reload: false")
	log, err := os.Create(p.log)
	p.check(err)
	defer log.Close()
	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "bin/orchestrator", "run")
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.dir, environ, log, log
	p.check(cmd.Start())
	p.began(cmd)
	p.wait("the program to serve", p.serving)
	for i := range 3 {
		if o, code := p.reload(); code != 0 {
			t.Fatalf("reload %d: exit %d, %+v", i, code, o)
		}
	}
	s := p.status()
	if s.SupervisorPID != 1 || s.Generation != 4 {
		t.Errorf("supervisor %d, generation %d; want 1, 4", s.SupervisorPID, s.Generation)
	}
	// unshare, the supervisor and one worker: everything else was reaped.
	p.wait("the old generations to be reaped", func() bool { return len(p.processes()) == 3 && zombies(p) == 0 })
}

// zombies counts dead children of the project's processes.
func zombies(p *project) (n int) {
	ours := map[string]bool{}
	for _, pid := range p.processes() {
		ours[strconv.Itoa(pid)] = true
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		data, _ := os.ReadFile(path)
		_, rest, _ := strings.Cut(string(data), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[0] == "Z" && ours[f[1]] {
			n++
		}
	}
	return n
}

func TestASecondRunIsRefused(t *testing.T) {
	t.Parallel()
	p, _, _ := binaryProject(t)
	_, errs, code := p.command("run")
	if want := fmt.Sprintf("process %d holds", p.cmd.Process.Pid); code != 1 || !strings.Contains(errs, want) {
		t.Errorf("a second run: exit %d, %q; want 1 and %q", code, errs, want)
	}
}

func TestATakenPortIsNamed(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	p.check(err)
	defer ln.Close()
	p.edit("config/main.yaml", "hot_reload: true", "hot_reload: false")
	p.edit("config/main.yaml", "127.0.0.1:0", ln.Addr().String())
	_, errs, code := p.command("run")
	if code != 1 || !strings.Contains(errs, "app.listen: "+ln.Addr().String()+" is taken") {
		t.Errorf("run: exit %d, %q; want 1 and the setting", code, errs)
	}
}

func TestBadConfigurationEndsRunAndCheckWith2(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	for _, hot := range []string{"true", "false"} {
		p.write("config/main.yaml", "app:\n  hot_reload: "+hot+"\n  lisen: x\n")
		for _, command := range []string{"run", "check"} {
			_, errs, code := p.command(command)
			if code != 2 || !strings.Contains(errs, `config/main.yaml:3:3: app: unknown key "lisen" (did you mean "listen"?)`) {
				t.Errorf("%s with hot_reload %s: exit %d, %q; want 2 and the place", command, hot, code, errs)
			}
		}
	}
}

func TestClientsWithoutAProgram(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	for _, command := range []string{"reload", "status", "events"} {
		_, errs, code := p.command(command)
		if code != 4 || !strings.Contains(errs, p.path(".orchestrator/control.sock")) {
			t.Errorf("%s: exit %d, %q; want 4 and the absolute path", command, code, errs)
		}
	}
	if _, _, code := p.command("reload", "--nonsense"); code != 2 {
		t.Errorf("an unknown flag: exit %d, want 2", code)
	}
}

func TestWithoutAModuleOrGo(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.check(os.Remove(p.path("go.mod")))
	if _, errs, code := p.command("run"); code != 1 || !strings.Contains(errs, "not within a Go module") {
		t.Errorf("run without go.mod: exit %d, %q", code, errs)
	}
	cmd := exec.Command(p.path("bin/orchestrator"), "run")
	cmd.Dir, cmd.Env = p.dir, []string{"PATH=/nonexistent"}
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "the go command does not run") {
		t.Errorf("run without go: exit %d, %q", cmd.ProcessState.ExitCode(), out)
	}
}

func TestAChangedRunDirIsRefused(t *testing.T) {
	t.Parallel()
	p, _, _ := binaryProject(t)
	p.write("config/other.yaml", p.read("config/main.yaml"))
	p.edit("config/main.yaml", "  listen:", "  run_dir: elsewhere\n  listen:")
	out, errs, code := p.command("reload", "-c", "config/other.yaml", "--json")
	if code != 3 || !strings.Contains(out, "restart run") {
		t.Errorf("reload: exit %d, %q, %q; want 3 and what to do", code, out, errs)
	}
}

func TestHotReloadCanBeSwitchedByAReload(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.startServing()
	p.edit("config/main.yaml", "hot_reload: true", "hot_reload: false")
	p.wait("hot reload to be off", func() bool { return !p.status().HotReload })
	p.edit("config/main.yaml", "hot_reload: false", "hot_reload: true")
	p.edit("modules/hello/hello.go", "Hello, world", "Hello, moon")
	if o, code := p.reload("--build"); code != 0 {
		t.Fatalf("reload --build: exit %d, %+v", code, o)
	}
	if got := p.get("/hello/"); got != "Hello, moon" || !p.status().HotReload {
		t.Errorf("GET /hello/ = %q, hot reload %v; want the edit, on", got, p.status().HotReload)
	}
	p.edit("modules/hello/hello.go", "Hello, moon", "Hello, sun")
	p.wait("the next save", func() bool { return p.get("/hello/") == "Hello, sun" })
}

// TestAReadOnlyRunDir drops privileges: root may write anywhere.
func TestAReadOnlyRunDir(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	p := testProject(t)
	p.check(os.Chmod(p.dir, 0o755))
	cmd := exec.Command(p.path("bin/orchestrator"), "run")
	cmd.Dir = p.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "run_dir: mkdir .orchestrator: permission denied") {
		t.Errorf("run: exit %d, %q; want 1 and the folder", cmd.ProcessState.ExitCode(), out)
	}
}

// TestBuildsOfTheProtocol lets an old supervisor meet newer processes.
func TestBuildsOfTheProtocol(t *testing.T) {
	t.Parallel()
	p, good, _ := binaryProject(t)
	build := func(name, protocol, lowest string) string {
		out := p.path("bin/" + name)
		cmd := exec.Command("go", "build", "-buildvcs=false", "-ldflags=-X orchestrator/app/control.protocol="+protocol+" -X orchestrator/app/control.minProtocol="+lowest, "-o", out, "./cmd/orchestrator")
		cmd.Dir, cmd.Env = p.dir, environ
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, msg)
		}
		return out
	}
	compatible, foreign := build("compatible", "2", "1"), build("foreign", "2", "2")
	if o, code := p.reload("--binary", compatible); code != 0 {
		t.Errorf("a worker of protocol 1 to 2: exit %d, %+v; want 0", code, o)
	}
	if o, code := p.reload("--binary", foreign); code != 3 {
		t.Errorf("a worker of protocol 2 only: exit %d, %+v; want 3", code, o)
	}
	if !strings.Contains(p.printed(), "this one 2 to 2: restart run") {
		t.Errorf("nothing says that the protocols differ:\n%s", p.printed())
	}
	run := func(program string) (string, int) {
		cmd := exec.Command(program, "status")
		cmd.Dir, cmd.Env = p.dir, environ
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	if out, code := run(compatible); code != 0 {
		t.Errorf("a client of protocol 1 to 2: exit %d, %s", code, out)
	}
	if out, code := run(foreign); code != 1 || !strings.Contains(out, "restart run") {
		t.Errorf("a client of protocol 2 only: exit %d, %q; want 1 and what to do", code, out)
	}
	if _, code := p.reload("--binary", good); code != 0 {
		t.Error("the next good reload does not work")
	}
}

// TestAFullOrReadOnlyRunDirWhileServing takes the run_dir's room away, and then
// the right to write, which only a process without root's privileges feels.
func TestAFullOrReadOnlyRunDirWhileServing(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount and to become somebody else")
	}
	p := testProject(t)
	p.write("config/main.yaml", "app:\n  hot_reload: false\n  listen: 127.0.0.1:0\nmodules:\n  - name: hello\n  - name: counter\n")
	runDir := p.path(".orchestrator")
	p.check(os.Mkdir(runDir, 0o755))
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", runDir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount here: %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "--lazy", runDir).Run() })
	p.check(os.Chmod(p.dir, 0o755))
	p.check(os.Chown(runDir, 65534, 65534))
	log, err := os.Create(p.log)
	p.check(err)
	defer log.Close()
	cmd := exec.Command(p.path("bin/orchestrator"), "run")
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, log, log
	cmd.Env = append(environ, "HOME="+runDir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	p.check(cmd.Start())
	p.began(cmd)
	p.wait("the program to serve", p.serving)

	filler, err := os.Create(runDir + "/filler")
	p.check(err)
	for err == nil {
		_, err = filler.Write(make([]byte, 1<<12))
	}
	filler.Close()
	if o, code := p.reload("--build"); code != 5 {
		t.Errorf("reload --build with a full run_dir: exit %d, %+v; want 5", code, o)
	}
	if got := p.get("/hello/"); got != "Hello, world" {
		t.Errorf("GET /hello/ = %q", got)
	}
	o, code := p.reload() // needs no space there
	if code != 0 || o.Generation != 2 {
		t.Errorf("reload with a full run_dir: exit %d, %+v; want 0, generation 2", code, o)
	}
	p.check(os.Remove(runDir + "/filler"))

	p.check(os.Chmod(runDir, 0o555))
	o, code = p.reload()
	if code != 3 || !strings.Contains(o.Error, "handoff socket in run_dir") || !strings.Contains(o.Error, "permission denied") {
		t.Errorf("reload with a read-only run_dir: exit %d, %+v; want 3 and the reason", code, o)
	}
	if s := p.status(); s.Generation != 2 || s.State != "serving" {
		t.Errorf("generation %d is %s, want 2, serving", s.Generation, s.State)
	}
	p.check(os.Chmod(runDir, 0o755))
	if o, code := p.reload(); code != 0 {
		t.Errorf("reload with a good run_dir again: exit %d, %+v", code, o)
	}
}
