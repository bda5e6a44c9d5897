package cmd_test

import (
	"bufio"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"orchestrator/app/control"
)

// probationProject serves without hot reload, with this probation.
func probationProject(t *testing.T, app string) *project {
	t.Helper()
	p := testProject(t)
	p.write("config/main.yaml", strings.Replace(standardConfig, "hot_reload: true", "hot_reload: false\n  "+app, 1))
	return p
}

// sickHello is a hello module that is well until there is a file called sick.
var sickHello = brokenHello("\t\"os\"\n", "", "", "",
	`func (h *Hello) Healthy(context.Context) error { if _, err := os.Stat("sick"); err == nil { return fmt.Errorf("a headache") }; return nil }`)

// sicken makes the generation on probation unwell, and waits until the one
// before it is back. It returns what is said of the reload.
func (p *project) sicken(before *control.Status) *control.Outcome {
	p.write("sick", "")
	p.wait("the old generation to be back", func() bool {
		s, err := p.tryStatus()
		return err == nil && s.State == "serving" && s.PID == before.PID
	})
	return p.status().LastReload
}

// TestAnUnwellGenerationHandsBack serves well at first and then not: what it
// did is kept, on the same connections.
func TestAnUnwellGenerationHandsBack(t *testing.T) {
	t.Parallel()
	p := probationProject(t, "probation: 20s") // it is asked each fourth second
	sick := p.variant("sick", map[string]string{"modules/hello/hello.go": sickHello})
	p.startServing()
	before := p.status()
	c, err := net.Dial("tcp", before.Listen[0])
	p.check(err)
	defer c.Close()
	in := bufio.NewReader(c)
	p.check(postOn(c, in))

	o, code := p.reload("--binary", sick)
	if code != 0 || o.Probation != control.ProbationPending {
		t.Fatalf("reload = exit %d, %+v; want reloaded, on probation", code, o)
	}
	p.check(postOn(c, in)) // counted by the new generation
	if code, _, err := do(http.MethodPut, "http://"+before.Listen[0]+"/kv/key", "new"); err != nil || code != http.StatusNoContent {
		t.Fatalf("PUT /kv/key = %d, %v", code, err)
	}
	last := p.sicken(before)
	if last.Outcome != control.RolledBack || last.Stage != "healthy" || last.FailedModule != "hello" || !strings.Contains(last.Error, "a headache") || len(last.Rewound) > 0 || len(last.Lost) > 0 {
		t.Errorf("last reload %+v, want rolled back because of hello's headache, nothing rewound", last)
	}
	p.wait("the word that nothing was lost", func() bool { return strings.Contains(p.printed(), "nothing was lost") })
	p.check(postOn(c, in))
	if got := p.get("/counter/"); got != "3" {
		t.Errorf("the counter is %s, want 3: one from each generation and one from the first again", got)
	}
	if got := p.get("/kv/key"); got != "new" {
		t.Errorf("kv has %q, want new", got)
	}
	if got := p.get("/hello/"); got != "Hello, world" {
		t.Errorf("GET /hello/ = %q, want the old code", got)
	}
	out, _, _ := p.command("events", "--json")
	if !strings.Contains(out, `"topic":"module.rolled_back"`) {
		t.Errorf("no module.rolled_back in\n%s", out)
	}
	p.check(os.Remove(p.path("sick")))
	p.wait("the candidate to go", func() bool { return len(p.processes()) == 2 })
	if o, code := p.reload("--binary", sick); code != 0 {
		t.Errorf("the next reload: exit %d, %+v", code, o)
	}
}

