//go:build unix

package operate_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.org/orchestrator/app/e2e/e2etest"
)

// stuck is a hello module with a Shutdown that does not return.
var stuck = strings.Replace(e2etest.BrokenHello("", "", "", "", ""), "func (h *Hello) Shutdown(context.Context) error { return nil }",
	"func (h *Hello) Shutdown(context.Context) error { select {} }", 1)

func TestASecondCtrlCKillsAtOnce(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.Write("modules/hello/hello.go", stuck)
	p.Edit("config/main.yaml", "hook_timeout: 3s", "hook_timeout: 10m")
	tty := p.Terminal("bin/orchestrator", "run")
	defer tty.Close()
	p.Screen(tty)
	p.Wait("the program to serve", p.Serving)
	tty.Write([]byte{3})
	p.Wait("the program to stop", func() bool {
		s, err := p.TryStatus()
		return err == nil && s.State == "stopping"
	})
	go func() { // as somebody presses it who wants it to end; the first half second does not count
		for range 20 {
			time.Sleep(300 * time.Millisecond)
			tty.Write([]byte{3})
		}
	}()
	if code := p.Ended(); code != 130 {
		t.Errorf("run ended with %d, want 130", code)
	}
	if left := p.Processes(); len(left) > 0 {
		t.Errorf("processes %v were left", left)
	}
}

func TestClosingTheTerminalStops(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	tty := p.Terminal("bin/orchestrator", "run")
	p.Wait("the program to serve", p.Serving)
	tty.Close()
	p.Ended()
	p.Wait("everything to end", func() bool { return len(p.Processes()) == 0 })
}

func TestSIGHUPReloads(t *testing.T) {
	t.Parallel()
	p, _, _ := e2etest.BinaryProject(t)
	p.Check(p.Cmd.Process.Signal(syscall.SIGHUP))
	p.Wait("generation 2", func() bool { return p.Status().Generation == 2 })
}

// TestKillingTheSupervisorLeavesNothing kills it, and starts the next run at once.
func TestKillingTheSupervisorLeavesNothing(t *testing.T) {
	t.Parallel()
	p, good, _ := e2etest.BinaryProject(t)
	p.Reload("--binary", good)
	old := p.Processes()
	p.Check(p.Cmd.Process.Kill())
	p.Ended()
	killed, gone := time.Now(), make(chan time.Duration)
	go func() {
		there := func(pid int) bool { return syscall.Kill(pid, 0) == nil }
		for slices.ContainsFunc(old, there) && time.Since(killed) < e2etest.Patience {
			time.Sleep(10 * time.Millisecond)
		}
		gone <- time.Since(killed)
	}()
	p.StartServing()
	if took := <-gone; took > 5*time.Second {
		t.Errorf("the old processes were there for %v", took)
	}
}

func TestACrashedWorkerIsStartedAgain(t *testing.T) {
	t.Parallel()
	p, good, _ := e2etest.BinaryProject(t)
	p.Reload("--binary", good, "--wait-probation")
	before := p.Status()
	p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.Wait("another generation to serve", func() bool {
		s, err := p.TryStatus()
		return err == nil && s.State == "serving" && s.Generation > before.Generation
	})
	if got := p.Get("/hello/"); got != "Hello, moon" {
		t.Errorf("GET /hello/ = %q, want what the crashed build answered", got)
	}
	if !strings.Contains(p.Printed(), "and with it the state in memory of [counter]") {
		t.Errorf("the lost state was not mentioned:\n%s", p.Printed())
	}
	if _, code := p.Reload("--binary", good); code != 0 {
		t.Errorf("the next reload: exit %d, want 0", code)
	}
}

// TestAsPID1 runs as the first process of a PID namespace, as in a container.
func TestAsPID1(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("unshare", "--pid", "--fork", "--kill-child", "true").CombinedOutput(); err != nil {
		t.Skipf("no PID namespaces here: %v %s", err, out)
	}
	p := e2etest.New(t)
	p.Edit("config/main.yaml", "hot_reload: true", "hot_reload: false")
	log, err := os.Create(p.Log)
	p.Check(err)
	defer log.Close()
	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "bin/orchestrator", "run")
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.Dir, e2etest.Environ, log, log
	p.Check(cmd.Start())
	p.Began(cmd)
	p.Wait("the program to serve", p.Serving)
	for i := range 3 {
		if o, code := p.Reload(); code != 0 {
			t.Fatalf("reload %d: exit %d, %+v", i, code, o)
		}
	}
	s := p.Status()
	if s.SupervisorPID != 1 || s.Generation != 4 {
		t.Errorf("supervisor %d, generation %d; want 1, 4", s.SupervisorPID, s.Generation)
	}
	// unshare, the supervisor and one worker: everything else was reaped.
	p.Wait("the old generations to be reaped", func() bool { return len(p.Processes()) == 3 && e2etest.Zombies(p) == 0 })
}

func TestASecondRunIsRefused(t *testing.T) {
	t.Parallel()
	p, _, _ := e2etest.BinaryProject(t)
	_, errs, code := p.Command("run")
	if want := fmt.Sprintf("process %d holds", p.Cmd.Process.Pid); code != 1 || !strings.Contains(errs, want) {
		t.Errorf("a second run: exit %d, %q; want 1 and %q", code, errs, want)
	}
}

func TestATakenPortIsNamed(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	p.Check(err)
	defer ln.Close()
	p.Edit("config/main.yaml", "hot_reload: true", "hot_reload: false")
	p.Edit("config/main.yaml", "127.0.0.1:0", ln.Addr().String())
	_, errs, code := p.Command("run")
	if code != 1 || !strings.Contains(errs, "app.listen: "+ln.Addr().String()+" is taken") {
		t.Errorf("run: exit %d, %q; want 1 and the setting", code, errs)
	}
}

