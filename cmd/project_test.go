package cmd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"orchestrator/app/control"
)

// patience bounds every wait for a condition; it is long because machines are
// slow, and never slept through.
const patience = time.Minute

// reporter is what a project needs of *testing.T or of a script.
type reporter interface {
	Fatalf(format string, args ...any)
}

// project is a copy of this repository with a program built from it, in a
// folder of its own.
type project struct {
	t    reporter
	dir  string
	cmd  *exec.Cmd
	log  string
	exit chan error
	done bool

	reserved io.Closer // keeps other tests off its address
}

// environ has one build cache for all copies. Appending to it copies it.
// Programs with the race detector in them would wait for a second at their end.
var environ = slices.Clip(append(os.Environ(), "GOFLAGS=-trimpath", "GORACE=atexit_sleep_ms=0"))

// shipped builds the program once.
var shipped = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "orch-bin")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "orchestrator")
	c := exec.Command("go", "build", "-buildvcs=false", "-ldflags=-s -w", "-o", out, "./cmd/orchestrator")
	c.Dir, c.Env = "..", environ
	if msg, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, msg)
	}
	return out, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := shipped(); err == nil {
		os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

const standardConfig = `app:
  hot_reload: true
  listen: 127.0.0.1:0
  hook_timeout: 3s
modules:
  - name: hello
  - name: counter
  - name: kv
    config: {path: .orchestrator/kv.db}
`

// newProject copies the repository to dir and puts the program there.
func newProject(t reporter, dir string) *project {
	p := &project{t: t, dir: dir, log: filepath.Join(dir, "run.log")}
	p.copySources()
	bin, err := shipped()
	p.check(err)
	p.check(os.MkdirAll(filepath.Join(dir, "bin"), 0o755))
	// Copied by another process: a descriptor open for writing here would be
	// inherited by whatever another test starts just now, and make the file
	// busy for as long as that takes to exec.
	p.check(exec.Command("cp", bin, filepath.Join(dir, "bin", "orchestrator")).Run())
	p.write("config/main.yaml", standardConfig)
	return p
}

// copySources copies all that is needed to build.
func (p *project) copySources() {
	dir := p.dir
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel("..", path)
		switch {
		case e.IsDir() && (strings.HasPrefix(e.Name(), ".") && rel != "." || e.Name() == "bin" || e.Name() == "testdata" || rel == "tmp"):
			return filepath.SkipDir
		case e.IsDir():
			return os.MkdirAll(filepath.Join(dir, rel), 0o755)
		case strings.HasSuffix(rel, "_test.go"):
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, rel), data, 0o644)
	})
	p.check(err)
}

// testProject is a project that a test owns.
func testProject(t *testing.T) *project {
	t.Helper()
	dir, err := os.MkdirTemp("", "orch")
	if err != nil {
		t.Fatal(err)
	}
	p := newProject(t, dir)
	t.Cleanup(func() {
		p.cleanUp()
		if t.Failed() {
			t.Logf("the program printed:\n%s", p.printed())
		}
		os.RemoveAll(dir)
	})
	return p
}

func (p *project) check(err error) {
	if err != nil {
		p.t.Fatalf("%v", err)
	}
}

func (p *project) path(name string) string { return filepath.Join(p.dir, name) }

func (p *project) write(name, text string) {
	p.check(os.MkdirAll(filepath.Dir(p.path(name)), 0o755))
	p.check(os.WriteFile(p.path(name), []byte(text), 0o644))
}

func (p *project) read(name string) string {
	data, err := os.ReadFile(p.path(name))
	p.check(err)
	return string(data)
}

// edit replaces old, which must be there, as an editor does: into the file.
func (p *project) edit(name, old, new string) {
	text := p.read(name)
	if !strings.Contains(text, old) {
		p.t.Fatalf("%s does not contain %q", name, old)
	}
	p.write(name, strings.Replace(text, old, new, 1))
}

// start begins `orchestrator run`.
func (p *project) start() {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	p.check(err)
	defer log.Close()
	cmd := exec.Command("bin/orchestrator", "run")
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.dir, environ, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.check(cmd.Start())
	p.began(cmd)
}

func (p *project) began(cmd *exec.Cmd) {
	exit := make(chan error, 1)
	p.cmd, p.exit, p.done = cmd, exit, false
	go func() { exit <- cmd.Wait() }()
}

