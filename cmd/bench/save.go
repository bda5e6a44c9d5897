//go:build unix

package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"example.org/orchestrator/app/e2e/e2etest"
)

// peers are the tools that developers use today, as modules to install.
var peers = map[string]string{
	"air":           "github.com/air-verse/air@v1.67.4",
	"wgo":           "github.com/bokwoon95/wgo@v0.5.11",
	"reflex":        "github.com/cespare/reflex@v0.3.1",
	"CompileDaemon": "github.com/githubnemo/CompileDaemon@v1.4.0",
}

// contender is one way to get from a save to the running code.
type contender struct {
	name   string
	start  func(p *e2etest.Project) []string // returns the command to leave running; nil for none
	once   func(p *e2etest.Project) error    // is timed after an edit if nothing is left running
	losses bool                              // count lost requests meanwhile

	prepare func(p *e2etest.Project) // changes the copy before its first build; nil for no change
	p       *e2etest.Project
	address string
	lost    *lossCounter
	took    []float64 // milliseconds
}

const stripped = `-ldflags=-s -w`

// contenders returns the orchestrator, the lower bound of compiler and linker,
// and the peers, with their defaults and tuned as well as possible.
func contenders() []*contender {
	build := func(flags ...string) func(p *e2etest.Project) error {
		return func(p *e2etest.Project) error {
			return runIn(p, append(append([]string{"go", "build", "-o", "bin/app"}, flags...), "./cmd/orchestrator")...)
		}
	}
	peer := func(name string, args ...string) func(p *e2etest.Project) []string {
		return func(*e2etest.Project) []string { return append([]string{filepath.Join(toolsDir, name)}, args...) }
	}
	air := func(delay string, flags string) func(p *e2etest.Project) []string {
		return func(p *e2etest.Project) []string {
			p.Write("air.toml", fmt.Sprintf(`[build]
cmd = "go build %s -o bin/app ./cmd/orchestrator"
full_bin = "bin/app run"
%s
exclude_dir = ["bin", "tmp", ".orchestrator", "docs"]
send_interrupt = true
`, flags, delay))
			return []string{filepath.Join(toolsDir, "air"), "-c", "air.toml"}
		}
	}
	return []*contender{
		{name: "orchestrator", losses: true, start: func(p *e2etest.Project) []string { return []string{"bin/orchestrator", "run"} }},
		{name: "compile + link alone", once: compileAndLink},
		{name: "go build, our flags", once: build(stripped, "-buildvcs=false")},
		{name: "go build, default flags", once: build()},
		{name: "wgo, tuned", losses: true, start: peer("wgo", "-debounce", "1ms", "-file", `\.go$`, "go", "build", stripped, "-o", "bin/app", "./cmd/orchestrator", "::", "bin/app", "run")},
		{name: "wgo", losses: true, start: peer("wgo", "run", "./cmd/orchestrator", "run")},
		{name: "reflex, tuned", losses: true, start: peer("reflex", "-r", `^modules/.*\.go$`, "-s", "--", "sh", "-c", "go build '"+stripped+"' -buildvcs=false -o bin/app ./cmd/orchestrator && exec bin/app run")},
		{name: "reflex", losses: true, start: peer("reflex", "-r", `\.go$`, "-s", "--", "sh", "-c", "go build -o bin/app ./cmd/orchestrator && exec bin/app run")},
		{name: "air, tuned", losses: true, start: air("delay = 1\nkill_delay = \"0s\"", `-ldflags='-s -w'`)},
		{name: "air", losses: true, start: air("", "")},
		{name: "CompileDaemon, tuned", losses: true, start: peer("CompileDaemon", "-build=go build -ldflags=-s -buildvcs=false -o bin/app ./cmd/orchestrator", "-command=bin/app run", "-graceful-kill=true", "-exclude-dir=.orchestrator", "-exclude-dir=bin", "-log-prefix=false")},
		{name: "CompileDaemon", losses: true, start: peer("CompileDaemon", "-build=go build -o bin/app ./cmd/orchestrator", "-command=bin/app run", "-graceful-kill=true")},
	}
}

