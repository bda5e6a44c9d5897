package cmd_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"orchestrator/app/control"
)

// raceFlag builds the programs under test like the test itself.
var raceFlag []string

// pair is two builds of the program that differ in what POST /counter/
// answers: a number, or "new" and a number. They contain failpoints. If there
// is a file called sick in its folder, the counter of the second fails in the
// hook that the file names: Initialize, or Healthy once it has been well; in
// Shutdown and in its factory it hangs.
type pair struct{ dir, old, new string }

var pairOfBuilds = sync.OnceValues(func() (pair, error) {
	dir, err := os.MkdirTemp("", "orch-pair")
	if err != nil {
		return pair{}, err
	}
	b := pair{dir, filepath.Join(dir, "old"), filepath.Join(dir, "new")}
	source, err := filepath.Abs("../modules/counter/counter.go")
	if err != nil {
		return b, err
	}
	text, err := os.ReadFile(source)
	if err != nil {
		return b, err
	}
	changed := filepath.Join(dir, "counter.go")
	edited := string(text)
	for _, edit := range newCounter {
		was := edited
		if edited = strings.Replace(was, edit[0], edit[1], 1); edited == was {
			return b, fmt.Errorf("counter.go has no %q any more", edit[0])
		}
	}
	overlay, _ := json.Marshal(map[string]any{"Replace": map[string]string{source: changed}})
	if err := os.WriteFile(changed, []byte(edited), 0o644); err != nil {
		return b, err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644); err != nil {
		return b, err
	}
	for out, flags := range map[string][]string{b.old: nil, b.new: {"-overlay", filepath.Join(dir, "overlay.json")}} {
		args := append([]string{"build", "-buildvcs=false", "-tags=failpoints", "-o", out}, flags...)
		args = append(append(args, raceFlag...), "./cmd/orchestrator")
		c := exec.Command("go", args...)
		c.Dir, c.Env = "..", environ
		if msg, err := c.CombinedOutput(); err != nil {
			return b, fmt.Errorf("build: %w\n%s", err, msg)
		}
	}
	return b, nil
})

// newCounter is what the second of a pair has, in place of what.
var newCounter = [][2]string{
	{"fmt.Fprintln(w, c.add(1))", `fmt.Fprintln(w, "new", c.add(1))`},
	{"\t\"net/http\"\n", "\t\"net/http\"\n\t\"os\"\n"},
	{"\"sync\"\n", "\"sync\"\n\t\"sync/atomic\"\n"},
	{"func (c *Counter) Shutdown(context.Context) error { return nil }", ""},
	{"func New() modules.Module { return", `func New() modules.Module {
	if sick("factory") != nil {
		select {}
	}
	return`},
	{"return &Counter{} }", "return &Counter{}\n}"},
	{"modules.Config) error { return nil }", `modules.Config) error { return sick("Initialize") }

var asked atomic.Int64

func (c *Counter) Healthy(context.Context) error {
	if asked.Add(1) == 1 {
		return nil
	}
	return sick("Healthy")
}

func (c *Counter) Shutdown(context.Context) error {
	if sick("Shutdown") != nil {
		select {}
	}
	return nil
}

func sick(hook string) error {
	if text, err := os.ReadFile("sick"); err != nil || string(text) != hook {
		return nil
	}
	return fmt.Errorf("sick")
}`},
}

const lightConfig = `app:
  hot_reload: false
  listen: 127.0.0.1:0
  drain: 500ms
  max_pause: 250ms
  probation: 300ms
  hook_timeout: 15s
modules:
  - name: counter
  - name: kv
    config: {path: kv.db}
`

// lightProject is a folder with a configuration and the first of the pair: for
// tests that build nothing. It talks to the program without starting others.
func lightProject(t reporter, dir string) (*project, pair) {
	p := &project{t: t, dir: dir, log: filepath.Join(dir, "run.log")}
	b, err := pairOfBuilds()
	p.check(err)
	p.write("config/main.yaml", strings.Replace(lightConfig, "127.0.0.1:0", p.reserveAddress(), 1))
	p.check(os.MkdirAll(p.path("bin"), 0o755))
	p.check(os.Link(b.old, p.path("bin/orchestrator")))
	return p, b
}

// reserveAddress is one that stays the same when a program is started again.
// It is outside the range from which the system itself chooses, and for as long
// as the project lives its UDP port keeps other tests, also of other
// processes, from choosing it. No process may be forked while it is tried out:
// it would have the listener until it begins with its own program.
func (p *project) reserveAddress() string {
	for {
		address := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		reserved, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		syscall.ForkLock.RLock()
		ln, err := net.Listen("tcp", address)
		if err == nil {
			ln.Close()
		}
		syscall.ForkLock.RUnlock()
		if err != nil {
			reserved.Close()
			continue
		}
		p.reserved = reserved
		return address
	}
}

