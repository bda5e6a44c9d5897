//go:build unix

package failures_test

import (
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/wire"
)

// servesAfter waits until a process other than pid serves.
func servesAfter(p *e2etest.Project, pid int) (s *client.Status) {
	p.Wait("another generation to serve", func() bool {
		var err error
		s, err = p.Peek()
		return err == nil && s.State == "serving" && s.PID != pid && s.PID != 0
	})
	return s
}

// TestACrashAfterARollback: the build that served is restarted, not the one that
// was rolled back.
func TestACrashAfterARollback(t *testing.T) {
	t.Parallel()
	p, b, before := e2etest.Started(t)
	copied(p)
	p.Check(os.Remove(p.Path("bin/orchestrator")))
	p.Write("failing", "Healthy")
	_, err := p.Upgrade(client.ReloadRequest{Binary: b.New})
	p.Check(err)
	p.Wait("the rollback", func() bool {
		s, err := p.Peek()
		return err == nil && s.LastReload.Verdict == client.RolledBack && s.PID == before.PID && len(p.Processes()) == 2
	})
	p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
	servesAfter(p, before.PID)
	if p.AnswersNew() {
		t.Error("the build that was rolled back was started after a crash")
	}
	p.Check(os.Remove(p.Path("failing")))
	p.NextReloadWorks(b.New)
}

// TestTheOlderBuildIsThereWhenItIsNeeded: a build crashes and then cannot even
// start again.
func TestTheOlderBuildIsThereWhenItIsNeeded(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.Edit("config/main.yaml", "  drain:", "  restart_older_build: true\n  drain:")
	p.StartWith()
	copied(p)
	p.Check(os.Remove(p.Path("bin/orchestrator")))
	p.Reloads(b.New)
	before, err := p.Peek()
	p.Check(err)
	p.Write("failing", "Initialize")
	p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
	after := servesAfter(p, before.PID)
	if after.LastCrash == nil || !after.LastCrash.Older || p.AnswersNew() {
		t.Errorf("after the crashes %+v serves, last crash %+v; want the older build", *after, after.LastCrash)
	}
}

// TestAReloadRepairsACrashLoop: a build deployed while nothing can start replaces
// the one that crashes.
func TestAReloadRepairsACrashLoop(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.StartWith()
	p.Reloads(b.New)
	before, err := p.Peek()
	p.Check(err)
	p.Write("failing", "Initialize")
	p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.Wait("it to crash at each start", func() bool { return strings.Contains(p.Printed(), "starting it again in ") })
	o, err := p.Upgrade(client.ReloadRequest{Binary: b.New, TimeoutMS: 300})
	if err != nil || o.Verdict != client.Rejected || o.Serving != 0 {
		t.Errorf("a reload to what crashes = %+v, %v; want that nothing serves", o, err)
	}
	if o, err = p.Upgrade(client.ReloadRequest{Binary: b.Old}); err != nil || o.Verdict != client.Reloaded {
		t.Errorf("the reload = %+v, %v; want reloaded", o, err)
	}
	if p.AnswersNew() {
		t.Error("the build that crashes serves")
	}
	events, _, _ := p.Command("events", "--json")
	if !strings.Contains(events, `"topic":"app.crashed"`) {
		t.Errorf("no app.crashed in\n%s", events)
	}
}

// TestAStartThatHangs: a start that hangs after a crash is killed, and a reload
// repairs the program.
func TestAStartThatHangs(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.Edit("config/main.yaml", "hook_timeout: 15s", "hook_timeout: 1500ms")
	p.StartWith()
	p.Write("failing", "factory") // no candidate gets anywhere either
	before, err := p.Peek()
	p.Check(err)
	o, err := p.Upgrade(client.ReloadRequest{Binary: b.New, TimeoutMS: 60_000})
	p.Rejected(o, err, "did not answer in time", before)
	if o.Stage != "config" || o.FailedModule != "counter" && o.FailedModule != "" {
		t.Errorf("stage %q of module %q is blamed, want config", o.Stage, o.FailedModule)
	}
	p.Check(os.Remove(p.Path("failing")))
	p.Reloads(b.New)
	before, err = p.Peek()
	p.Check(err)
	p.Write("failing", "factory")
	p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.Wait("the first start to be given up", func() bool { return strings.Contains(p.Printed(), "has not begun to serve within") })
	o, err = p.Upgrade(client.ReloadRequest{Binary: b.Old, TimeoutMS: 60_000})
	if err != nil || o.Verdict != client.Reloaded || p.AnswersNew() {
		t.Errorf("the reload = %+v, %v; want that the other build serves", o, err)
	}
}

// TestACrashWithoutARunDir: a cleaner has removed the run_dir, and then the program
// crashes. A start needs one.
func TestACrashWithoutARunDir(t *testing.T) {
	t.Parallel()
	p, b, before := e2etest.Started(t)
	p.Check(os.RemoveAll(p.Path(".orchestrator")))
	p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
	servesAfter(p, before.PID)
	p.NextReloadWorks(b.Old)
}