var toolsDir string

// runIn runs a command in the project.
func runIn(p *e2etest.Project, args ...string) error {
	c := exec.Command(args[0], args[1:]...)
	c.Dir, c.Env = p.Dir, os.Environ()
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", args, err, out)
	}
	return nil
}

// compileAndLink runs only the compiler and linker commands that go build ran for
// an edit of the same file.
func compileAndLink(p *e2etest.Project) error { return runIn(p, "sh", "-e", "floor.sh") }

// writeFloor records these commands in floor.sh.
func writeFloor(p *e2etest.Project) {
	c := exec.Command("go", "build", "-x", "-work", stripped, "-buildvcs=false", "-o", "bin/app", "./cmd/orchestrator")
	c.Dir, c.Env = p.Dir, os.Environ()
	out, err := c.CombinedOutput()
	p.Check(err)
	work := regexp.MustCompile(`(?m)^WORK=(.*)$`).FindSubmatch(out)
	commands := regexp.MustCompile(`(?m)^.*/tool/[^/ ]+/(?:compile|link) .*$`).FindAll(out, -1)
	if work == nil || len(commands) < 2 {
		p.T.Fatalf("go build -x has shown no compiler and linker:\n%s", out)
	}
	p.Write("floor.sh", fmt.Sprintf("WORK=%s\n%s\n", work[1], bytes.Join(commands, []byte("\n"))))
}

// lossCounter sends a request every few milliseconds, each on its own connection,
// and counts the requests that are not answered.
type lossCounter struct {
	stop         chan struct{}
	done         sync.WaitGroup
	sent, failed atomic.Int64
}

func countLosses(address string) *lossCounter {
	l := &lossCounter{stop: make(chan struct{})}
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	l.done.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			l.sent.Add(1)
			resp, err := c.Get("http://" + address + "/hello/")
			if err != nil || resp.StatusCode != http.StatusOK {
				l.failed.Add(1)
			}
			if err == nil {
				resp.Body.Close()
			}
		}
	})
	return l
}

func (l *lossCounter) end() {
	close(l.stop)
	l.done.Wait()
}

// answers returns the answer to GET /hello/, "" for none.
func answers(address string) string {
	c := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + address + "/hello/")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	b.ReadFrom(resp.Body)
	return strings.TrimSpace(b.String())
}

// begin starts the command to leave running.
func (c *contender) begin(t *measurement) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		t.Fatal(err)
	}
	c.p = e2etest.Make(t, dir)
	if c.prepare != nil {
		c.prepare(c.p)
	}
	c.address = c.p.ReserveAddress()
	hot := fmt.Sprint(c.name == "orchestrator")
	c.p.Write("config/main.yaml", "app:\n  hot_reload: "+hot+"\n  listen: "+c.address+"\nmodules:\n  - name: hello\n  - name: counter\n  - name: kv\n    config: {path: .orchestrator/kv.db}\n")
	if c.start == nil {
		c.p.Write("modules/hello/hello.go", e2etest.Says(c.p, "warm"))
		c.p.Check(runIn(c.p, "go", "build", "-o", "bin/app", "./cmd/orchestrator"))
		c.p.Write("modules/hello/hello.go", e2etest.Says(c.p, "up"))
		writeFloor(c.p)
		t.Cleanup(func() { os.RemoveAll(dir) })
		return
	}
	args := c.start(c.p)
	log, err := os.Create(c.p.Log)
	c.p.Check(err)
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	if !filepath.IsAbs(args[0]) {
		cmd.Path = c.p.Path(args[0])
	}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = c.p.Dir, os.Environ(), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.p.Check(cmd.Start())
	c.p.Began(cmd)
	t.Cleanup(func() {
		c.p.CleanUp()
		os.RemoveAll(dir)
	})
	for end := time.Now().Add(time.Minute); answers(c.address) == ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not serve:\n%s", c.name, c.p.Printed())
		}
	}
}

