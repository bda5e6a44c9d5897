//go:build unix

package develop_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestRequestsThatJoin: requests that join a build get one reload, which does
// what each asked for. One that expires ends nothing that others, or a save,
// wait for.
func TestRequestsThatJoin(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.StartServing()
	for n := 0; ; n++ {
		if n == 10 {
			t.Fatal("the requests never met in one build")
		}
		_, _, err := e2etest.Increment(p.Address())
		p.Check(err)
		text := fmt.Sprint("Hello, ", n)
		p.Write("modules/hello/hello.go", e2etest.Says(p, text))
		outcomes := make([]*client.Outcome, 3)
		var all sync.WaitGroup
		for i, r := range []client.ReloadRequest{{DropState: []string{"counter"}}, {}, {TimeoutMS: 1}} {
			all.Go(func() { outcomes[i], _ = p.Upgrade(r) })
		}
		all.Wait()
		p.Wait("the save", func() bool { return p.Get("/hello/") == text })
		drop, plain, hasty := outcomes[0], outcomes[1], outcomes[2]
		if drop != nil && drop.Verdict == client.Superseded { // the build ended before they arrived
			continue
		}
		if drop == nil || plain == nil || hasty == nil || drop.Verdict != client.Reloaded || plain.Verdict == client.Failed {
			t.Fatalf("reloads: %+v, %+v, %+v", drop, plain, hasty)
		}
		if drop.Generation == plain.Generation && hasty.Verdict == client.Rejected {
			if got := p.Get("/counter/"); got != "0" {
				t.Errorf("the counter is %s, want 0: one of the requests was to drop it", got)
			}
			return
		}
	}
}

// TestABuildThatCannotBegin: it is reported once, and tried again on request and
// after a change.
func TestABuildThatCannotBegin(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.StartServing()
	mod := p.Read("go.mod")
	p.Write("go.mod", "<<<<<<< HEAD\n"+mod)
	failures := func() int { return strings.Count(p.Printed(), "build failed after") }
	p.Wait("the failure to be told", func() bool { return failures() == 1 })
	if o := p.Status().LastReload; o == nil || o.Verdict != client.Failed || o.Stage != "build" || !strings.Contains(o.Error, "go.mod:1") {
		t.Errorf("last reload = %+v, want a failed build because of go.mod:1", o)
	}
	if o, code := p.Reload(); code != 5 || failures() != 2 {
		t.Errorf("reload: exit %d, %+v; told %d times; want 5, told twice", code, o, failures())
	}
	p.Write("modules/hello/hello.go", e2etest.Says(p, "Hello, moon"))
	p.Wait("the next save to be tried", func() bool { return failures() == 3 })
	p.Write("go.mod", mod)
	p.Wait("the repair", func() bool { return p.Get("/hello/") == "Hello, moon" })
	if n := failures(); n != 3 {
		t.Errorf("the failure was told %d times, want 3", n)
	}
}

// TestHotReloadIsSwitchedOn: in a program that has never looked at its sources.
func TestHotReloadIsSwitchedOn(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.Edit("config/main.yaml", "hot_reload: true", "hot_reload: false")
	p.StartServing()
	p.Edit("config/main.yaml", "hot_reload: false", "hot_reload: true")
	if o, code := p.Reload(); code != 0 {
		t.Fatalf("reload: exit %d, %+v", code, o)
	}
	p.Edit("modules/hello/hello.go", "Hello, world", "Hello, moon")
	p.Wait("the save", func() bool { return p.Get("/hello/") == "Hello, moon" })
}

// TestARollbackWatchesAgain: the generation that switched watching off is gone.
func TestARollbackWatchesAgain(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.Edit("config/main.yaml", "hook_timeout", "probation: 300ms\n  hook_timeout")
	p.Write("modules/hello/hello.go", e2etest.BrokenHello("\t\"os\"\n", "var asked int\n", "", "",
		`func (h *Hello) Healthy(context.Context) error { if _, err := os.Stat("failing"); err == nil && asked > 0 { return fmt.Errorf("a headache") }; asked++; return nil }`))
	p.StartServing()
	p.Wait("the first generation", func() bool { return p.Get("/hello/") == "broken" })
	before := p.Status()
	p.Write("failing", "")
	p.Edit("config/main.yaml", "hot_reload: true", "hot_reload: false")
	p.Wait("the rollback", func() bool {
		s, err := p.TryStatus()
		return err == nil && s.PID == before.PID && s.LastReload != nil && s.LastReload.Verdict == client.RolledBack
	})
	p.Check(os.Remove(p.Path("failing")))
	if !p.Status().HotReload {
		t.Error("status says that hot reload is off")
	}
	p.Edit("config/main.yaml", "hot_reload: false", "hot_reload: true")
	p.Edit("modules/hello/hello.go", `"broken"`, `"mended"`)
	p.Wait("the next save", func() bool { return p.Get("/hello/") == "mended" })
}

// TestAProgramThatCannotStart: while its first start fails, `run` waits for the fix.
func TestAProgramThatCannotStart(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	good := p.Read("modules/hello/hello.go")
	p.Write("modules/hello/hello.go", e2etest.BrokenHello("", "", "", `if ctx != nil { return fmt.Errorf("no database") }`, ""))
	p.Start()
	p.Wait("it to say that it waits", func() bool {
		return strings.Contains(p.Printed(), "waiting for a change of the sources")
	})
	if out, _, code := p.Command("status"); code != 0 || !strings.Contains(out, "could not start") {
		t.Errorf("status = %s, exit code %d; want that it could not start", out, code)
	}
	if !strings.Contains(p.Printed(), "no database") {
		t.Error("it does not say why")
	}
	p.Write("modules/hello/hello.go", good)
	p.Wait("it to serve", func() bool { return p.Serving() && p.Get("/hello/") == "Hello, world" })
}
