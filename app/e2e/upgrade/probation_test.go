//go:build unix

package upgrade_test

import (
	"bufio"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// probationProject starts a program without hot reload, with this setting.
func probationProject(t *testing.T, app string) *e2etest.Project {
	t.Helper()
	p := e2etest.New(t)
	p.Write("config/main.yaml", strings.Replace(e2etest.StandardConfig, "hot_reload: true", "hot_reload: false\n  "+app, 1))
	return p
}

// unhealthyHello is a hello module that is healthy until there is a file called failing.
var unhealthyHello = e2etest.BrokenHello("\t\"os\"\n", "", "", "",
	`func (h *Hello) Healthy(context.Context) error { if _, err := os.Stat("failing"); err == nil { return fmt.Errorf("a headache") }; return nil }`)

// makeUnhealthy makes the generation on probation unhealthy, and waits until the old one
// serves again. It returns the last outcome.
func makeUnhealthy(p *e2etest.Project, before *client.Status) *client.Outcome {
	p.Write("failing", "")
	p.Wait("the old generation to be back", func() bool {
		s, err := p.TryStatus()
		return err == nil && s.State == "serving" && s.PID == before.PID
	})
	return p.Status().LastReload
}

// TestAnUnhealthyGenerationHandsBack: the generation is healthy at first. What it
// did is kept, on the same connections.
func TestAnUnhealthyGenerationHandsBack(t *testing.T) {
	t.Parallel()
	p := probationProject(t, "probation: 20s") // its health is asked every 4 s
	failing := p.Variant("failing", map[string]string{"modules/hello/hello.go": unhealthyHello})
	p.StartServing()
	before := p.Status()
	c, err := net.Dial("tcp", before.Listen[0])
	p.Check(err)
	defer c.Close()
	in := bufio.NewReader(c)
	p.Check(e2etest.PostOn(c, in))

	o, code := p.Reload("--binary", failing)
	if code != 0 || o.Probation != client.ProbationPending {
		t.Fatalf("reload = exit %d, %+v; want reloaded, on probation", code, o)
	}
	p.Check(e2etest.PostOn(c, in)) // counted by the new generation
	if code, _, err := e2etest.Do(http.MethodPut, "http://"+before.Listen[0]+"/kv/key", "new"); err != nil || code != http.StatusNoContent {
		t.Fatalf("PUT /kv/key = %d, %v", code, err)
	}
	last := makeUnhealthy(p, before)
	if last.Verdict != client.RolledBack || last.Stage != "healthy" || last.FailedModule != "hello" || !strings.Contains(last.Error, "a headache") || len(last.Reverted) > 0 || len(last.Lost) > 0 {
		t.Errorf("last reload %+v, want rolled back because of hello's headache, nothing reverted", last)
	}
	p.Wait("the word that nothing was lost", func() bool { return strings.Contains(p.Printed(), "nothing was lost") })
	p.Check(e2etest.PostOn(c, in))
	if got := p.Get("/counter/"); got != "3" {
		t.Errorf("the counter is %s, want 3: one from each generation and one from the first again", got)
	}
	if got := p.Get("/kv/key"); got != "new" {
		t.Errorf("kv has %q, want new", got)
	}
	if got := p.Get("/hello/"); got != "Hello, world" {
		t.Errorf("GET /hello/ = %q, want the old code", got)
	}
	out, _, _ := p.Command("events", "--json")
	if !strings.Contains(out, `"topic":"module.rolled_back"`) {
		t.Errorf("no module.rolled_back in\n%s", out)
	}
	p.Check(os.Remove(p.Path("failing")))
	p.Wait("the candidate to go", func() bool { return len(p.Processes()) == 2 })
	if o, code := p.Reload("--binary", failing); code != 0 {
		t.Errorf("the next reload: exit %d, %+v", code, o)
	}
}

// TestARaisedStateIsNotHandedBack: the old build cannot read a state exported with
// a newer version, and says that it starts from its own.
func TestARaisedStateIsNotHandedBack(t *testing.T) {
	t.Parallel()
	p := probationProject(t, "probation: 20s")
	raised := strings.Replace(p.Read("modules/counter/counter.go"), "Version: 1, Value: &c.state}",
		"Version: 2, Value: &c.state, Migrate: func(from int, decode func(any) error) error { return decode(&c.state) }}", 1)
	failing := p.Variant("failing", map[string]string{
		"modules/counter/counter.go": raised,
		"modules/hello/hello.go":     unhealthyHello,
	})
	p.StartServing()
	before := p.Status()
	add := func(want int64) {
		t.Helper()
		if n, _, err := e2etest.Increment(before.Listen[0]); err != nil || n != want {
			t.Fatalf("POST /counter/ = %d, %v; want %d", n, err, want)
		}
	}
	add(1)
	if o, code := p.Reload("--binary", failing); code != 0 {
		t.Fatalf("reload = exit %d, %+v; want reloaded, the state lifted", code, o)
	}
	add(2)
	if code, _, err := e2etest.Do(http.MethodPut, "http://"+before.Listen[0]+"/kv/key", "new"); err != nil || code != http.StatusNoContent {
		t.Fatalf("PUT /kv/key = %d, %v", code, err)
	}
	last := makeUnhealthy(p, before)
	if last.Verdict != client.RolledBack || strings.Join(last.Reverted, " ") != "counter" || len(last.Lost) > 0 {
		t.Errorf("last reload %+v, want rolled back, the counter reverted", last)
	}
	if strings.Contains(p.Printed(), "nothing was lost") {
		t.Error("it says that nothing was lost")
	}
	add(2)
	if got := p.Get("/kv/key"); got != "new" {
		t.Errorf("kv has %q, want new", got)
	}
}

func TestANewerReloadCutsProbationShort(t *testing.T) {
	t.Parallel()
	p := probationProject(t, "probation: 10m")
	good := p.Variant("good", map[string]string{"modules/hello/hello.go": strings.Replace(p.Read("modules/hello/hello.go"), "Hello, world", "Hello, moon", 1)})
	p.StartServing()
	var first sync.WaitGroup
	var waited *client.Outcome
	first.Go(func() { waited, _ = p.Reload("--binary", good, "--wait-probation") })
	p.Wait("the first reload to serve", func() bool {
		s, err := p.TryStatus()
		return err == nil && s.Generation == 2 && s.LastReload != nil && s.LastReload.Probation == client.ProbationPending
	})
	if o, code := p.Reload("--binary", good); code != 0 || o.Generation != 3 {
		t.Errorf("the second reload = exit %d, %+v; want generation 3", code, o)
	}
	first.Wait()
	if waited == nil || waited.Verdict != client.Reloaded || waited.Probation != client.ProbationCut {
		t.Errorf("the first reload = %+v, want reloaded, its probation cut", waited)
	}
	p.Wait("the first generation to go", func() bool { return len(p.Processes()) == 3 })
}

func TestWithoutProbation(t *testing.T) {
	t.Parallel()
	p := probationProject(t, "probation: 0s")
	p.StartServing()
	for i := range 3 {
		o, code := p.Reload("--wait-probation")
		if code != 0 || o.Generation != i+2 || o.Probation != "" {
			t.Fatalf("reload = exit %d, %+v; want generation %d and no probation", code, o, i+2)
		}
	}
	p.Wait("the old generations to go", func() bool { return len(p.Processes()) == 2 })
}

// TestAnOlderBuildAfterCrashes crashes a build until the one before it is
// started, which happens only if the configuration allows it.
func TestAnOlderBuildAfterCrashes(t *testing.T) {
	t.Parallel()
	p := probationProject(t, "probation: 100ms\n  restart_older_build: true")
	crasher := p.Variant("crasher", map[string]string{"modules/hello/hello.go": e2etest.BrokenHello("", "", "", "", "")})
	p.StartServing()
	if o, code := p.Reload("--binary", crasher, "--wait-probation"); code != 0 || o.Probation != client.ProbationPassed {
		t.Fatalf("reload = exit %d, %+v", code, o)
	}
	p.Wait("the older build to serve", func() bool {
		s, err := p.TryStatus()
		if err == nil && s.LastCrash != nil && s.LastCrash.Older && s.State == "serving" {
			return true
		}
		if err == nil && s.State == "serving" && s.PID != 0 {
			if proc, err := os.FindProcess(s.PID); err == nil {
				proc.Kill()
			}
		}
		return false
	})
	if got := p.Get("/hello/"); got != "Hello, world" {
		t.Errorf("GET /hello/ = %q, want what the older build answers", got)
	}
	if !strings.Contains(p.Printed(), "trying the one before it (restart_older_build)") {
		t.Errorf("nothing says so:\n%s", p.Printed())
	}
}