// startServing begins `orchestrator run` and waits until it serves.
func (p *project) startServing() {
	p.start()
	p.wait("the program to serve", func() bool {
		select {
		case err := <-p.exit:
			p.done = true
			p.t.Fatalf("run ended: %v\n%s", err, p.printed())
		default:
		}
		s, err := p.tryStatus()
		return err == nil && s.State == "serving"
	})
}

// ended waits for run to end and returns its exit code.
func (p *project) ended() int {
	select {
	case err := <-p.exit:
		p.done = true
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		return 0
	case <-time.After(patience):
		p.t.Fatalf("run does not end\n%s", p.printed())
		return -1
	}
}

func (p *project) printed() string {
	if p.log == "/dev/full" { // endless when read
		return ""
	}
	data, _ := os.ReadFile(p.log)
	return string(data)
}

// processes are those whose working directory is the project's.
func (p *project) processes() (pids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		dir, err := os.Readlink(link)
		dir = strings.TrimSuffix(dir, " (deleted)")
		if err == nil && (dir == p.dir || strings.HasPrefix(dir, p.dir+"/")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(link)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func (p *project) cleanUp() {
	if p.reserved != nil {
		defer p.reserved.Close()
	}
	defer func() {
		if strings.Contains(p.printed(), "WARNING: DATA RACE") {
			p.t.Fatalf("the program has a data race:\n%s", p.printed())
		}
	}()
	if p.cmd != nil && !p.done {
		p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.exit:
		case <-time.After(10 * time.Second):
		}
	}
	for range 100 {
		pids := p.processes()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// wait polls until ok, or fails the test.
func (p *project) wait(what string, ok func() bool) { p.waitFor(patience, what, ok) }

// waitFor is wait with another deadline.
func (p *project) waitFor(longest time.Duration, what string, ok func() bool) {
	for end := time.Now().Add(longest); !ok(); {
		if time.Now().After(end) {
			p.t.Fatalf("waited %v for %s; the program printed:\n%s", longest, what, p.printed())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// command runs the command line and returns what it printed and its exit code.
func (p *project) command(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	cmd := exec.Command("bin/orchestrator", args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.dir, environ, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.check(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func (p *project) tryStatus() (*control.Status, error) {
	out, errs, code := p.command("status", "--json")
	if code != 0 {
		return nil, errors.New(errs)
	}
	s := new(control.Status)
	return s, json.Unmarshal([]byte(out), s)
}

func (p *project) status() *control.Status {
	s, err := p.tryStatus()
	p.check(err)
	return s
}

// settled is the status when no reload is under way: the first answers of new
// code come a moment before the supervisor hears that it serves.
func (p *project) settled() (s *control.Status) {
	p.wait("the outcome", func() bool { s = p.status(); return s.State != "reloading" })
	return s
}

// reload runs `reload --json` with args. Its time includes builds.
func (p *project) reload(args ...string) (*control.Outcome, int) {
	out, errs, code := p.command(append([]string{"reload", "--json", "--timeout=60s"}, args...)...)
	o := new(control.Outcome)
	if err := json.Unmarshal([]byte(out), o); err != nil {
		p.t.Fatalf("reload --json printed %q, %q: %v", out, errs, err)
	}
	return o, code
}

func (p *project) url(path string) string { return "http://" + p.status().Listen[0] + path }

var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}

// do sends a request on a connection of its own and returns the answer.
func do(method, url, body string) (int, string, error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, strings.TrimSpace(string(data)), err
}

func (p *project) get(path string) string {
	_, text, err := do(http.MethodGet, p.url(path), "")
	p.check(err)
	return text
}

// variant builds the program with other files and returns the binary, which
// stays outside the sources. The sources are as before afterwards.
func (p *project) variant(name string, files map[string]string) string {
	before := map[string]string{}
	for file, text := range files {
		before[file] = p.read(file)
		p.write(file, text)
	}
	out := p.path("bin/" + name)
	args := append([]string{"build", "-buildvcs=false", "-ldflags=-s -w", "-o", out}, raceFlag...)
	cmd := exec.Command("go", append(args, "./cmd/orchestrator")...)
	cmd.Dir, cmd.Env = p.dir, environ
	if msg, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("build %s: %v\n%s", name, err, msg)
	}
	for file, text := range before {
		p.write(file, text)
	}
	return out
}

const sigterm = syscall.SIGTERM

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

func inodeOf(info fs.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }
