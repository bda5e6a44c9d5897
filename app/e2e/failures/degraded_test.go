//go:build unix

package failures_test

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// database is a hello module that cannot start without its database. The database
// is down while the file "down" exists. The module counts its requests.
var database = strings.NewReplacer(
	"return &Hello{}", "return &Hello{}",
	"fmt.Fprintln(w, message)", `h.state.N++; fmt.Fprintln(w, "request", h.state.N)`,
	"type Hello struct{}", "type Hello struct{ state struct{ N int } }",
).Replace(e2etest.BrokenHello("\t\"os\"\n", "", "", `if _, err := os.Stat("down"); err == nil { return fmt.Errorf("no database") }`,
	`func (h *Hello) State() modules.State { return modules.State{Value: &h.state} }`))

// TestARollbackThatFails takes a module's database away before a reload, so that
// the module starts neither in the new process nor again in the old one.
func TestARollbackThatFails(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.Write("config/main.yaml", strings.Replace(e2etest.StandardConfig, "hot_reload: true", "hot_reload: false\n  probation: 200ms", 1))
	binary := p.Variant("database", map[string]string{"modules/hello/hello.go": database})
	p.Check(os.Rename(binary, p.Path("bin/orchestrator")))
	binary = p.Path("bin/orchestrator")
	p.StartServing()
	address := p.Status().Listen[0]
	ask := func() (int, string) {
		code, text, err := e2etest.Do(http.MethodGet, "http://"+address+"/hello/", "")
		p.Check(err)
		return code, text
	}
	others := func() {
		t.Helper()
		if code, text, err := e2etest.Do(http.MethodPost, "http://"+address+"/counter/", ""); err != nil || code != http.StatusOK {
			t.Fatalf("POST /counter/ = %d %q, %v", code, text, err)
		}
		if code, _, err := e2etest.Do(http.MethodPut, "http://"+address+"/kv/key", "value"); err != nil || code != http.StatusNoContent {
			t.Fatalf("PUT /kv/key = %d, %v", code, err)
		}
	}
	ask()
	others()
	want := 2
	for _, repaired := range []bool{false, true} {
		before := p.Status()
		p.Write("down", "")
		o, code := p.Reload("--binary", binary)
		if code != 1 || o.Verdict != client.Failed || o.FailedModule != "hello" || !strings.Contains(o.Error, "no database") || !strings.Contains(o.Error, "answers 503") {
			t.Fatalf("reload without a database = exit %d, %+v; want 1, failed, and who answers 503", code, o)
		}
		s := p.Idle() // a fresh process may have been asked for already
		if s.State != "degraded" || o.Serving != before.Generation {
			t.Fatalf("generation %d serves and is %s, want %d, degraded", o.Serving, s.State, before.Generation)
		}
		if code, text := ask(); code != http.StatusServiceUnavailable || strings.Contains(text, "no database") {
			t.Fatalf("GET /hello/ = %d %q, want 503, and not why: strangers read it", code, text)
		}
		if !slices.ContainsFunc(s.Modules, func(m client.Module) bool { return strings.Contains(m.Error, "no database") }) {
			t.Errorf("status does not say why: %+v", s.Modules)
		}
		others()
		if repaired {
			p.Wait("a fresh process of the same build", func() bool {
				s = p.Status()
				return s.PID != before.PID && s.State == "degraded"
			})
			if code, _ := ask(); code != http.StatusServiceUnavailable {
				t.Fatalf("GET /hello/ in the fresh process = %d, want 503", code)
			}
			others()
			// A reload while it is degraded keeps the state too.
			p.Wait("a reload of a degraded program", func() bool {
				o, _ := p.Reload("--binary", binary, "--wait-probation")
				return o.Verdict == client.Reloaded
			})
		}
		p.Check(os.Remove(p.Path("down")))
		p.Wait("it to heal by itself", func() bool { return p.Status().State == "serving" })
		if code, text := ask(); code != http.StatusOK || text != "request "+e2etest.Itoa(want) {
			t.Fatalf("GET /hello/ = %d %q, want request %d: the state it had", code, text, want)
		}
		want++
		others()
	}
	if got := p.Get("/counter/"); got != "6" {
		t.Errorf("the counter is %s, want 6", got)
	}
	if o, code := p.Reload("--binary", binary, "--wait-probation"); code != 0 {
		t.Errorf("the next reload: exit %d, %+v", code, o)
	}
}

// TestASaveRepairsAProgramThatCannotStart takes the database away, lets the
// program crash, and then saves code that needs none.
func TestASaveRepairsAProgramThatCannotStart(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	good := p.Read("modules/hello/hello.go")
	p.Write("modules/hello/hello.go", database)
	p.StartServing()
	before := p.Status()
	p.Write("down", "")
	p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.Wait("restarts to fail", func() bool { return strings.Count(p.Printed(), "no database") > 1 })
	p.Write("modules/hello/hello.go", good)
	p.Wait("the saved code to serve", func() bool {
		s, err := p.TryStatus()
		return err == nil && s.State == "serving" && s.Generation > before.Generation
	})
	if got := p.Get("/hello/"); got != "Hello, world" {
		t.Errorf("GET /hello/ = %q, want what was saved", got)
	}
	out, _, _ := p.Command("status")
	if !strings.Contains(out, "state lost: hello, counter") {
		t.Errorf("status does not tell of the crash:\n%s", out)
	}
	p.Edit("modules/hello/hello.go", "Hello, world", "Hello, moon")
	p.Wait("the next save", func() bool { return p.Get("/hello/") == "Hello, moon" })
}