// TestACrashDuringADrain: the restart does not wait for its end, since nothing
// would serve.
func TestACrashDuringADrain(t *testing.T) {
	t.Parallel()
	p, binary, address := e2etest.TLS(t, "drain: 500ms", "drain: 10m")
	c, _ := e2etest.HTTPSClient(true)
	defer c.CloseIdleConnections()
	_, err := e2etest.Ask(c, http.MethodPost, address+"/counter/", "")
	p.Check(err)
	p.Reloads(binary)
	before, err := p.Peek()
	p.Check(err)
	if n := len(p.Processes()); n != 3 {
		t.Fatalf("%d processes, want 3: one that drains", n)
	}
	p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
	servesAfter(p, before.PID)
	fresh, _ := e2etest.HTTPSClient(false)
	defer fresh.CloseIdleConnections()
	if _, err := e2etest.Ask(fresh, http.MethodPost, address+"/counter/", ""); err != nil {
		t.Error(err)
	}
}

// TestACandidateThatHangsAlone: the old generation, which would have enforced its
// deadlines, has died.
func TestACandidateThatHangsAlone(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.Edit("config/main.yaml", "hook_timeout: 15s", "hook_timeout: 2s")
	p.StartWith("ORCHESTRATOR_FAILPOINT=" + p.Path("failpoint"))
	before, err := p.Peek()
	p.Check(err)
	p.Write("failpoint", "candidate.at.prepared hang")
	outcome := make(chan *client.Outcome, 1)
	go func() {
		o, _ := p.Upgrade(client.ReloadRequest{Binary: b.New})
		outcome <- o
	}()
	p.Wait("the candidate to hang", func() bool { _, err := os.Stat(p.Path("failpoint")); return err != nil })
	p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
	servesAfter(p, before.PID)
	if o := <-outcome; o == nil || o.Verdict != client.Failed {
		t.Errorf("the reload = %+v, want failed", o)
	}
	p.NextReloadWorks(b.Old)
}

// TestARepairWaitsItsTurn: a module does not start again after a rollback. When a
// fresh process is asked for, a reload that will fail is under way.
func TestARepairWaitsItsTurn(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.Edit("config/main.yaml", "hook_timeout: 15s", "hook_timeout: 1500ms")
	p.StartWith("ORCHESTRATOR_FAILPOINT=" + p.Path("failpoint"))
	p.Reloads(b.New)
	_, _, err := e2etest.Increment(p.Address())
	p.Check(err)
	before, err := p.Peek()
	p.Check(err)
	p.Write("failing", "Initialize")
	p.Write("failpoint", "candidate.at.initialized exit1")
	o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old, TimeoutMS: 60_000})
	if err != nil || o.Verdict != client.Failed {
		t.Fatalf("reload = %+v, %v; want failed: the rollback does not work", o, err)
	}
	p.Write("failpoint", "candidate.at.prepared hang") // before the repair starts by itself
	o, err = p.Upgrade(client.ReloadRequest{Binary: b.Old, TimeoutMS: 60_000})
	if err != nil || o.Verdict != client.Rejected {
		t.Fatalf("reload = %+v, %v; want rejected", o, err)
	}
	var after *client.Status
	p.Wait("a fresh process", func() bool {
		after, err = p.Peek()
		return err == nil && after.PID != before.PID && after.PID != 0
	})
	if !strings.Contains(p.Printed(), "starting a fresh process of the same build") || after.State != "degraded" {
		t.Errorf("%+v serves; want a fresh process of the same build, degraded", *after)
	}
	p.Check(os.Remove(p.Path("failing")))
	p.Wait("the module to be well again", func() bool { s, err := p.Peek(); return err == nil && s.State == "serving" })
	if n, err := e2etest.Count(p.Address()); err != nil || n != 1 || !p.AnswersNew() {
		t.Errorf("the counter is %d, %v; want 1, of the same build", n, err)
	}
}

// TestLastWordsThatComeLate: the candidate's message that it serves reaches the
// supervisor after the old generation's report that it serves again.
func TestLastWordsThatComeLate(t *testing.T) {
	t.Parallel()
	p, b, before := e2etest.Started(t)
	p.Write("failing", "Initialize")
	o, err := p.Upgrade(client.ReloadRequest{Binary: b.New})
	p.Rejected(o, err, "failing", before)
	c, err := wire.Dial(wire.Socket(p.Path(".orchestrator")), wire.Hello{Role: wire.RoleWorker, Generation: o.Generation})
	p.Check(err)
	var m control.Message
	if err := c.Receive(&m); err != nil || m.Type != control.TypeKnown {
		t.Fatalf("the supervisor answers %q, %v", m.Type, err)
	}
	p.Check(c.Send(control.Message{Type: control.TypeServing, Serving: &control.Serving{Listen: before.Listen, Report: &control.Report{TookOver: true, Generation: o.Generation}}}))
	c.Close()
	p.Check(os.Remove(p.Path("failing")))
	p.NextReloadWorks(b.New)
	s, err := p.Peek()
	if p.Check(err); s.Generation != o.Generation+1 || strings.Contains(p.Printed(), "killing it") {
		t.Errorf("generation %d serves, want %d", s.Generation, o.Generation+1)
	}
}