// TestARaisedStateIsNotHandedBack: the old build cannot read what a build with
// a newer version of a state has exported, and says that it starts from its own.
func TestARaisedStateIsNotHandedBack(t *testing.T) {
	t.Parallel()
	p := probationProject(t, "probation: 20s")
	raised := strings.Replace(p.read("modules/counter/counter.go"), "Version: 1, Value: &c.state}",
		"Version: 2, Value: &c.state, Migrate: func(from int, decode func(any) error) error { return decode(&c.state) }}", 1)
	sick := p.variant("sick", map[string]string{
		"modules/counter/counter.go": raised,
		"modules/hello/hello.go":     sickHello,
	})
	p.startServing()
	before := p.status()
	add := func(want int64) {
		t.Helper()
		if n, _, err := increment(before.Listen[0]); err != nil || n != want {
			t.Fatalf("POST /counter/ = %d, %v; want %d", n, err, want)
		}
	}
	add(1)
	if o, code := p.reload("--binary", sick); code != 0 {
		t.Fatalf("reload = exit %d, %+v; want reloaded, the state lifted", code, o)
	}
	add(2)
	if code, _, err := do(http.MethodPut, "http://"+before.Listen[0]+"/kv/key", "new"); err != nil || code != http.StatusNoContent {
		t.Fatalf("PUT /kv/key = %d, %v", code, err)
	}
	last := p.sicken(before)
	if last.Outcome != control.RolledBack || strings.Join(last.Rewound, " ") != "counter" || len(last.Lost) > 0 {
		t.Errorf("last reload %+v, want rolled back, the counter rewound", last)
	}
	if strings.Contains(p.printed(), "nothing was lost") {
		t.Error("it says that nothing was lost")
	}
	add(2)
	if got := p.get("/kv/key"); got != "new" {
		t.Errorf("kv has %q, want new", got)
	}
}

func TestANewerReloadCutsProbationShort(t *testing.T) {
	t.Parallel()
	p := probationProject(t, "probation: 10m")
	good := p.variant("good", map[string]string{"modules/hello/hello.go": strings.Replace(p.read("modules/hello/hello.go"), "Hello, world", "Hello, moon", 1)})
	p.startServing()
	var first sync.WaitGroup
	var waited *control.Outcome
	first.Go(func() { waited, _ = p.reload("--binary", good, "--wait-probation") })
	p.wait("the first reload to serve", func() bool {
		s, err := p.tryStatus()
		return err == nil && s.Generation == 2 && s.LastReload != nil && s.LastReload.Probation == control.ProbationPending
	})
	if o, code := p.reload("--binary", good); code != 0 || o.Generation != 3 {
		t.Errorf("the second reload = exit %d, %+v; want generation 3", code, o)
	}
	first.Wait()
	if waited == nil || waited.Outcome != control.Reloaded || waited.Probation != control.ProbationCut {
		t.Errorf("the first reload = %+v, want reloaded, its probation cut", waited)
	}
	p.wait("the first generation to go", func() bool { return len(p.processes()) == 3 })
}

func TestWithoutProbation(t *testing.T) {
	t.Parallel()
	p := probationProject(t, "probation: 0s")
	p.startServing()
	for i := range 3 {
		o, code := p.reload("--wait-probation")
		if code != 0 || o.Generation != i+2 || o.Probation != "" {
			t.Fatalf("reload = exit %d, %+v; want generation %d and no probation", code, o, i+2)
		}
	}
	p.wait("the old generations to go", func() bool { return len(p.processes()) == 2 })
}

// TestAnOlderBuildAfterCrashes lets a build crash until the one before it is
// started, which only happens where the configuration allows it.
func TestAnOlderBuildAfterCrashes(t *testing.T) {
	t.Parallel()
	p := probationProject(t, "probation: 100ms\n  restart_older_build: true")
	crasher := p.variant("crasher", map[string]string{"modules/hello/hello.go": brokenHello("", "", "", "", "")})
	p.startServing()
	if o, code := p.reload("--binary", crasher, "--wait-probation"); code != 0 || o.Probation != control.ProbationPassed {
		t.Fatalf("reload = exit %d, %+v", code, o)
	}
	p.wait("the older build to serve", func() bool {
		s, err := p.tryStatus()
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
	if got := p.get("/hello/"); got != "Hello, world" {
		t.Errorf("GET /hello/ = %q, want what the older build answers", got)
	}
	if !strings.Contains(p.printed(), "trying the one before it (restart_older_build)") {
		t.Errorf("nothing says so:\n%s", p.printed())
	}
}
