//go:build unix

package supervisor

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/sources"
	"example.org/orchestrator/app/internal/wire"
)

// world is everything around a supervisor: processes, sockets, the terminal,
// the sources, the go command and time. The real loop runs in it.
type world struct {
	t       *testing.T
	opts    Options
	sup     *supervisor
	dir     string
	conns   chan net.Conn // connections to the control socket
	signals chan os.Signal
	starts  chan *process // processes that the supervisor has started
	builder *fakeBuilder
	watcher *fakeWatcher
	done    chan int // the exit code, when run has returned
	runErr  error

	mu       sync.Mutex // guards the fields below
	out      strings.Builder
	procs    map[int]*process
	nextPID  int
	startErr error // the error of the next start
	locked   int
	terminal bool

	whileLocking func() // called while the supervisor waits for the lock; nil for nothing
}

// process is a process that the supervisor can see.
type process struct {
	w          *world
	pid        int
	generation int
	binary     string
	exited     chan proc.Status // nil if the supervisor has not started it itself
	status     *proc.Status     // nil while it lives
	link       *fakeWorker      // nil before it has connected
	deaf       bool             // SIGTERM does nothing
}

const source = "/program.go"

// setting changes a world, which otherwise serves in production.
type setting func(*world)

// developing turns hot reload on.
func developing(w *world) { w.opts.HotReload = true }

// inWorld runs f and a supervisor under synctest.
func inWorld(t *testing.T, f func(*world), settings ...setting) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t:       t,
			dir:     dir,
			conns:   make(chan net.Conn),
			signals: make(chan os.Signal, 1),
			starts:  make(chan *process, 16),
			done:    make(chan int, 1),
			procs:   map[int]*process{},
			nextPID: 1000,
		}
		w.write("main.yaml", "app:\n")
		w.write(source, "one\n")
		w.opts = Options{
			ConfigFile: dir + "/main.yaml",
			RunDir:     dir + "/run",
			Binary:     dir + "/orchestrator",
			Log:        slog.New(slog.NewTextHandler(w, nil)),
			Out:        w,
		}
		w.write("orchestrator", "binary 0")
		w.builder = newFakeBuilder(w)
		w.watcher = &fakeWatcher{changed: make(chan struct{}, 1)}
		for _, set := range settings {
			set(w)
		}
		w.sup = newSupervisor(w.opts, w.system())
		go func() {
			code, err := w.sup.run()
			w.runErr = err
			w.done <- code
		}()
		defer w.end()
		f(w)
	})
}

func (w *world) system() system {
	return system{
		start: func(binary string, _ []string, n int, _ []string, _ []*os.File) (int, <-chan proc.Status, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if err := w.startErr; err != nil {
				w.startErr = nil
				return 0, nil, err
			}
			p := w.process(n, binary)
			p.exited = make(chan proc.Status, 1)
			w.starts <- p
			return p.pid, p.exited, nil
		},
		terminate: func(pid int) {
			if p := w.find(pid); p != nil && !p.deaf {
				p.die(proc.Status{Code: -1, Signal: "terminated"})
			}
		},
		kill:      w.kill,
		killGroup: func(int) { w.killAll() },
		groupGone: func(int) bool { return false },
		exited: func(pid int) (proc.Status, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if p := w.procs[pid]; p != nil && p.status != nil {
				return *p.status, true
			}
			return proc.Status{}, false
		},
		childless: func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return !slices.ContainsFunc(slices.Collect(maps.Values(w.procs)), func(p *process) bool { return p.status == nil })
		},
		lock: func(func(time.Duration) bool) (func(), error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.locked < 0 {
				return nil, errors.New("already running here")
			}
			if w.whileLocking != nil {
				w.whileLocking()
			}
			w.locked++
			err := os.MkdirAll(w.opts.RunDir, 0o755)
			if err == nil {
				err = os.WriteFile(w.opts.RunDir+"/lock", nil, 0o644)
			}
			return func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.locked--
			}, err
		},
		listen: func() (net.Listener, error) {
			err := os.WriteFile(wire.Socket(w.opts.RunDir), nil, 0o600)
			return &pipeListener{conns: w.conns, closed: make(chan struct{})}, err
		},
		builder:  func(context.Context) (build.Builder, error) { return w.builder, w.builder.broken },
		watch:    func(sources.Set) watcher { return w.watcher },
		image:    func(_ int, binary string) string { return binary },
		signals:  w.signals,
		terminal: func() bool { return w.terminal },
	}
}

