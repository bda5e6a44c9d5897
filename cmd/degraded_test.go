package cmd_test

import (
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"orchestrator/app/control"
)

// database is a hello module that cannot start without its database, which is
// there as long as the file "down" is not. It counts its requests.
var database = strings.NewReplacer(
	"return &Hello{}", "return &Hello{}",
	"fmt.Fprintln(w, message)", `h.state.N++; fmt.Fprintln(w, "request", h.state.N)`,
	"type Hello struct{}", "type Hello struct{ state struct{ N int } }",
).Replace(brokenHello("\t\"os\"\n", "", "", `if _, err := os.Stat("down"); err == nil { return fmt.Errorf("no database") }`,
	`func (h *Hello) State() modules.State { return modules.State{Value: &h.state} }`))

// TestARollbackThatFails takes a module's database away before a reload, so
// that it starts neither in the new process nor again in the old one.
func TestARollbackThatFails(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.write("config/main.yaml", strings.Replace(standardConfig, "hot_reload: true", "hot_reload: false\n  probation: 200ms", 1))
	binary := p.variant("database", map[string]string{"modules/hello/hello.go": database})
	p.check(os.Rename(binary, p.path("bin/orchestrator")))
	binary = p.path("bin/orchestrator")
	p.startServing()
	address := p.status().Listen[0]
	ask := func() (int, string) {
		code, text, err := do(http.MethodGet, "http://"+address+"/hello/", "")
		p.check(err)
		return code, text
	}
	others := func() {
		t.Helper()
		if code, text, err := do(http.MethodPost, "http://"+address+"/counter/", ""); err != nil || code != http.StatusOK {
			t.Fatalf("POST /counter/ = %d %q, %v", code, text, err)
		}
		if code, _, err := do(http.MethodPut, "http://"+address+"/kv/key", "value"); err != nil || code != http.StatusNoContent {
			t.Fatalf("PUT /kv/key = %d, %v", code, err)
		}
	}
	ask()
	others()
	want := 2
	for _, repaired := range []bool{false, true} {
		before := p.status()
		p.write("down", "")
		o, code := p.reload("--binary", binary)
		if code != 1 || o.Outcome != control.Failed || o.FailedModule != "hello" || !strings.Contains(o.Error, "no database") || !strings.Contains(o.Error, "answers 503") {
			t.Fatalf("reload without a database = exit %d, %+v; want 1, failed, and who answers 503", code, o)
		}
		s := p.settled() // a fresh process may have been asked for already
		if s.State != "degraded" || o.Serving != before.Generation {
			t.Fatalf("generation %d serves and is %s, want %d, degraded", o.Serving, s.State, before.Generation)
		}
		if code, text := ask(); code != http.StatusServiceUnavailable || !strings.Contains(text, "no database") {
			t.Fatalf("GET /hello/ = %d %q, want 503 and why", code, text)
		}
		others()
		if repaired {
			p.wait("a fresh process of the same build", func() bool {
				s = p.status()
				return s.PID != before.PID && s.State == "degraded"
			})
			if code, _ := ask(); code != http.StatusServiceUnavailable {
				t.Fatalf("GET /hello/ in the fresh process = %d, want 503", code)
			}
			others()
			// A reload while it is degraded keeps the state as well.
			p.wait("a reload of a degraded program", func() bool {
				o, _ := p.reload("--binary", binary, "--wait-probation")
				return o.Outcome == control.Reloaded
			})
		}
		p.check(os.Remove(p.path("down")))
		p.wait("it to heal by itself", func() bool { return p.status().State == "serving" })
		if code, text := ask(); code != http.StatusOK || text != "request "+itoa(want) {
			t.Fatalf("GET /hello/ = %d %q, want request %d: the state it had", code, text, want)
		}
		want++
		others()
	}
	if got := p.get("/counter/"); got != "6" {
		t.Errorf("the counter is %s, want 6", got)
	}
	if o, code := p.reload("--binary", binary, "--wait-probation"); code != 0 {
		t.Errorf("the next reload: exit %d, %+v", code, o)
	}
}

// TestASaveRepairsAProgramThatCannotStart takes the database away, lets the
// program crash, and then saves code that needs none.
func TestASaveRepairsAProgramThatCannotStart(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	good := p.read("modules/hello/hello.go")
	p.write("modules/hello/hello.go", database)
	p.startServing()
	before := p.status()
	p.write("down", "")
	p.check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.wait("restarts to fail", func() bool { return strings.Count(p.printed(), "no database") > 1 })
	p.write("modules/hello/hello.go", good)
	p.wait("the saved code to serve", func() bool {
		s, err := p.tryStatus()
		return err == nil && s.State == "serving" && s.Generation > before.Generation
	})
	if got := p.get("/hello/"); got != "Hello, world" {
		t.Errorf("GET /hello/ = %q, want what was saved", got)
	}
	out, _, _ := p.command("status")
	if !strings.Contains(out, "state lost: hello, counter") {
		t.Errorf("status does not tell of the crash:\n%s", out)
	}
	p.edit("modules/hello/hello.go", "Hello, world", "Hello, moon")
	p.wait("the next save", func() bool { return p.get("/hello/") == "Hello, moon" })
}
