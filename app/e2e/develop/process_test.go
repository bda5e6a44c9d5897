//go:build unix

package develop_test

import (
	"os/exec"
	"strings"
	"testing"

	"example.org/orchestrator/app/e2e/e2etest"
)

// TestMakeRunInATerminal is the first session of a new user.
func TestMakeRunInATerminal(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("no make")
	}
	tty := p.Terminal("sh", "-c", "trap : INT; make run; echo PROMPT")
	defer tty.Close()
	p.Screen(tty)
	p.Wait("the program to serve", p.Serving)
	if got := p.Get("/hello/"); got != "Hello, world" {
		t.Fatalf("GET /hello/ = %q", got)
	}
	before := p.Status()
	for i, next := range []string{"one", "two", "three"} {
		last := []string{"Hello, world", "one", "two"}[i]
		p.Edit("modules/hello/hello.go", `"`+last+`"`, `"`+next+`"`)
		p.Wait(next, func() bool { return p.Get("/hello/") == next })
		if s := p.Idle(); s.SupervisorPID != before.SupervisorPID || s.Generation != before.Generation+i+1 {
			t.Fatalf("supervisor %d, generation %d; want %d, %d", s.SupervisorPID, s.Generation, before.SupervisorPID, before.Generation+i+1)
		}
	}
	if strings.Contains(p.Printed(), "PROMPT") {
		t.Fatal("the prompt came back before Ctrl-C")
	}
	tty.Write([]byte{3})
	p.Ended()
	if left := p.Processes(); len(left) > 0 {
		t.Errorf("the shell went on while processes %v were left", left)
	}
	p.Wait("the prompt", func() bool { return strings.Contains(p.Printed(), "PROMPT") })
}

func TestHotReloadCanBeSwitchedByAReload(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.StartServing()
	p.Edit("config/main.yaml", "hot_reload: true", "hot_reload: false")
	p.Wait("hot reload to be off", func() bool { return !p.Status().HotReload })
	p.Edit("config/main.yaml", "hot_reload: false", "hot_reload: true")
	p.Edit("modules/hello/hello.go", "Hello, world", "Hello, moon")
	if o, code := p.Reload("--build"); code != 0 {
		t.Fatalf("reload --build: exit %d, %+v", code, o)
	}
	if got := p.Get("/hello/"); got != "Hello, moon" || !p.Status().HotReload {
		t.Errorf("GET /hello/ = %q, hot reload %v; want the edit, on", got, p.Status().HotReload)
	}
	p.Edit("modules/hello/hello.go", "Hello, moon", "Hello, sun")
	p.Wait("the next save", func() bool { return p.Get("/hello/") == "Hello, sun" })
}
