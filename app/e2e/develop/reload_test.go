//go:build unix

package develop_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/orchestrator/app/e2e/e2etest"
)

func TestTenSavesWithinASecond(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.StartServing()
	stop := make(chan struct{})
	var watching sync.WaitGroup
	var most atomic.Int64
	watching.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				most.Store(max(most.Load(), int64(builds(p))))
			}
		}
	})
	last := "Hello, world"
	tick := time.NewTicker(80 * time.Millisecond)
	defer tick.Stop()
	for i := range 10 {
		next := fmt.Sprintf("Hello, %d", i)
		p.Edit("modules/hello/hello.go", last, next)
		last = next
		<-tick.C
	}
	p.Wait("the last save to serve", func() bool { return p.Get("/hello/") == last })
	close(stop)
	watching.Wait()
	if got := most.Load(); got != 1 {
		t.Errorf("%d builds ran at a time, want 1", got)
	}
	if log := p.Printed(); strings.Contains(log, "failed") || strings.Contains(log, "rejected") {
		t.Errorf("a reload failed:\n%s", log)
	}
	p.Wait("temporary files and builds that nobody runs to be removed", func() bool {
		left, _ := filepath.Glob(p.Path(".orchestrator/tmp/*"))
		kept, _ := filepath.Glob(p.Path(".orchestrator/builds/*"))
		return len(left) == 0 && len(kept) == 1
	})
}

// builds counts the go build processes in the project, but not their children,
// which look like them until they call exec.
func builds(p *e2etest.Project) (n int) {
	parents := map[int]int{}
	for _, pid := range p.Processes() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.HasPrefix(string(line), "go\x00build\x00") || strings.Contains(string(line), "/go\x00build\x00") {
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			_, rest, _ := strings.Cut(string(stat), ") ")
			if f := strings.Fields(rest); len(f) > 1 {
				parents[pid] = e2etest.Atoi(f[1])
			}
		}
	}
	for _, parent := range parents {
		if _, ok := parents[parent]; !ok {
			n++
		}
	}
	return n
}

func TestSourcesDecide(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.Write(".gitignore", "modules/hello/generated.go\n")
	p.StartServing()

	t.Run("a file that git ignores", func(t *testing.T) {
		p.Write("modules/hello/generated.go", "package hello\n\nconst generated = \"from git's blind spot\"\n")
		p.Edit("modules/hello/hello.go", `"Hello, world"`, "generated")
		p.Wait("the generated text", func() bool { return p.Get("/hello/") == "from git's blind spot" })
		p.Edit("modules/hello/generated.go", "git's blind spot", "a file git ignores")
		p.Wait("the edited text", func() bool { return p.Get("/hello/") == "from a file git ignores" })
	})
	t.Run("an edit while the build runs", func(t *testing.T) {
		p.Write("modules/hello/more.go", "package hello\n") // a new file: go build
		p.Edit("modules/hello/generated.go", "a file git ignores", "the first edit")
		p.Wait("a build to run", func() bool { return builds(p) > 0 })
		p.Edit("modules/hello/generated.go", "the first edit", "the second edit")
		p.Wait("the second edit", func() bool { return p.Get("/hello/") == "from the second edit" })
		if strings.Contains(p.Printed(), "failed") {
			t.Errorf("a reload failed:\n%s", p.Printed())
		}
	})
	t.Run("an edit undone, a touch, a test, an editor's backup", func(t *testing.T) {
		before := p.Idle()
		p.Edit("modules/hello/generated.go", "the second edit", "an edit undone")
		p.Edit("modules/hello/generated.go", "an edit undone", "the second edit")
		now := time.Now()
		p.Check(os.Chtimes(p.Path("modules/hello/hello.go"), now, now))
		p.Write("modules/hello/hello_test.go", "package hello\n")
		p.Write("modules/hello/hello.go~", "nonsense")
		p.Write("modules/unused/unused.go", "nonsense")
		// After an edit of another module, all earlier changes have been seen.
		p.Edit("modules/counter/counter.go", "only GET and POST are supported", "only GET and POST are known")
		p.Wait("the edit of another module", func() bool { return p.Status().Generation > before.Generation })
		if s := p.Status(); s.Generation != before.Generation+1 || strings.Join(s.LastReload.Modules, " ") != "counter" {
			t.Errorf("generation %d, modules %v; want %d, counter alone", s.Generation, s.LastReload.Modules, before.Generation+1)
		}
	})
	t.Run("an editor that saves by rename, a new package in a new folder", func(t *testing.T) {
		p.Write("modules/hello/words/words.go", "package words\n\nconst Text = \"a new package\"\n")
		p.Write("elsewhere", strings.NewReplacer("const generated = \"from the second edit\"", "var generated = words.Text", "package hello\n", "package hello\n\nimport \"example.org/orchestrator/modules/hello/words\"\n").Replace(p.Read("modules/hello/generated.go")))
		p.Edit("modules/hello/hello.go", "const message", "var message")
		p.Check(os.Rename(p.Path("elsewhere"), p.Path("modules/hello/generated.go")))
		p.Wait("the new package", func() bool { return p.Get("/hello/") == "a new package" })
		p.Edit("modules/hello/words/words.go", "a new package", "a watched package")
		p.Wait("an edit of it", func() bool { return p.Get("/hello/") == "a watched package" })
	})
	t.Run("a configuration changes without a build", func(t *testing.T) {
		p.Edit("config/main.yaml", "  - name: hello\n", "  - name: hello\n    path: /greeting/\n")
		p.Wait("the new path", func() bool { return p.Get("/greeting/") == "a watched package" })
		if o := p.Idle().LastReload; o.StagesMS["build"] != 0 || strings.Join(o.Modules, " ") != "hello" {
			t.Errorf("last reload %+v, want no build and hello", o)
		}
		p.Edit("config/main.yaml", "path: /greeting/", "paht: /greeting/")
		p.Wait("the refusal", func() bool {
			return strings.Contains(p.Printed(), "main.yaml:") && strings.Contains(p.Printed(), `unknown key "paht" (did you mean "path"?)`)
		})
		if _, code := p.Reload(); code != 3 {
			t.Errorf("reload with a wrong configuration: exit %d, want 3", code)
		}
		if got := p.Get("/greeting/"); got != "a watched package" {
			t.Errorf("GET /greeting/ = %q: the old generation does not serve on", got)
		}
		p.Edit("config/main.yaml", "paht: /greeting/", "path: /hello/")
		p.Wait("the old path", func() bool { return p.Get("/hello/") == "a watched package" })
	})
	t.Run("an edit while the program was down", func(t *testing.T) {
		p.Check(p.Cmd.Process.Signal(e2etest.Sigterm))
		if code := p.Ended(); code != 0 {
			t.Errorf("run ended with %d, want 0", code)
		}
		p.Edit("modules/hello/words/words.go", "a watched package", "an edit in the dark")
		p.StartServing()
		if got := p.Get("/hello/"); got != "an edit in the dark" {
			t.Errorf("GET /hello/ = %q at the first answer, want the edit", got)
		}
	})
}