func TestBadConfigurationEndsRunAndCheckWith2(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	for _, hot := range []string{"true", "false"} {
		p.Write("config/main.yaml", "app:\n  hot_reload: "+hot+"\n  lisen: x\n")
		for _, command := range []string{"run", "check"} {
			_, errs, code := p.Command(command)
			if code != 2 || !strings.Contains(errs, `config/main.yaml:3:3: app: unknown key "lisen" (did you mean "listen"?)`) {
				t.Errorf("%s with hot_reload %s: exit %d, %q; want 2 and the place", command, hot, code, errs)
			}
		}
	}
}

func TestClientsWithoutAProgram(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	for _, command := range []string{"reload", "status", "events"} {
		_, errs, code := p.Command(command)
		if code != 4 || !strings.Contains(errs, p.Path(".orchestrator/control.sock")) {
			t.Errorf("%s: exit %d, %q; want 4 and the absolute path", command, code, errs)
		}
	}
	if _, _, code := p.Command("reload", "--nonsense"); code != 2 {
		t.Errorf("an unknown flag: exit %d, want 2", code)
	}
}

func TestWithoutAModuleOrGo(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.Check(os.Remove(p.Path("go.mod")))
	if _, errs, code := p.Command("run"); code != 1 || !strings.Contains(errs, "not within a Go module") {
		t.Errorf("run without go.mod: exit %d, %q", code, errs)
	}
	cmd := exec.Command(p.Path("bin/orchestrator"), "run")
	cmd.Dir, cmd.Env = p.Dir, []string{"PATH=/nonexistent"}
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "the go command does not run") {
		t.Errorf("run without go: exit %d, %q", cmd.ProcessState.ExitCode(), out)
	}
}

func TestAChangedRunDirIsRefused(t *testing.T) {
	t.Parallel()
	p, _, _ := e2etest.BinaryProject(t)
	p.Write("config/other.yaml", strings.Replace(p.Read("config/main.yaml"), "  listen:", "  run_dir: .orchestrator\n  listen:", 1))
	p.Edit("config/main.yaml", "  listen:", "  run_dir: elsewhere\n  listen:")
	out, errs, code := p.Command("reload", "-c", "config/other.yaml", "--json")
	if code != 3 || !strings.Contains(out, "restart run") {
		t.Errorf("reload: exit %d, %q, %q; want 3 and what to do", code, out, errs)
	}
}

// TestAReadOnlyRunDir drops privileges: root may write anywhere.
func TestAReadOnlyRunDir(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	p := e2etest.New(t)
	p.Check(os.Chmod(p.Dir, 0o755))
	cmd := exec.Command(p.Path("bin/orchestrator"), "run")
	cmd.Dir = p.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "run_dir: mkdir .orchestrator: permission denied") {
		t.Errorf("run: exit %d, %q; want 1 and the folder", cmd.ProcessState.ExitCode(), out)
	}
}

// TestAFullOrReadOnlyRunDirWhileServing fills the disk of the run_dir, and then
// makes it read-only, which does not stop root.
func TestAFullOrReadOnlyRunDirWhileServing(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount and to become somebody else")
	}
	p := e2etest.New(t)
	p.Write("config/main.yaml", "app:\n  hot_reload: false\n  listen: 127.0.0.1:0\nmodules:\n  - name: hello\n  - name: counter\n")
	runDir := p.Path(".orchestrator")
	p.Check(os.Mkdir(runDir, 0o755))
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", runDir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount here: %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "--lazy", runDir).Run() })
	p.Check(os.Chmod(p.Dir, 0o755))
	p.Check(os.Chown(runDir, 65534, 65534))
	log, err := os.Create(p.Log)
	p.Check(err)
	defer log.Close()
	cmd := exec.Command(p.Path("bin/orchestrator"), "run")
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.Dir, log, log
	cmd.Env = append(e2etest.Environ, "HOME="+runDir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	p.Check(cmd.Start())
	p.Began(cmd)
	p.Wait("the program to serve", p.Serving)

	filler, err := os.Create(runDir + "/filler")
	p.Check(err)
	for err == nil {
		_, err = filler.Write(make([]byte, 1<<12))
	}
	filler.Close()
	if o, code := p.Reload("--build"); code != 5 {
		t.Errorf("reload --build with a full run_dir: exit %d, %+v; want 5", code, o)
	}
	if got := p.Get("/hello/"); got != "Hello, world" {
		t.Errorf("GET /hello/ = %q", got)
	}
	o, code := p.Reload() // this needs no space there
	if code != 0 || o.Generation != 2 {
		t.Errorf("reload with a full run_dir: exit %d, %+v; want 0, generation 2", code, o)
	}
	p.Check(os.Remove(runDir + "/filler"))

	p.Check(os.Chmod(runDir, 0o555))
	o, code = p.Reload()
	if code != 3 || !strings.Contains(o.Error, "handoff socket in run_dir") || !strings.Contains(o.Error, "permission denied") {
		t.Errorf("reload with a read-only run_dir: exit %d, %+v; want 3 and the reason", code, o)
	}
	if s := p.Status(); s.Generation != 2 || s.State != "serving" {
		t.Errorf("generation %d is %s, want 2, serving", s.Generation, s.State)
	}
	p.Check(os.Chmod(runDir, 0o755))
	if o, code := p.Reload(); code != 0 {
		t.Errorf("reload with a good run_dir again: exit %d, %+v", code, o)
	}
}
