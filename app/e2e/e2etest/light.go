//go:build unix

package e2etest

import (
	"bufio"
	"context"
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

	"example.org/orchestrator/app/client"
)

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

// MakeLight makes a folder with a configuration and the first of the pair, for
// tests that build nothing. Its methods talk to the program without starting
// commands.
func MakeLight(t Reporter, dir string) (*Project, Pair) {
	p := &Project{T: t, Dir: dir, Log: filepath.Join(dir, "run.log")}
	b, err := PairOfBuilds()
	p.Check(err)
	p.Write("config/main.yaml", strings.Replace(lightConfig, "127.0.0.1:0", p.ReserveAddress(), 1))
	p.Check(os.MkdirAll(p.Path("bin"), 0o755))
	p.Check(os.Link(b.Old, p.Path("bin/orchestrator")))
	return p, b
}

// ReserveAddress returns an address that stays the same when a program is
// started again. It is outside the range from which the system itself chooses.
// As long as the project lives, its UDP port keeps other tests, also in other
// processes, from choosing it. No process may be forked while it is tried: a
// child would have the listener until it calls exec.
func (p *Project) ReserveAddress() string {
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
		p.reserved = append(p.reserved, reserved)
		return address
	}
}

// Light makes a project for a test, which cleans it up: see [MakeLight].
func Light(t *testing.T) (*Project, Pair) {
	t.Helper()
	dir, err := os.MkdirTemp("", "orch")
	if err != nil {
		t.Fatal(err)
	}
	p, b := MakeLight(t, dir)
	t.Cleanup(func() {
		p.CleanUp()
		if t.Failed() {
			t.Logf("the program printed:\n%s", p.Printed())
		}
		os.RemoveAll(dir)
	})
	return p, b
}

// Configure edits main.yaml. edits are pairs of old and new text.
func (p *Project) Configure(edits ...string) {
	for i := 0; i < len(edits); i += 2 {
		p.Edit("config/main.yaml", edits[i], edits[i+1])
	}
}

// StartWith starts run with env added to the environment.
func (p *Project) StartWith(env ...string) { p.start(p.Dir, env...) }

// StartIn starts run in a folder of the project, as a shell does that has come there by
// way of a link.
func (p *Project) StartIn(name string) { p.start(p.Path(name), "PWD="+p.Path(name)) }

func (p *Project) start(dir string, env ...string) {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	p.Check(err)
	defer log.Close()
	cmd := exec.Command("bin/orchestrator", "run")
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, append(Environ, env...), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.Check(cmd.Start())
	p.Began(cmd)
	p.Wait("the program to serve", func() bool {
		s, err := p.Peek()
		return err == nil && s.State == "serving"
	})
}

// Peek returns a status without starting a command for it.
func (p *Project) Peek() (*client.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	defer cancel()
	return client.GetStatus(ctx, p.Path(".orchestrator"))
}

// Upgrade reloads without starting a command for it.
func (p *Project) Upgrade(r client.ReloadRequest) (*client.Outcome, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	defer cancel()
	return client.Reload(ctx, p.Path(".orchestrator"), r)
}

// Load is a client that sends each POST /counter/ on a new connection.
type Load struct {
	stop    chan struct{}
	done    sync.WaitGroup
	Sent    atomic.Int64
	Old     atomic.Int64 // answered by the first of the pair
	New     atomic.Int64 // answered by the second
	Failed  atomic.Int64
	highest atomic.Int64 // highest number from the first of the pair
	Newest  atomic.Int64 // highest number from the second
	Why     atomic.Value // error of the last failure
}

// Increment sends one POST /counter/ on a connection of its own.
func Increment(address string) (number int64, isNew bool, err error) {
	c, err := net.DialTimeout("tcp", address, Patience)
	if err != nil {
		return 0, false, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(Patience))
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

// StartLoad sends requests until it is stopped. It pauses between them, to leave
// the machine to other tests.
func StartLoad(address string) *Load {
	l := &Load{stop: make(chan struct{})}
	l.done.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			l.Sent.Add(1)
			switch number, isNew, err := Increment(address); {
			case err != nil:
				l.Failed.Add(1)
				l.Why.Store(err.Error())
				time.Sleep(10 * time.Millisecond) // a busy machine refuses faster than it recovers
			case isNew:
				l.New.Add(1)
				l.Newest.Store(number)
			default:
				l.Old.Add(1)
				l.highest.Store(number)
			}
			runtime.Gosched()
			time.Sleep(2 * time.Millisecond) // pace: many of these run side by side
		}
	})
	return l
}

func (l *Load) End() {
	close(l.stop)
	l.done.Wait()
}

// Count returns the counter's number.
func Count(address string) (n int64, err error) {
	_, text, err := Do(http.MethodGet, "http://"+address+"/counter/", "")
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(text, &n)
	return n, err
}

// Open counts the descriptors of a process.
func Open(pid int) int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(entries)
}
