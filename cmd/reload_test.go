package cmd_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// binaryProject serves without hot reload and has two builds to reload to:
// one like the running one, and one whose hello does not start.
func binaryProject(t *testing.T) (p *project, good, bad string) {
	t.Helper()
	p = testProject(t)
	p.write("config/main.yaml", strings.Replace(standardConfig, "hot_reload: true", "hot_reload: false", 1))
	good = p.variant("good", map[string]string{"modules/hello/hello.go": strings.Replace(p.read("modules/hello/hello.go"), "Hello, world", "Hello, moon", 1)})
	bad = p.variant("bad", map[string]string{"modules/hello/hello.go": brokenHello("", "", "", `return fmt.Errorf("no database")`, "")})
	p.startServing()
	return p, good, bad
}

func TestStateSurvivesFiftyReloads(t *testing.T) {
	t.Parallel()
	p, good, _ := binaryProject(t)
	url := p.url("")
	if code, _, err := do(http.MethodPut, url+"/kv/key", "value"); err != nil || code != http.StatusNoContent {
		t.Fatalf("PUT /kv/key = %d, %v", code, err)
	}
	supervisor := p.status().SupervisorPID

	stop := make(chan struct{})
	var watching sync.WaitGroup
	var most atomic.Int64
	watching.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				most.Store(max(most.Load(), int64(holders(p, "kv.db"))))
			}
		}
	})
	for i := range 50 {
		if o, code := p.reload("--binary", good); code != 0 || o.Generation != i+2 {
			t.Fatalf("reload %d = exit %d, %+v", i, code, o)
		}
		if _, got, err := do(http.MethodPost, url+"/counter/", ""); err != nil || got != strconv.Itoa(i+1) {
			t.Fatalf("after reload %d the counter answers %q, %v; want %d", i, got, err, i+1)
		}
	}
	close(stop)
	watching.Wait()
	if got := p.get("/kv/key"); got != "value" {
		t.Errorf("kv has %q, want value", got)
	}
	if got := most.Load(); got != 1 {
		t.Errorf("kv's file was held by %d processes at a time, want 1", got)
	}
	if got := p.status(); got.SupervisorPID != supervisor || got.SupervisorPID != p.cmd.Process.Pid || got.Generation != 51 {
		t.Errorf("supervisor %d, generation %d; want %d, 51", got.SupervisorPID, got.Generation, supervisor)
	}
}

// holders counts the processes that have the project's file locked. The system
// tells of its locks a page at a time, so one that moves may be seen at both
// its places: only what stands there twice in a row counts.
func holders(p *project, name string) int {
	info, err := os.Stat(filepath.Join(p.dir, ".orchestrator", name))
	if err != nil {
		return 0
	}
	inode := fmt.Sprintf(":%d ", inodeOf(info))
	look := func() map[string]bool {
		pids := map[string]bool{}
		locks, _ := os.ReadFile("/proc/locks")
		for _, line := range strings.Split(string(locks), "\n") {
			if f := strings.Fields(line); strings.Contains(line, inode) && !strings.Contains(line, "->") && len(f) > 4 {
				pids[f[4]] = true
			}
		}
		return pids
	}
	first := look()
	if len(first) < 2 {
		return len(first)
	}
	n := 0
	for pid := range look() {
		if first[pid] {
			n++
		}
	}
	return n
}

// TestAConnectionPerRequestNeverFails reloads under clients that open a
// connection for each request; every fifth reload rolls back.
func TestAConnectionPerRequestNeverFails(t *testing.T) {
	t.Parallel()
	p, good, bad := binaryProject(t)
	url := p.url("")
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var sent, failures atomic.Int64
	var example atomic.Value
	for range 8 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				sent.Add(1)
				if code, text, err := do(http.MethodPost, url+"/counter/", ""); err != nil || code != http.StatusOK {
					failures.Add(1)
					example.Store(fmt.Sprint(code, text, err))
				}
			}
		})
	}
	for i := range 50 {
		binary, want := good, 0
		if i%5 == 4 {
			binary, want = bad, 3
		}
		if o, code := p.reload("--binary", binary); code != want {
			t.Errorf("reload %d = exit %d, %+v; want exit %d", i, code, o, want)
		}
	}
	close(stop)
	clients.Wait()
	if failures.Load() != 0 {
		t.Errorf("%d of %d requests failed, such as: %v", failures.Load(), sent.Load(), example.Load())
	}
	if got := p.get("/counter/"); got != strconv.FormatInt(sent.Load(), 10) {
		t.Errorf("the counter is %s after %d answered requests", got, sent.Load())
	}
	t.Logf("%d requests through 50 reloads", sent.Load())
}