// process makes a process. w.mu must be locked.
func (w *world) process(generation int, binary string) *process {
	w.nextPID++
	p := &process{w: w, pid: w.nextPID, generation: generation, binary: binary}
	w.procs[p.pid] = p
	return p
}

func (w *world) find(pid int) *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.procs[pid]
}

func (w *world) kill(pid int) {
	if p := w.find(pid); p != nil {
		p.die(proc.Status{Code: -1, Signal: "killed"})
	}
}

func (w *world) killAll() {
	w.mu.Lock()
	all := slices.Collect(maps.Values(w.procs))
	w.mu.Unlock()
	for _, p := range all {
		p.die(proc.Status{Code: -1, Signal: "killed"})
	}
}

// ended returns how the process has ended, nil while it lives.
func (p *process) ended() *proc.Status {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return p.status
}

// die ends the process, once.
func (p *process) die(status proc.Status) {
	p.w.mu.Lock()
	dead := p.status != nil
	if !dead {
		p.status = &status
	}
	p.w.mu.Unlock()
	if dead {
		return
	}
	if p.exited != nil {
		p.exited <- status
	}
	if p.link != nil {
		p.link.conn.Close()
	}
}

// end kills what is left and waits for the supervisor's end.
func (w *world) end() {
	if w.t.Failed() {
		w.t.Logf("it printed:\n%s", w.printed())
	}
	synctest.Wait()
	select {
	case code := <-w.done:
		w.done <- code
	default:
		w.signals <- syscall.SIGTERM
		synctest.Wait()
		w.killAll()
		w.code()
	}
	if w.locked != 0 && w.runErr == nil {
		w.t.Errorf("the lock is held %d times at the end", w.locked)
	}
}

// code waits for the supervisor's end and returns its exit code.
func (w *world) code() int {
	w.t.Helper()
	code := <-w.done
	w.done <- code
	return code
}

// Write implements the terminal.
func (w *world) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(p)
}

func (w *world) printed() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.String()
}

func (w *world) wantPrinted(text string) {
	w.t.Helper()
	synctest.Wait()
	if !strings.Contains(w.printed(), text) {
		w.t.Errorf("nothing says %q", text)
	}
}

func (w *world) wantNotPrinted(text string) {
	w.t.Helper()
	synctest.Wait()
	if strings.Contains(w.printed(), text) {
		w.t.Errorf("something says %q", text)
	}
}

func (w *world) wantState(want state) {
	w.t.Helper()
	synctest.Wait()
	// The loop waits for something to happen, so it does not touch its state.
	if got := w.sup.state(); got != want {
		w.t.Errorf("state = %v, want %v", got, want)
	}
}

// write replaces a file of the sources or of the configuration.
func (w *world) write(name, text string) {
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// save writes the source file and makes the watcher notice.
func (w *world) save(text string) {
	w.write(source, text)
	w.watcher.changed <- struct{}{}
	synctest.Wait()
}

// started returns the next process that the supervisor has started.
func (w *world) started() *process {
	w.t.Helper()
	synctest.Wait()
	select {
	case p := <-w.starts:
		return p
	default:
		w.t.Fatalf("the supervisor has started nothing; it printed:\n%s", w.printed())
		return nil
	}
}

// startedAfter returns the next process, which must start after d and no sooner.
func (w *world) startedAfter(d time.Duration) *process {
	w.t.Helper()
	if d > time.Millisecond {
		time.Sleep(d - time.Millisecond)
		w.startsNothing()
		time.Sleep(time.Millisecond)
	}
	return w.started()
}

func (w *world) startsNothing() {
	w.t.Helper()
	synctest.Wait()
	select {
	case p := <-w.starts:
		w.t.Fatalf("the supervisor has started %s", p.binary)
	default:
	}
}