// edit saves a new message and times how long it takes to be served.
func (c *contender) edit(t *measurement, n int) {
	text := fmt.Sprintf("edit %d", n)
	source := e2etest.Says(c.p, text)
	if c.losses {
		if c.lost == nil {
			c.lost = &lossCounter{}
		}
		l := countLosses(c.address)
		defer func() {
			l.end()
			c.lost.sent.Add(l.sent.Load())
			c.lost.failed.Add(l.failed.Load())
		}()
	}
	began := time.Now()
	c.p.Write("modules/hello/hello.go", source)
	if c.once != nil {
		c.p.Check(c.once(c.p))
	} else {
		for answers(c.address) != text {
			if time.Since(began) > time.Minute {
				t.Fatalf("%s does not serve edit %d:\n%s", c.name, n, c.p.Printed())
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	c.took = append(c.took, float64(time.Since(began).Microseconds())/1000)
}

// quantile returns the q-quantile of a list that is not empty.
func quantile(list []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// ratios returns a/b for each turn.
func ratios(a, b []float64) []float64 {
	list := make([]float64, len(a))
	for i := range a {
		list[i] = a[i] / b[i]
	}
	return list
}

// spread formats the median and the range of the middle 80 %.
func spread(format string, list []float64) string {
	return fmt.Sprintf(format+" ("+format+"–"+format+")", quantile(list, 0.5), quantile(list, 0.1), quantile(list, 0.9))
}

// race times edits with all contenders, which take turns, and returns the table.
// The first two edits do not count.
func race(t *measurement, all []*contender, edits int) string {
	for _, c := range all {
		c.begin(t)
	}
	for n := range edits + 2 {
		for _, c := range all {
			c.edit(t, n)
			time.Sleep(300 * time.Millisecond) // for what each still does afterwards
		}
		if n == 1 {
			for _, c := range all {
				c.took = nil
			}
		}
	}
	report := &strings.Builder{}
	fmt.Fprintf(report, "| | ms | × compile + link | × go build | requests lost |\n|---|---|---|---|---|\n")
	for _, c := range all {
		lost := ""
		if c.losses {
			lost = fmt.Sprintf("%d of %d", c.lost.failed.Load(), c.lost.sent.Load())
		}
		fmt.Fprintf(report, "| %s | %s | %s | %s | %s |\n", c.name, spread("%.0f", c.took), spread("%.2f", ratios(c.took, all[1].took)), spread("%.2f", ratios(c.took, all[3].took)), lost)
	}
	return report.String()
}

// heavyDependencies measures the same as saveToServing, without the peers, for a
// program that imports all standard modules of Caddy.
func heavyDependencies(t *measurement, edits int) {
	all := contenders()[:4]
	for _, c := range all {
		c.prepare = func(p *e2etest.Project) {
			p.Write("modules/hello/heavy.go", "package hello\n\nimport _ \"github.com/caddyserver/caddy/v2/modules/standard\"\n")
			p.Write("go.mod", p.Read("go.mod")+"\nrequire github.com/caddyserver/caddy/v2 v2.10.2\n")
			p.Check(runIn(p, "go", "mod", "tidy", "-e"))
			p.Check(runIn(p, "go", "build", "-buildvcs=false", stripped, "-o", "bin/orchestrator", "./cmd/orchestrator"))
		}
	}
	table := race(t, all, edits)
	t.Logf("%d edits each\n%s", edits, table)
	writeSection(t, "heavy", turns(edits), table)
}

// saveToServing measures how long edits of one file take with each contender.
func saveToServing(t *measurement, edits int) {
	toolsDir = t.TempDir()
	for name, at := range peers {
		p := &e2etest.Project{T: t, Dir: t.TempDir()}
		path, version, _ := strings.Cut(at, "@")
		p.Write("go.mod", fmt.Sprintf("module tools\n\ngo 1.26\n\nrequire %s %s\n", path, version))
		p.Check(runIn(p, "go", "build", "-mod=mod", "-o", filepath.Join(toolsDir, name), path))
	}
	all := contenders()
	table := race(t, all, edits)
	t.Logf("%d edits each\n%s", edits, table)
	writeSection(t, "save to serving", turns(edits), table+"\n![from save to serving](save-to-serving.svg)\n")
	if err := os.WriteFile(filepath.Join(e2etest.Repository(), "docs/save-to-serving.svg"), []byte(plot(all)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func turns(edits int) string { return fmt.Sprintf("%d edits each, which took turns", edits) }

// writeSection writes a table to its section in docs.
func writeSection(t *measurement, name, how, table string) {
	const end = "<!-- end -->"
	file := filepath.Join(e2etest.Repository(), "docs/BENCHMARKS.md")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	begin := "<!-- " + name + " -->\n"
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", file)
	}
	cpus, _ := exec.Command("nproc").Output()
	section := fmt.Sprintf("\nMeasured on %s with %s cores, %s.\n\n%s\n", time.Now().Format(time.DateOnly), strings.TrimSpace(string(cpus)), how, table)
	if err := os.WriteFile(file, []byte(head+begin+section+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// plot draws a bar for each contender, with its spread.
func plot(all []*contender) string {
	const row, left, width = 28, 190, 560
	most := 0.0
	for _, c := range all {
		most = max(most, quantile(c.took, 0.9))
	}
	x := func(ms float64) float64 { return left + ms/most*width }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", left+width+90, row*len(all)+40)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/><text x="10" y="20" font-weight="bold">from save to serving, ms: median, 10 %% to 90 %%</text>`+"\n")
	for i, c := range all {
		y := 34 + row*i
		m, fill := quantile(c.took, 0.5), "#9aa7b4"
		if i == 0 {
			fill = "#2a7de1"
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="18" fill="%s"/>`, left-8, y+14, c.name, left, y, x(m)-left, fill)
		fmt.Fprintf(&b, `<path d="M%.1f %dH%.1f" stroke="black"/><text x="%.1f" y="%d">%.0f</text>`+"\n", x(quantile(c.took, 0.1)), y+9, x(quantile(c.took, 0.9)), x(max(m, quantile(c.took, 0.9)))+6, y+14, m)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// saveToFailure measures how long it takes to report a mistake.
func saveToFailure(t *measurement, edits int) {
	all := contenders()
	ours, gobuild := all[0], all[2]
	ours.begin(t)
	gobuild.begin(t)
	good := ours.p.Read("modules/hello/hello.go")
	time.Sleep(3 * time.Second) // it learns the packages
	table := "| mistake | orchestrator, ms | go build, our flags, ms | ratio |\n|---|---|---|---|\n"
	for _, mistake := range []struct{ name, text, message string }{
		{"syntax", "\nfunc (%d\n", "syntax error"},
		{"type", "\nvar mistake int = \"%d\"\n", "cannot use"},
	} {
		var us, them []float64
		for n := range edits {
			text := good + fmt.Sprintf(mistake.text, n)
			told := strings.Count(ours.p.Printed(), "build failed")
			began := time.Now()
			ours.p.Write("modules/hello/hello.go", text)
			for strings.Count(ours.p.Printed(), "build failed") == told {
				time.Sleep(time.Millisecond)
				if time.Since(began) > 20*time.Second {
					t.Fatalf("no failure was told:\n%s", ours.p.Printed())
				}
			}
			us = append(us, float64(time.Since(began).Microseconds())/1000)
			if !strings.Contains(ours.p.Printed(), mistake.message) {
				t.Fatalf("the terminal does not say %q", mistake.message)
			}
			time.Sleep(300 * time.Millisecond)

			gobuild.p.Write("modules/hello/hello.go", text)
			began = time.Now()
			if err := gobuild.once(gobuild.p); err == nil || !strings.Contains(err.Error(), mistake.message) {
				t.Fatalf("go build = %v", err)
			}
			them = append(them, float64(time.Since(began).Microseconds())/1000)
			time.Sleep(300 * time.Millisecond)
		}
		table += fmt.Sprintf("| %s | %s | %s | %s |\n", mistake.name, spread("%.0f", us), spread("%.0f", them), spread("%.2f", ratios(us, them)))
	}
	t.Logf("%s", table)
	writeSection(t, "failure", turns(edits), table)
}
