package cmd_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"orchestrator/app/control"
)

// answersNew tells whether the second of a pair serves.
func (p *project) answersNew() bool {
	_, isNew, err := increment(p.address())
	p.check(err)
	return isNew
}

// servesAfter waits for a generation that is not that of pid.
func (p *project) servesAfter(pid int) (s *control.Status) {
	p.wait("another generation to serve", func() bool {
		var err error
		s, err = p.peek()
		return err == nil && s.State == "serving" && s.PID != pid && s.PID != 0
	})
	return s
}

// TestACrashAfterARollback restarts what served, not what was rolled back.
func TestACrashAfterARollback(t *testing.T) {
	t.Parallel()
	p, b, before := started(t)
	p.copied()
	p.check(os.Remove(p.path("bin/orchestrator")))
	p.write("sick", "Healthy")
	_, err := p.upgrade(control.ReloadRequest{Binary: b.new})
	p.check(err)
	p.wait("the rollback", func() bool {
		s, err := p.peek()
		return err == nil && s.LastReload.Outcome == control.RolledBack && s.PID == before.PID && len(p.processes()) == 2
	})
	p.check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.servesAfter(before.PID)
	if p.answersNew() {
		t.Error("the build that was rolled back was started after a crash")
	}
	p.check(os.Remove(p.path("sick")))
	p.nextReloadWorks(b.new)
}

// TestTheOlderBuildIsThereWhenItIsNeeded has a build crash and then not even
// start again.
func TestTheOlderBuildIsThereWhenItIsNeeded(t *testing.T) {
	t.Parallel()
	p, b := lightTest(t)
	p.edit("config/main.yaml", "  drain:", "  restart_older_build: true\n  drain:")
	p.startWith()
	p.copied()
	p.check(os.Remove(p.path("bin/orchestrator")))
	p.reloads(b.new)
	before, err := p.peek()
	p.check(err)
	p.write("sick", "Initialize")
	p.check(syscall.Kill(before.PID, syscall.SIGKILL))
	after := p.servesAfter(before.PID)
	if after.LastCrash == nil || !after.LastCrash.Older || p.answersNew() {
		t.Errorf("after the crashes %+v serves, last crash %+v; want the older build", *after, after.LastCrash)
	}
}

// TestAReloadRepairsACrashLoop: what is deployed while nothing can start takes
// the place of what crashes.
func TestAReloadRepairsACrashLoop(t *testing.T) {
	t.Parallel()
	p, b := lightTest(t)
	p.startWith()
	p.reloads(b.new)
	before, err := p.peek()
	p.check(err)
	p.write("sick", "Initialize")
	p.check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.wait("it to crash at each start", func() bool { return strings.Contains(p.printed(), "starting it again in ") })
	o, err := p.upgrade(control.ReloadRequest{Binary: b.new, TimeoutMS: 300})
	if err != nil || o.Outcome != control.Rejected || o.Serving != 0 {
		t.Errorf("a reload to what crashes = %+v, %v; want that nothing serves", o, err)
	}
	if o, err = p.upgrade(control.ReloadRequest{Binary: b.old}); err != nil || o.Outcome != control.Reloaded {
		t.Errorf("the reload = %+v, %v; want reloaded", o, err)
	}
	if p.answersNew() {
		t.Error("the build that crashes serves")
	}
	events, _, _ := p.command("events", "--json")
	if !strings.Contains(events, `"topic":"app.crashed"`) {
		t.Errorf("no app.crashed in\n%s", events)
	}
}