func lightTest(t *testing.T) (*project, pair) {
	t.Helper()
	dir, err := os.MkdirTemp("", "orch")
	if err != nil {
		t.Fatal(err)
	}
	p, b := lightProject(t, dir)
	t.Cleanup(func() {
		p.cleanUp()
		if t.Failed() {
			t.Logf("the program printed:\n%s", p.printed())
		}
		os.RemoveAll(dir)
	})
	return p, b
}

// configure replaces, in main.yaml, each first of two edits by the second.
func (p *project) configure(edits ...string) {
	for i := 0; i < len(edits); i += 2 {
		p.edit("config/main.yaml", edits[i], edits[i+1])
	}
}

// startWith begins run with env.
func (p *project) startWith(env ...string) {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	p.check(err)
	defer log.Close()
	cmd := exec.Command("bin/orchestrator", "run")
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.dir, append(environ, env...), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.check(cmd.Start())
	p.began(cmd)
	p.wait("the program to serve", func() bool {
		s, err := p.peek()
		return err == nil && s.State == "serving"
	})
}

// ask sends the running program a message and waits for the answer.
func (p *project) ask(m control.Message, want string) (control.Message, error) {
	c, err := control.Dial(control.Socket(p.path(".orchestrator")), control.Hello{Role: control.RoleClient})
	if err != nil {
		return m, err
	}
	defer c.Close()
	timer := time.AfterFunc(2*patience, func() { c.Close() })
	defer timer.Stop()
	if err := c.Send(m); err != nil {
		return m, err
	}
	for {
		m, err := c.Receive()
		if err != nil || m.Type == want {
			return m, err
		}
	}
}

// peek is a status without starting a program for it.
func (p *project) peek() (*control.Status, error) {
	m, err := p.ask(control.Message{Type: control.TypeStatus}, control.TypeStatus)
	if err != nil {
		return nil, err
	}
	return m.Status, nil
}

// upgrade is a reload without starting a program for it.
func (p *project) upgrade(r control.ReloadRequest) (*control.Outcome, error) {
	m, err := p.ask(control.Message{Type: control.TypeReload, Reload: &r}, control.TypeOutcome)
	if err != nil {
		return nil, err
	}
	return m.Outcome, nil
}

// load is a client that counts up on a new connection each time.
type load struct {
	stop    chan struct{}
	done    sync.WaitGroup
	sent    atomic.Int64
	old     atomic.Int64 // answered by the first of the pair
	new     atomic.Int64 // answered by the second
	failed  atomic.Int64
	highest atomic.Int64 // answer of the first of the pair
	newest  atomic.Int64 // answer of the second
	why     atomic.Value // of the last failure
}

// increment is one POST /counter/ on a connection of its own.
func increment(address string) (number int64, isNew bool, err error) {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return 0, false, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "POST /counter/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"); err != nil {
		return 0, false, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, false, err
	}
	defer resp.Body.Close()
	var text [64]byte
	n, _ := resp.Body.Read(text[:])
	answer := strings.TrimSpace(string(text[:n]))
	if resp.StatusCode != http.StatusOK {
		return 0, false, fmt.Errorf("%s: %s", resp.Status, answer)
	}
	rest, isNew := strings.CutPrefix(answer, "new ")
	if _, err := fmt.Sscan(rest, &number); err != nil {
		return 0, false, fmt.Errorf("answer %q: %w", answer, err)
	}
	return number, isNew, nil
}

// startLoad counts up until it is stopped, as fast as a connection each allows
// but leaving the machine to others.
func startLoad(address string) *load {
	l := &load{stop: make(chan struct{})}
	l.done.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			l.sent.Add(1)
			switch number, isNew, err := increment(address); {
			case err != nil:
				l.failed.Add(1)
				l.why.Store(err.Error())
				time.Sleep(10 * time.Millisecond) // a busy machine refuses faster than it recovers
			case isNew:
				l.new.Add(1)
				l.newest.Store(number)
			default:
				l.old.Add(1)
				l.highest.Store(number)
			}
			runtime.Gosched()
			time.Sleep(2 * time.Millisecond) // pace: many of these run side by side
		}
	})
	return l
}

func (l *load) end() {
	close(l.stop)
	l.done.Wait()
}

// count is the counter's number.
func count(address string) (n int64, err error) {
	_, text, err := do(http.MethodGet, "http://"+address+"/counter/", "")
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(text, &n)
	return n, err
}

// open counts the descriptors of a process.
func open(pid int) int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(entries)
}