// TestNothingIsLeftBehind looks at files, goroutines, processes and folders
// after a hundred reloads, good and failed.
func TestNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	p, good, bad := binaryProject(t)
	type resources struct{ workerFiles, supervisorFiles, goroutines, processes int }
	measure := func() resources {
		s := p.status()
		return resources{open(s.PID), open(s.SupervisorPID), s.Goroutines, len(p.processes())}
	}
	settle := func(want *resources) (r resources) { // a connection may be closing still
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			before := r
			if r = measure(); r.processes == 2 && r.goroutines > 0 && (want == nil && r == before || want != nil && r == *want) {
				return r
			}
		}
		if want == nil {
			t.Fatalf("it does not come to rest: %+v", r)
		}
		return r
	}
	reload := func(binary string, want int) {
		t.Helper()
		if o, code := p.reload("--binary", binary); code != want {
			t.Fatalf("reload = exit %d, %+v; want %d", code, o, want)
		}
	}
	reload(good, 0)
	first := settle(nil)
	for i := range 99 {
		if i%3 == 1 {
			reload(bad, 3)
		} else {
			reload(good, 0)
		}
	}
	if last := settle(&first); last != first {
		t.Errorf("after 100 reloads %+v, after the first %+v", last, first)
	}
	if left, _ := filepath.Glob(p.path(".orchestrator/handoff-*")); len(left) > 0 {
		t.Errorf("handoff sockets were left: %v", left)
	}
}

func TestTenSavesWithinASecond(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.startServing()
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
		p.edit("modules/hello/hello.go", last, next)
		last = next
		<-tick.C
	}
	p.wait("the last save to serve", func() bool { return p.get("/hello/") == last })
	close(stop)
	watching.Wait()
	if got := most.Load(); got != 1 {
		t.Errorf("%d builds ran at a time, want 1", got)
	}
	if log := p.printed(); strings.Contains(log, "failed") || strings.Contains(log, "rejected") {
		t.Errorf("a reload failed:\n%s", log)
	}
	p.wait("temporary files and builds that nobody runs to be removed", func() bool {
		left, _ := filepath.Glob(p.path(".orchestrator/tmp/*"))
		kept, _ := filepath.Glob(p.path(".orchestrator/builds/*"))
		return len(left) == 0 && len(kept) == 1
	})
}