// TestAStartThatHangs after a crash is ended, and a reload repairs it.
func TestAStartThatHangs(t *testing.T) {
	t.Parallel()
	p, b := lightTest(t)
	p.edit("config/main.yaml", "hook_timeout: 15s", "hook_timeout: 1500ms")
	p.startWith()
	p.write("sick", "factory") // no candidate gets anywhere either
	before, err := p.peek()
	p.check(err)
	o, err := p.upgrade(control.ReloadRequest{Binary: b.new, TimeoutMS: 60_000})
	p.rejected(o, err, "did not answer in time", before)
	if o.Stage != "config" || o.FailedModule != "counter" && o.FailedModule != "" {
		t.Errorf("stage %q of module %q is blamed, want config", o.Stage, o.FailedModule)
	}
	p.check(os.Remove(p.path("sick")))
	p.reloads(b.new)
	before, err = p.peek()
	p.check(err)
	p.write("sick", "factory")
	p.check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.wait("the first start to be given up", func() bool { return strings.Contains(p.printed(), "has not begun to serve within") })
	o, err = p.upgrade(control.ReloadRequest{Binary: b.old, TimeoutMS: 60_000})
	if err != nil || o.Outcome != control.Reloaded || p.answersNew() {
		t.Errorf("the reload = %+v, %v; want that the other build serves", o, err)
	}
}

// TestAShutdownThatHangs costs the state of its module, and is not called a
// rejection: something is lost. Whoever drops that state is not held up.
func TestAShutdownThatHangs(t *testing.T) {
	t.Parallel()
	p, b := lightTest(t)
	p.edit("config/main.yaml", "hook_timeout: 15s", "hook_timeout: 2s")
	p.startWith()
	p.reloads(b.new)
	before, err := p.peek()
	p.check(err)
	_, _, err = increment(before.Listen[0])
	p.check(err)
	put := func(value string) {
		code, _, err := do(http.MethodPut, "http://"+before.Listen[0]+"/kv/key", value)
		if err != nil || code != http.StatusNoContent {
			t.Fatalf("PUT /kv/key = %d, %v", code, err)
		}
	}
	put("kept")
	p.write("sick", "Shutdown")
	o, err := p.upgrade(control.ReloadRequest{Binary: b.old})
	if err != nil || o.Outcome != control.Failed || o.Stage != "shutdown" || o.FailedModule != "counter" || strings.Join(o.Lost, " ") != "counter" || !strings.Contains(o.Error, "--drop-state=counter") {
		t.Errorf("reload = %+v, %v; want failed in Shutdown of counter, whose state is lost", o, err)
	}
	if s, err := p.peek(); err != nil || s.PID != before.PID || s.State != "serving" {
		t.Errorf("after it: %+v, %v; want the old process", s, err)
	}
	o, err = p.upgrade(control.ReloadRequest{Binary: b.old, DropState: []string{"counter"}})
	if err != nil || o.Outcome != control.Reloaded || p.answersNew() {
		t.Errorf("reload --drop-state=counter = %+v, %v; want reloaded", o, err)
	}
	if _, got, err := do(http.MethodGet, "http://"+before.Listen[0]+"/kv/key", ""); err != nil || strings.TrimSpace(got) != "kept" {
		t.Errorf("kv has %q, %v; want kept", got, err)
	}
	before, err = p.peek()
	p.check(err)
	o, err = p.upgrade(control.ReloadRequest{Binary: b.old, DropState: []string{"conuter"}})
	p.rejected(o, err, `no module is called "conuter", there are [counter kv]`, before)
	_, _, err = increment(before.Listen[0])
	p.check(err)
	if o, err = p.upgrade(control.ReloadRequest{Binary: b.old, DropState: []string{"*"}}); err != nil || o.Outcome != control.Reloaded {
		t.Errorf("reload --drop-state = %+v, %v", o, err)
	}
	if n, err := count(before.Listen[0]); err != nil || n != 0 {
		t.Errorf("the counter is %d, %v; want 0", n, err)
	}
}

// TestACrashWithoutARunDir: a cleaner has removed it, and then the program
// crashes. It has to have one to start.
func TestACrashWithoutARunDir(t *testing.T) {
	t.Parallel()
	p, b, before := started(t)
	p.check(os.RemoveAll(p.path(".orchestrator")))
	p.check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.servesAfter(before.PID)
	p.nextReloadWorks(b.old)
}

