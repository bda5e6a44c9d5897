//go:build unix

package develop_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

func TestABadCandidateChangesNothing(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	good := p.Read("modules/hello/hello.go")
	p.StartServing()
	url := p.URL("")
	if _, got, err := e2etest.Do(http.MethodPost, url+"/counter/", ""); err != nil || got != "1" {
		t.Fatalf("POST /counter/ = %q, %v", got, err)
	}
	if code, _, err := e2etest.Do(http.MethodPut, url+"/kv/key", "value"); err != nil || code != http.StatusNoContent {
		t.Fatalf("PUT /kv/key = %d, %v", code, err)
	}
	for _, tt := range []struct {
		name, source  string
		code          int
		stage, module string
		message       string
	}{
		{"does not compile", strings.Replace(good, `"Hello, world"`, `"Hello, world`, 1), 5, "build", "", "newline in string"},
		{"panics in a package init", e2etest.BrokenHello("", `func init() { panic("init goes wrong") }`, "", "", ""), 3, "start", "", "exit status 2"},
		{"panics in its factory", e2etest.BrokenHello("", "", `panic("factory goes wrong")`, "", ""), 3, "config", "hello", "factory goes wrong"},
		{"panics in Initialize", e2etest.BrokenHello("", "", "", `panic("initialize goes wrong")`, ""), 3, "initialize", "hello", "initialize goes wrong"},
		{"an error from Initialize", e2etest.BrokenHello("", "", "", `return fmt.Errorf("no database")`, ""), 3, "initialize", "hello", "no database"},
		{"an error from Healthy", e2etest.BrokenHello("", "", "", "", `func (h *Hello) Healthy(context.Context) error { return fmt.Errorf("not well") }`), 3, "healthy", "hello", "not well"},
		{"exits 0 in Initialize", e2etest.BrokenHello("\t\"os\"\n", "", "", `os.Exit(0)`, ""), 3, "initialize", "hello", "exited"},
		{"exits 1 in Initialize", e2etest.BrokenHello("\t\"os\"\n", "", "", `os.Exit(1)`, ""), 3, "initialize", "hello", "exit status 1"},
		{"exits 0 in a package init", e2etest.BrokenHello("\t\"os\"\n", "func init() { os.Exit(0) }", "", "", ""), 3, "start", "", "exited"},
		{"hangs in a package init", e2etest.BrokenHello("", "func init() { <-make(chan int) }", "", "", ""), 3, "start", "", ""},
		{"hangs in Initialize", e2etest.BrokenHello("", "", "", `select {}`, ""), 3, "initialize", "hello", "app.hook_timeout"},
		{"kills itself in Initialize", e2etest.BrokenHello("\t\"os\"\n\t\"syscall\"\n", "", "", `syscall.Kill(os.Getpid(), syscall.SIGKILL); select {}`, ""), 3, "initialize", "hello", "killed"},
		{"a wrong signature", e2etest.BrokenHello("", "", "", "", `func (h *Hello) Healthy() error { return nil }`), 3, "config", "hello", "method Healthy of *hello.Hello has the signature func() error, but the contract wants func(context.Context) error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := p.Status()
			stop := make(chan struct{})
			var load sync.WaitGroup
			var failed atomic.Value
			load.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if code, _, err := e2etest.Do(http.MethodGet, url+"/hello/", ""); err != nil || code != http.StatusOK {
						failed.Store(strings.TrimSpace(tt.name + ": " + http.StatusText(code) + " " + errorText(err)))
					}
				}
			})
			p.Write("modules/hello/hello.go", tt.source)
			o, code := p.Reload()
			close(stop)
			load.Wait()
			if f := failed.Load(); f != nil {
				t.Errorf("a request failed during the reload: %v", f)
			}
			if code != tt.code || string(o.Stage) != tt.stage || o.FailedModule != tt.module || !strings.Contains(o.Error, tt.message) {
				t.Errorf("reload = exit %d, stage %q, module %q, error %q; want exit %d, stage %q, module %q, error with %q", code, o.Stage, o.FailedModule, o.Error, tt.code, tt.stage, tt.module, tt.message)
			}
			after := p.Status()
			if after.PID != before.PID || after.Generation != before.Generation || after.State != "serving" {
				t.Errorf("after it generation %d, process %d, is %s; want generation %d, process %d, serving", after.Generation, after.PID, after.State, before.Generation, before.PID)
			}
			if got := p.Get("/counter/"); got != "1" {
				t.Errorf("the counter is %s, want 1", got)
			}
			if got := p.Get("/kv/key"); got != "value" {
				t.Errorf("kv has %q, want value", got)
			}
			p.Wait("module.reload_failed with its stage", func() bool {
				return failedEvent(p, o.Generation, tt.stage)
			})
		})
	}
	p.Write("modules/hello/hello.go", strings.Replace(good, "Hello, world", "Hello again", 1))
	p.Wait("the good save to serve", func() bool { return p.Get("/hello/") == "Hello again" })
	if got := p.Get("/counter/"); got != "1" {
		t.Errorf("after the good save the counter is %s, want 1", got)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// failedEvent reports whether module.reload_failed of hello was published for
// this generation and stage.
func failedEvent(p *e2etest.Project, generation int, stage string) bool {
	out, _, _ := p.Command("events", "--json")
	for _, line := range strings.Split(out, "\n") {
		var e client.Event
		var data struct {
			Name, Stage string
			Generation  int
		}
		if json.Unmarshal([]byte(line), &e) == nil && e.Topic == "module.reload_failed" && json.Unmarshal(e.Data, &data) == nil &&
			data.Name == "hello" && data.Generation == generation && data.Stage == stage {
			return true
		}
	}
	return false
}