// builds counts the go build processes in the project, but not their children,
// which look like them until they have become what they are started as.
func builds(p *project) (n int) {
	parents := map[int]int{}
	for _, pid := range p.processes() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.HasPrefix(string(line), "go\x00build\x00") || strings.Contains(string(line), "/go\x00build\x00") {
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			_, rest, _ := strings.Cut(string(stat), ") ")
			if f := strings.Fields(rest); len(f) > 1 {
				parents[pid] = atoi(f[1])
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
	p := testProject(t)
	p.write(".gitignore", "modules/hello/generated.go\n")
	p.startServing()

	t.Run("a file that git ignores", func(t *testing.T) {
		p.write("modules/hello/generated.go", "package hello\n\nconst generated = \"from git's blind spot\"\n")
		p.edit("modules/hello/hello.go", `"Hello, world"`, "generated")
		p.wait("the generated text", func() bool { return p.get("/hello/") == "from git's blind spot" })
		p.edit("modules/hello/generated.go", "git's blind spot", "a file git ignores")
		p.wait("the edited text", func() bool { return p.get("/hello/") == "from a file git ignores" })
	})
	t.Run("an edit while the build runs", func(t *testing.T) {
		p.write("modules/hello/more.go", "package hello\n") // a new file: go build
		p.edit("modules/hello/generated.go", "a file git ignores", "the first edit")
		p.wait("a build to run", func() bool { return builds(p) > 0 })
		p.edit("modules/hello/generated.go", "the first edit", "the second edit")
		p.wait("the second edit", func() bool { return p.get("/hello/") == "from the second edit" })
		if strings.Contains(p.printed(), "failed") {
			t.Errorf("a reload failed:\n%s", p.printed())
		}
	})
	t.Run("an edit undone, a touch, a test, an editor's backup", func(t *testing.T) {
		before := p.settled()
		p.edit("modules/hello/generated.go", "the second edit", "an edit undone")
		p.edit("modules/hello/generated.go", "an edit undone", "the second edit")
		now := time.Now()
		p.check(os.Chtimes(p.path("modules/hello/hello.go"), now, now))
		p.write("modules/hello/hello_test.go", "package hello\n")
		p.write("modules/hello/hello.go~", "nonsense")
		p.write("modules/unused/unused.go", "nonsense")
		// An edit of another module shows that everything before was looked at.
		p.edit("modules/counter/counter.go", "only GET and POST are understood", "only GET and POST are known")
		p.wait("the edit of another module", func() bool { return p.status().Generation > before.Generation })
		if s := p.status(); s.Generation != before.Generation+1 || strings.Join(s.LastReload.Modules, " ") != "counter" {
			t.Errorf("generation %d, modules %v; want %d, counter alone", s.Generation, s.LastReload.Modules, before.Generation+1)
		}
	})
	t.Run("an editor that saves by rename, a new package in a new folder", func(t *testing.T) {
		p.write("modules/hello/words/words.go", "package words\n\nconst Text = \"a new package\"\n")
		p.write("elsewhere", strings.NewReplacer("const generated = \"from the second edit\"", "var generated = words.Text", "package hello\n", "package hello\n\nimport \"orchestrator/modules/hello/words\"\n").Replace(p.read("modules/hello/generated.go")))
		p.edit("modules/hello/hello.go", "const message", "var message")
		p.check(os.Rename(p.path("elsewhere"), p.path("modules/hello/generated.go")))
		p.wait("the new package", func() bool { return p.get("/hello/") == "a new package" })
		p.edit("modules/hello/words/words.go", "a new package", "a watched package")
		p.wait("an edit of it", func() bool { return p.get("/hello/") == "a watched package" })
	})
	t.Run("a configuration changes without a build", func(t *testing.T) {
		p.edit("config/main.yaml", "  - name: hello\n", "  - name: hello\n    path: /greeting/\n")
		p.wait("the new path", func() bool { return p.get("/greeting/") == "a watched package" })
		if o := p.settled().LastReload; o.StagesMS["build"] != 0 || strings.Join(o.Modules, " ") != "hello" {
			t.Errorf("last reload %+v, want no build and hello", o)
		}
		p.edit("config/main.yaml", "path: /greeting/", "paht: /greeting/")
		p.wait("the refusal", func() bool {
			return strings.Contains(p.printed(), "main.yaml:") && strings.Contains(p.printed(), `unknown key "paht" (did you mean "path"?)`)
		})
		if _, code := p.reload(); code != 3 {
			t.Errorf("reload with a wrong configuration: exit %d, want 3", code)
		}
		if got := p.get("/greeting/"); got != "a watched package" {
			t.Errorf("GET /greeting/ = %q: the old generation does not serve on", got)
		}
		p.edit("config/main.yaml", "paht: /greeting/", "path: /hello/")
		p.wait("the old path", func() bool { return p.get("/hello/") == "a watched package" })
	})
	t.Run("an edit while the program was down", func(t *testing.T) {
		p.check(p.cmd.Process.Signal(sigterm))
		if code := p.ended(); code != 0 {
			t.Errorf("run ended with %d, want 0", code)
		}
		p.edit("modules/hello/words/words.go", "a watched package", "an edit in the dark")
		p.startServing()
		if got := p.get("/hello/"); got != "an edit in the dark" {
			t.Errorf("GET /hello/ = %q at the first answer, want the edit", got)
		}
	})
}