// TestARollbackWithoutProbation is told as well, though the reload had been
// called a success, and does not hold up what follows.
func TestARollbackWithoutProbation(t *testing.T) {
	t.Parallel()
	p, b := lightTest(t)
	p.edit("config/main.yaml", "probation: 300ms", "probation: 0s")
	p.startWith("ORCHESTRATOR_FAILPOINT=" + p.path("failpoint"))
	before, err := p.peek()
	p.check(err)
	for _, place := range []string{"candidate.at.reported kill", "candidate.at.proved kill", "candidate.before.conns garbage"} {
		p.write("failpoint", place)
		idle, err := net.Dial("tcp", p.address()) // there is a connection to move
		p.check(err)
		defer idle.Close()
		_, _, err = increment(p.address())
		p.check(err)
		o, err := p.upgrade(control.ReloadRequest{Binary: b.new, WaitProbation: true})
		if err != nil || o.Outcome != control.RolledBack {
			t.Fatalf("%s: reload = %+v, %v; want rolled back", place, o, err)
		}
		s, err := p.peek()
		if err != nil || s.PID != before.PID || s.LastReload.Outcome != control.RolledBack {
			t.Fatalf("%s: %+v, %v; want the old one to serve, and to say so", place, s, err)
		}
	}
	if o, err := p.upgrade(control.ReloadRequest{Binary: b.new, WaitProbation: true}); err != nil || o.Outcome != control.Reloaded || o.Probation != "" {
		t.Errorf("the next reload = %+v, %v", o, err)
	}
}

// TestACrashDuringADrain does not wait for its end: nobody would serve.
func TestACrashDuringADrain(t *testing.T) {
	t.Parallel()
	p, binary, address := tlsTest(t, "drain: 500ms", "drain: 10m")
	c, _ := httpsClient(true)
	defer c.CloseIdleConnections()
	_, err := ask(c, http.MethodPost, address+"/counter/", "")
	p.check(err)
	p.reloads(binary)
	before, err := p.peek()
	p.check(err)
	if n := len(p.processes()); n != 3 {
		t.Fatalf("%d processes, want 3: one that drains", n)
	}
	p.check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.servesAfter(before.PID)
	fresh, _ := httpsClient(false)
	defer fresh.CloseIdleConnections()
	if _, err := ask(fresh, http.MethodPost, address+"/counter/", ""); err != nil {
		t.Error(err)
	}
}

// TestACandidateThatHangsAlone: the old generation, whose deadlines would end
// it, has died.
func TestACandidateThatHangsAlone(t *testing.T) {
	t.Parallel()
	p, b := lightTest(t)
	p.edit("config/main.yaml", "hook_timeout: 15s", "hook_timeout: 2s")
	p.startWith("ORCHESTRATOR_FAILPOINT=" + p.path("failpoint"))
	before, err := p.peek()
	p.check(err)
	p.write("failpoint", "candidate.at.prepared hang")
	outcome := make(chan *control.Outcome, 1)
	go func() {
		o, _ := p.upgrade(control.ReloadRequest{Binary: b.new})
		outcome <- o
	}()
	p.wait("the candidate to hang", func() bool { _, err := os.Stat(p.path("failpoint")); return err != nil })
	p.check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.servesAfter(before.PID)
	if o := <-outcome; o == nil || o.Outcome != control.Failed {
		t.Errorf("the reload = %+v, want failed", o)
	}
	p.nextReloadWorks(b.old)
}

// TestAReloadFollowsALink: the program is started by way of a symbolic link,
// which then leads to another release.
func TestAReloadFollowsALink(t *testing.T) {
	t.Parallel()
	p, b := lightTest(t)
	p.check(os.RemoveAll(p.path("bin")))
	for name, build := range map[string]string{"1": b.old, "2": b.new} {
		p.check(os.MkdirAll(p.path("releases/"+name), 0o755))
		p.check(os.Link(build, p.path("releases/"+name+"/orchestrator")))
	}
	p.check(os.Symlink("releases/1", p.path("bin")))
	p.startWith()
	p.check(os.Remove(p.path("bin")))
	p.check(os.Symlink("releases/2", p.path("bin")))
	if p.answersNew() {
		t.Fatal("the second release serves already")
	}
	if o, err := p.upgrade(control.ReloadRequest{}); err != nil || o.Outcome != control.Reloaded || !p.answersNew() {
		t.Errorf("reload = %+v, %v; want that the second release serves", o, err)
	}
}

