//go:build unix

package e2etest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	"example.org/orchestrator/app/client"
)

// Patience bounds every wait for a condition. It is long because machines may be
// slow; a wait ends as soon as its condition holds.
const Patience = time.Minute

// Reporter is what a project needs from a *testing.T or a script.
type Reporter interface {
	Fatalf(format string, args ...any)
}

// Project is a copy of this repository with a program built from it, in a
// folder of its own.
type Project struct {
	T    Reporter
	Dir  string
	Cmd  *exec.Cmd
	Log  string
	Exit chan error
	Done bool

	reserved []io.Closer // keep other tests from its addresses
}

// Environ is the environment of all commands. With it all copies share one build
// cache, and programs with the race detector do not wait for a second at their
// end. Appending to it copies it.
var Environ = slices.Clip(append(os.Environ(), "GOFLAGS=-trimpath", "GORACE=atexit_sleep_ms=0"))

// Repository returns the folder of this module.
var Repository = sync.OnceValue(func() string {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	panic(fmt.Sprintf("no go.mod above the working directory (%v)", err))
})

// ModulePath returns the path of this module.
var ModulePath = sync.OnceValue(func() string {
	text, err := os.ReadFile(filepath.Join(Repository(), "go.mod"))
	if err != nil {
		panic(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimPrefix(line, "module ")
})

// StandardConfig is the configuration of a developer, on a free port.
const StandardConfig = `app:
  hot_reload: true
  listen: 127.0.0.1:0
  hook_timeout: 3s
modules:
  - name: hello
  - name: counter
  - name: kv
    config: {path: .orchestrator/kv.db}
`

// Make copies the repository and the program to dir.
func Make(t Reporter, dir string) *Project {
	p := &Project{T: t, Dir: dir, Log: filepath.Join(dir, "run.log")}
	p.copySources()
	bin, err := Shipped()
	p.Check(err)
	p.Check(os.MkdirAll(filepath.Join(dir, "bin"), 0o755))
	// Copied by another process: a process that another test starts just now
	// would inherit a descriptor open for writing here, and the file would be
	// busy until that process calls exec.
	p.Check(exec.Command("cp", bin, filepath.Join(dir, "bin", "orchestrator")).Run())
	p.Write("config/main.yaml", StandardConfig)
	return p
}

// copySources copies all files that a build needs.
func (p *Project) copySources() {
	p.Check(eachSource(func(path, rel string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to := filepath.Join(p.Dir, rel)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o644)
	}))
}

// New makes a project for a test, which cleans it up at its end.
func New(t *testing.T) *Project {
	t.Helper()
	dir, err := os.MkdirTemp("", "orch")
	if err != nil {
		t.Fatal(err)
	}
	p := Make(t, dir)
	t.Cleanup(func() {
		p.CleanUp()
		if t.Failed() {
			t.Logf("the program printed:\n%s", p.Printed())
		}
		os.RemoveAll(dir)
	})
	return p
}

func (p *Project) Check(err error) {
	if err != nil {
		p.T.Fatalf("%v", err)
	}
}

func (p *Project) Path(name string) string { return filepath.Join(p.Dir, name) }

func (p *Project) Write(name, text string) {
	p.Check(os.MkdirAll(filepath.Dir(p.Path(name)), 0o755))
	p.Check(os.WriteFile(p.Path(name), []byte(text), 0o644))
}

func (p *Project) Read(name string) string {
	data, err := os.ReadFile(p.Path(name))
	p.Check(err)
	return string(data)
}

// Edit replaces old, which must be there, and writes the file in place, as some
// editors do.
func (p *Project) Edit(name, old, edited string) {
	text := p.Read(name)
	if !strings.Contains(text, old) {
		p.T.Fatalf("%s does not contain %q", name, old)
	}
	p.Write(name, strings.Replace(text, old, edited, 1))
}

// Start starts `orchestrator run`.
func (p *Project) Start() {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	p.Check(err)
	defer log.Close()
	cmd := exec.Command("bin/orchestrator", "run")
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.Dir, Environ, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.Check(cmd.Start())
	p.Began(cmd)
}

func (p *Project) Began(cmd *exec.Cmd) {
	exit := make(chan error, 1)
	p.Cmd, p.Exit, p.Done = cmd, exit, false
	go func() { exit <- cmd.Wait() }()
}

// StartServing starts `orchestrator run` and waits until it serves.
func (p *Project) StartServing() {
	p.Start()
	p.Wait("the program to serve", func() bool {
		select {
		case err := <-p.Exit:
			p.Done = true
			p.T.Fatalf("run ended: %v\n%s", err, p.Printed())
		default:
		}
		s, err := p.TryStatus()
		return err == nil && s.State == "serving"
	})
}

// Ended waits for run to end and returns its exit code.
func (p *Project) Ended() int {
	select {
	case err := <-p.Exit:
		p.Done = true
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		return 0
	case <-time.After(Patience):
		p.T.Fatalf("run does not end\n%s", p.Printed())
		return -1
	}
}

func (p *Project) Printed() string {
	if p.Log == "/dev/full" { // it never ends
		return ""
	}
	data, _ := os.ReadFile(p.Log)
	return string(data)
}

// Processes returns the processes with the project as working directory.
func (p *Project) Processes() (pids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		dir, err := os.Readlink(link)
		dir = strings.TrimSuffix(dir, " (deleted)")
		if err == nil && (dir == p.Dir || strings.HasPrefix(dir, p.Dir+"/")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(link)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func (p *Project) CleanUp() {
	for _, r := range p.reserved {
		defer r.Close()
	}
	defer func() {
		if strings.Contains(p.Printed(), "WARNING: DATA RACE") {
			p.T.Fatalf("the program has a data race:\n%s", p.Printed())
		}
	}()
	if p.Cmd != nil && !p.Done {
		p.Cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.Exit:
		case <-time.After(10 * time.Second):
		}
	}
	for range 100 {
		pids := p.Processes()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Wait polls until ok returns true. It fails the test after Patience.
func (p *Project) Wait(what string, ok func() bool) { p.WaitFor(Patience, what, ok) }

// WaitFor is Wait with another deadline.
func (p *Project) WaitFor(longest time.Duration, what string, ok func() bool) {
	for end := time.Now().Add(longest); !ok(); {
		if time.Now().After(end) {
			p.T.Fatalf("waited %v for %s; the program printed:\n%s", longest, what, p.Printed())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Command runs the command line and returns what it printed and its exit code.
func (p *Project) Command(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	cmd := exec.Command("bin/orchestrator", args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.Dir, Environ, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.Check(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func (p *Project) TryStatus() (*client.Status, error) {
	out, errs, code := p.Command("status", "--json")
	if code != 0 && out == "" {
		return nil, errors.New(errs)
	}
	s := new(client.Status)
	err := json.Unmarshal([]byte(out), s)
	if err == nil && (code == client.ExitFailed) != (s.State == client.Degraded) {
		err = fmt.Errorf("status --json ends with %d in state %s", code, s.State)
	}
	return s, err
}

func (p *Project) Status() *client.Status {
	s, err := p.TryStatus()
	p.Check(err)
	return s
}

// Idle returns the status once no reload is under way: new code answers a
// moment before the supervisor hears that it serves.
func (p *Project) Idle() (s *client.Status) {
	p.Wait("the outcome", func() bool { s = p.Status(); return s.State != "reloading" })
	return s
}

// Reload runs `reload --json` with args. Its time includes builds.
func (p *Project) Reload(args ...string) (*client.Outcome, int) {
	out, errs, code := p.Command(append([]string{"reload", "--json", "--timeout=60s"}, args...)...)
	o := new(client.Outcome)
	if err := json.Unmarshal([]byte(out), o); err != nil {
		p.T.Fatalf("reload --json printed %q, %q: %v", out, errs, err)
	}
	return o, code
}

func (p *Project) URL(path string) string { return "http://" + p.Status().Listen[0] + path }

var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}

// Do sends a request on a connection of its own and returns the answer.
func Do(method, url, body string) (int, string, error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, strings.TrimSpace(string(data)), err
}

func (p *Project) Get(path string) string {
	_, text, err := Do(http.MethodGet, p.URL(path), "")
	p.Check(err)
	return text
}

// Variant builds the program with these files replaced, restores the sources, and
// returns the binary, which is outside the sources.
func (p *Project) Variant(name string, files map[string]string) string {
	before := map[string]string{}
	for file, text := range files {
		before[file] = p.Read(file)
		p.Write(file, text)
	}
	out := p.Path("bin/" + name)
	args := append([]string{"build", "-buildvcs=false", "-ldflags=-s -w", "-o", out}, RaceFlag...)
	cmd := exec.Command("go", append(args, "./cmd/orchestrator")...)
	cmd.Dir, cmd.Env = p.Dir, Environ
	if msg, err := cmd.CombinedOutput(); err != nil {
		p.T.Fatalf("build %s: %v\n%s", name, err, msg)
	}
	for file, text := range before {
		p.Write(file, text)
	}
	return out
}

// Sigterm stops a program gracefully.
const Sigterm = syscall.SIGTERM

// Itoa is strconv.Itoa.
func Itoa(n int) string { return strconv.Itoa(n) }

// Atoi returns the number in s, 0 if there is none.
func Atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}