// TestRequestsThatJoin a build get one reload, which does what each wanted; one
// whose time is over ends nothing that others, or a save, want.
func TestRequestsThatJoin(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.startServing()
	for n := 0; ; n++ {
		if n == 10 {
			t.Fatal("the requests never met in one build")
		}
		_, _, err := increment(p.address())
		p.check(err)
		text := fmt.Sprint("Hello, ", n)
		p.write("modules/hello/hello.go", says(p, text))
		outcomes := make([]*control.Outcome, 3)
		var all sync.WaitGroup
		for i, r := range []control.ReloadRequest{{DropState: []string{"counter"}}, {}, {TimeoutMS: 1}} {
			all.Go(func() { outcomes[i], _ = p.upgrade(r) })
		}
		all.Wait()
		p.wait("the save", func() bool { return p.get("/hello/") == text })
		drop, plain, hasty := outcomes[0], outcomes[1], outcomes[2]
		if drop != nil && drop.Outcome == control.Superseded { // the build had ended before they came
			continue
		}
		if drop == nil || plain == nil || hasty == nil || drop.Outcome != control.Reloaded || plain.Outcome == control.Failed {
			t.Fatalf("reloads: %+v, %+v, %+v", drop, plain, hasty)
		}
		if drop.Generation == plain.Generation && hasty.Outcome == control.Rejected {
			if got := p.get("/counter/"); got != "0" {
				t.Errorf("the counter is %s, want 0: one of the requests was to drop it", got)
			}
			return
		}
	}
}

// TestABuildThatCannotBegin is told once, and tried again when there is reason to.
func TestABuildThatCannotBegin(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.startServing()
	mod := p.read("go.mod")
	p.write("go.mod", "<<<<<<< HEAD\n"+mod)
	failures := func() int { return strings.Count(p.printed(), "build failed after") }
	p.wait("the failure to be told", func() bool { return failures() == 1 })
	if o := p.status().LastReload; o == nil || o.Outcome != control.Failed || o.Stage != "build" || !strings.Contains(o.Error, "go.mod:1") {
		t.Errorf("last reload = %+v, want a failed build because of go.mod:1", o)
	}
	if o, code := p.reload(); code != 5 || failures() != 2 {
		t.Errorf("reload: exit %d, %+v; told %d times; want 5, told twice", code, o, failures())
	}
	p.write("modules/hello/hello.go", says(p, "Hello, moon"))
	p.wait("the next save to be tried", func() bool { return failures() == 3 })
	p.write("go.mod", mod)
	p.wait("the repair", func() bool { return p.get("/hello/") == "Hello, moon" })
	if n := failures(); n != 3 {
		t.Errorf("the failure was told %d times, want 3", n)
	}
}

// TestHotReloadIsSwitchedOn for a program that has never looked at its sources.
func TestHotReloadIsSwitchedOn(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.edit("config/main.yaml", "hot_reload: true", "hot_reload: false")
	p.startServing()
	p.edit("config/main.yaml", "hot_reload: false", "hot_reload: true")
	if o, code := p.reload(); code != 0 {
		t.Fatalf("reload: exit %d, %+v", code, o)
	}
	p.edit("modules/hello/hello.go", "Hello, world", "Hello, moon")
	p.wait("the save", func() bool { return p.get("/hello/") == "Hello, moon" })
}

// TestARollbackWatchesAgain: the generation that switched watching off is not
// there any more.
func TestARollbackWatchesAgain(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.edit("config/main.yaml", "hook_timeout", "probation: 300ms\n  hook_timeout")
	p.write("modules/hello/hello.go", brokenHello("\t\"os\"\n", "var asked int\n", "", "",
		`func (h *Hello) Healthy(context.Context) error { if _, err := os.Stat("sick"); err == nil && asked > 0 { return fmt.Errorf("a headache") }; asked++; return nil }`))
	p.startServing()
	p.wait("the first generation", func() bool { return p.get("/hello/") == "broken" })
	before := p.status()
	p.write("sick", "")
	p.edit("config/main.yaml", "hot_reload: true", "hot_reload: false")
	p.wait("the rollback", func() bool {
		s, err := p.tryStatus()
		return err == nil && s.PID == before.PID && s.LastReload != nil && s.LastReload.Outcome == control.RolledBack
	})
	p.check(os.Remove(p.path("sick")))
	if !p.status().HotReload {
		t.Error("status says that hot reload is off")
	}
	p.edit("config/main.yaml", "hot_reload: false", "hot_reload: true")
	p.edit("modules/hello/hello.go", `"broken"`, `"mended"`)
	p.wait("the next save", func() bool { return p.get("/hello/") == "mended" })
}

// TestAListenPathThatIsNoSocket is left alone.
func TestAListenPathThatIsNoSocket(t *testing.T) {
	t.Parallel()
	p, b, before := started(t)
	p.write("precious", "data")
	p.edit("config/main.yaml", "listen: 127", "listen: unix://precious #")
	o, err := p.upgrade(control.ReloadRequest{Binary: b.old})
	p.rejected(o, err, "is not a socket", before)
	if got := p.read("precious"); got != "data" {
		t.Errorf("the file has %q", got)
	}
}

// TestARefusedReloadLeavesNothing of what the candidate had prepared: neither
// a socket nor what its modules made.
func TestARefusedReloadLeavesNothing(t *testing.T) {
	t.Parallel()
	p, binary, address := zooTest(t)
	before, err := p.peek()
	p.check(err)
	clean := func(why string) {
		t.Helper()
		left, _ := filepath.Glob(p.path("prepared.*"))
		if _, err := os.Stat(p.path("fresh.sock")); err == nil || len(left) != 1 {
			t.Errorf("%s: fresh.sock: %v, prepared: %q; want no socket, and the one of the serving generation", why, err, left)
		}
	}
	p.edit("config/main.yaml", "  - name: zoo\n", "  - name: zoo\n    listen: unix://fresh.sock\n")
	p.write("unprepared", "")
	o, err := p.upgrade(control.ReloadRequest{Binary: binary})
	p.rejected(o, err, "unprepared", before)
	clean("Prepare failed")
	p.check(os.Remove(p.path("unprepared")))

	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/zoo/slow?ms=60000&mark=1", nil)
		if err == nil {
			_, err = http.DefaultClient.Do(req)
		}
		done <- err
	}()
	p.wait("the request to be handled", func() bool { _, err := os.Stat(p.path("slow")); return err == nil })
	o, err = p.upgrade(control.ReloadRequest{Binary: binary})
	p.rejected(o, err, "GET /zoo/slow", before)
	clean("requests were in the way")
	cancel()
	<-done
}

// TestAFailedStopIsTold by the exit code, also after a reload.
func TestAFailedStopIsTold(t *testing.T) {
	t.Parallel()
	p, binary, _ := zooTest(t)
	p.reloads(binary)
	p.write("unwilling", "")
	p.check(p.cmd.Process.Signal(syscall.SIGTERM))
	if code := p.ended(); code != 1 {
		t.Errorf("run ended with %d, want 1: a Shutdown failed", code)
	}
}

// TestNobodyReadsTheLog: a pipe without a reader ends nothing.
func TestNobodyReadsTheLog(t *testing.T) {
	t.Parallel()
	p, _ := lightTest(t)
	binary, err := zooBuild()
	p.check(err)
	p.check(os.Remove(p.path("bin/orchestrator")))
	p.check(os.Link(binary, p.path("bin/orchestrator")))
	p.edit("config/main.yaml", "  - name: kv\n", "  - name: zoo\n  - name: kv\n")
	read, write, err := os.Pipe()
	p.check(err)
	cmd := exec.Command("bin/orchestrator", "run")
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.dir, environ, write, write
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.check(cmd.Start())
	p.began(cmd)
	write.Close()
	read.Close()
	p.wait("the program to serve", func() bool {
		s, err := p.peek()
		return err == nil && s.State == "serving"
	})
	p.reloads(binary)
	p.check(p.cmd.Process.Signal(syscall.SIGTERM))
	left := func() []string { names, _ := filepath.Glob(p.path("prepared.*")); return names }
	if code := p.ended(); code != 0 || len(left()) > 0 {
		t.Errorf("run ended with %d, and left %q; want 0, after every Shutdown", code, left())
	}
}

// TestARepairWaitsItsTurn: a module does not start again after a rollback, and
// when a fresh process is asked for, a reload that fails is under way.
func TestARepairWaitsItsTurn(t *testing.T) {
	t.Parallel()
	p, b := lightTest(t)
	p.edit("config/main.yaml", "hook_timeout: 15s", "hook_timeout: 1500ms")
	p.startWith("ORCHESTRATOR_FAILPOINT=" + p.path("failpoint"))
	p.reloads(b.new)
	_, _, err := increment(p.address())
	p.check(err)
	before, err := p.peek()
	p.check(err)
	p.write("sick", "Initialize")
	p.write("failpoint", "candidate.at.initialized exit1")
	o, err := p.upgrade(control.ReloadRequest{Binary: b.old, TimeoutMS: 60_000})
	if err != nil || o.Outcome != control.Failed {
		t.Fatalf("reload = %+v, %v; want failed: the rollback does not work", o, err)
	}
	p.write("failpoint", "candidate.at.prepared hang") // before the repair starts by itself
	o, err = p.upgrade(control.ReloadRequest{Binary: b.old, TimeoutMS: 60_000})
	if err != nil || o.Outcome != control.Rejected {
		t.Fatalf("reload = %+v, %v; want rejected", o, err)
	}
	var after *control.Status
	p.wait("a fresh process", func() bool {
		after, err = p.peek()
		return err == nil && after.PID != before.PID && after.PID != 0
	})
	if !strings.Contains(p.printed(), "handing over to a fresh process of the same build") || after.State != "degraded" {
		t.Errorf("%+v serves; want a fresh process of the same build, degraded", *after)
	}
	p.check(os.Remove(p.path("sick")))
	p.wait("the module to be well again", func() bool { s, err := p.peek(); return err == nil && s.State == "serving" })
	if n, err := count(p.address()); err != nil || n != 1 || !p.answersNew() {
		t.Errorf("the counter is %d, %v; want 1, of the same build", n, err)
	}
}

// TestLastWordsThatComeLate: the word of a candidate that it serves reaches the
// supervisor after that of the old generation that it has taken everything back.
func TestLastWordsThatComeLate(t *testing.T) {
	t.Parallel()
	p, b, before := started(t)
	p.write("sick", "Initialize")
	o, err := p.upgrade(control.ReloadRequest{Binary: b.new})
	p.rejected(o, err, "sick", before)
	c, err := control.Dial(control.Socket(p.path(".orchestrator")), control.Hello{Role: control.RoleWorker, Generation: o.Generation})
	p.check(err)
	if m, err := c.Receive(); err != nil || m.Type != control.TypeKnown {
		t.Fatalf("the supervisor answers %q, %v", m.Type, err)
	}
	p.check(c.Send(control.Message{Type: control.TypeServing, Serving: &control.Serving{Listen: before.Listen, Outcome: &control.Outcome{Outcome: control.Reloaded, Generation: o.Generation}}}))
	c.Close()
	p.check(os.Remove(p.path("sick")))
	p.nextReloadWorks(b.new)
	s, err := p.peek()
	if p.check(err); s.Generation != o.Generation+1 || strings.Contains(p.printed(), "killing it") {
		t.Errorf("generation %d serves, want %d", s.Generation, o.Generation+1)
	}
}
