//go:build unix

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
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

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/control"
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
		start: func(binary string, _ []string, n int) (int, <-chan proc.Status, error) {
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
		lock: func() (func(), error) {
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

// fakeWorker is a generation's end of its link.
type fakeWorker struct {
	*process
	conn  *wire.Conn
	heard chan control.Message
}

// connect links the process to the supervisor, as a worker does first.
func (p *process) connect() *fakeWorker {
	p.w.t.Helper()
	near, far := net.Pipe()
	p.w.conns <- far
	c, err := wire.Greet(near, wire.Hello{Role: wire.RoleWorker, PID: p.pid, Generation: p.generation})
	if err != nil {
		p.w.t.Fatal(err)
	}
	k := &fakeWorker{process: p, conn: c, heard: make(chan control.Message, 100)}
	p.link = k
	go func() {
		for {
			var m control.Message
			if c.Receive(&m) != nil {
				close(k.heard)
				return
			}
			k.heard <- m
		}
	}()
	k.hears(control.TypeKnown)
	return k
}

// hears returns the next message to the worker, which must be of this type.
func (k *fakeWorker) hears(want string) control.Message {
	k.w.t.Helper()
	synctest.Wait()
	select {
	case m, ok := <-k.heard:
		if !ok || m.Type != want {
			k.w.t.Fatalf("generation %d hears %q, want %q", k.generation, m.Type, want)
		}
		return m
	default:
		k.w.t.Fatalf("generation %d hears nothing, want %q; it printed:\n%s", k.generation, want, k.w.printed())
		return control.Message{}
	}
}

func (k *fakeWorker) hearsNothing() {
	k.w.t.Helper()
	synctest.Wait()
	select {
	case m, ok := <-k.heard:
		if ok {
			k.w.t.Fatalf("generation %d hears %q", k.generation, m.Type)
		}
	default:
	}
}

func (k *fakeWorker) says(m control.Message) {
	k.w.t.Helper()
	if err := k.conn.Send(m); err != nil {
		k.w.t.Fatal(err)
	}
	synctest.Wait()
}

// serves says that the worker serves, with the report of its upgrade; nil for
// none.
func (k *fakeWorker) serves(report *control.Report, edits ...func(*control.Serving)) {
	k.w.t.Helper()
	s := &control.Serving{
		Name:      "test",
		HotReload: k.w.opts.HotReload,
		Listen:    []string{"127.0.0.1:1"},
		Modules:   []client.Module{{Name: "counter", State: client.ModuleRunning, Stateful: true}, {Name: "hello", State: client.ModuleRunning}},
		Packages:  map[string]string{"counter": "p/counter", "hello": "p/hello"},
		StopMS:    3000,
		Report:    report,
	}
	for _, edit := range edits {
		edit(s)
	}
	k.says(control.Message{Type: control.TypeServing, Serving: s})
}

// first returns the first generation, which serves.
func (w *world) first() *fakeWorker {
	w.t.Helper()
	if w.opts.HotReload {
		w.builds().succeeds()
	}
	k := w.started().connect()
	k.serves(nil)
	w.wantState(serving)
	return k
}

// candidate returns the candidate that k starts, and the order to do so.
func (k *fakeWorker) candidate() (*fakeWorker, control.Upgrade) {
	k.w.t.Helper()
	order := *k.hears(control.TypeUpgrade).Upgrade
	k.says(control.Message{Type: control.TypeStage, Stage: &control.Stage{Name: client.StageStart, LimitMS: 5000}})
	k.w.mu.Lock()
	p := k.w.process(order.Generation, order.Binary)
	k.w.mu.Unlock()
	return p.connect(), order
}

// takesOver makes the candidate of k serve, in its probation.
func (k *fakeWorker) takesOver() *fakeWorker {
	k.w.t.Helper()
	c := k.commits()
	k.w.wantState(probation)
	return c
}

// commits makes the candidate of k serve, whatever state follows.
func (k *fakeWorker) commits() *fakeWorker {
	k.w.t.Helper()
	c, order := k.candidate()
	k.says(control.Message{Type: control.TypeStage, Stage: &control.Stage{Name: client.StageProbation, LimitMS: 3_600_000}})
	c.serves(&control.Report{Generation: order.Generation, TookOver: true, Standby: true, Changed: []string{"hello"}})
	return c
}

// final ends the probation of k and the old generation's life.
func (k *fakeWorker) final(before *fakeWorker) {
	k.w.t.Helper()
	k.says(control.Message{Type: control.TypeFinal, Final: &control.Final{Generation: k.generation, Probation: client.ProbationPassed}})
	before.die(proc.Status{})
	k.w.wantState(serving)
}

// fails reports that an upgrade has failed.
func (k *fakeWorker) fails(r control.Report) {
	k.w.t.Helper()
	k.says(control.Message{Type: control.TypeReport, Report: &r})
}

// fakeClient is a command that waits for its answer.
type fakeClient struct {
	w      *world
	conn   *wire.Conn
	answer chan control.Message
}

func (w *world) ask(m control.Message) *fakeClient {
	w.t.Helper()
	near, far := net.Pipe()
	w.conns <- far
	c, err := wire.Greet(near, wire.Hello{Role: wire.RoleClient})
	if err != nil {
		w.t.Fatal(err)
	}
	k := &fakeClient{w, c, make(chan control.Message, 100)}
	go func() {
		defer close(k.answer)
		for {
			var m control.Message
			if c.Receive(&m) != nil {
				return
			}
			k.answer <- m
		}
	}()
	if err := c.Send(m); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
	return k
}

func (w *world) reload(r client.ReloadRequest) *fakeClient {
	w.t.Helper()
	return w.ask(control.Message{Type: control.TypeReload, Reload: &r})
}

// gets returns the outcome, which must have arrived with this verdict.
func (k *fakeClient) gets(want client.Verdict) client.Outcome {
	k.w.t.Helper()
	synctest.Wait()
	select {
	case m := <-k.answer:
		if m.Outcome == nil || m.Outcome.Verdict != want {
			k.w.t.Fatalf("the outcome is %+v, want %s", m.Outcome, want)
		}
		return *m.Outcome
	default:
		k.w.t.Fatalf("there is no outcome, want %s; it printed:\n%s", want, k.w.printed())
		return client.Outcome{}
	}
}

func (k *fakeClient) waits() {
	k.w.t.Helper()
	synctest.Wait()
	select {
	case m := <-k.answer:
		k.w.t.Fatalf("the client has an answer: %+v", m.Outcome)
	default:
	}
}

func (w *world) status() client.Status {
	w.t.Helper()
	k := w.ask(control.Message{Type: control.TypeStatus})
	time.Sleep(workerAnswerTime)
	synctest.Wait()
	m := <-k.answer
	if m.Status == nil {
		w.t.Fatal("there is no status")
	}
	return *m.Status
}

// fakeBuilder builds when the test says so.
type fakeBuilder struct {
	w      *world
	broken error // there is no go command
	listed chan error
	calls  chan *fakeBuild
	onList func() // nil for nothing
	own    bool   // the supervisor imports the package that is saved
	closed bool
}

type fakeBuild struct {
	w         *world
	job       build.Job
	done      chan error
	cancelled func() bool
}

func newFakeBuilder(w *world) *fakeBuilder {
	return &fakeBuilder{w: w, listed: make(chan error, 10), calls: make(chan *fakeBuild, 10)}
}

func (b *fakeBuilder) Inputs(context.Context) (*sources.Inputs, error) {
	in := &sources.Inputs{Root: b.w.dir, Packages: map[string]sources.Package{
		"p/hello": {ImportPath: "p/hello", Dir: b.w.dir, Files: []string{filepath.Base(source)}},
	}}
	if text, _ := os.ReadFile(filepath.Join(b.w.dir, source)); strings.Contains(string(text), "p/extra") {
		in.Packages["p/extra"] = sources.Package{ImportPath: "p/extra", Dir: filepath.Join(b.w.dir, "extra"), Files: []string{"x.go"}}
	}
	if b.own {
		in.Packages[supervisorPackage] = sources.Package{ImportPath: supervisorPackage, Dir: filepath.Join(b.w.dir, "supervisor"), Imports: []string{"p/hello"}}
	}
	if b.onList != nil {
		b.onList()
	}
	select {
	case err := <-b.listed:
		return in, err
	default:
		return in, nil
	}
}

func (b *fakeBuilder) Build(ctx context.Context, job build.Job) (string, error) {
	call := &fakeBuild{b.w, job, make(chan error), func() bool { return ctx.Err() != nil }}
	b.calls <- call
	select {
	case err := <-call.done:
		return "", err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (b *fakeBuilder) Close() { b.closed = true }

// builds returns the build that is under way.
func (w *world) builds() *fakeBuild {
	w.t.Helper()
	synctest.Wait()
	select {
	case call := <-w.builder.calls:
		return call
	default:
		w.t.Fatalf("nothing is being built; it printed:\n%s", w.printed())
		return nil
	}
}

func (w *world) buildsNothing() {
	w.t.Helper()
	synctest.Wait()
	select {
	case <-w.builder.calls:
		w.t.Fatal("something is being built")
	default:
	}
}

// succeeds makes a binary from the sources.
func (b *fakeBuild) succeeds() {
	b.w.t.Helper()
	file := filepath.Join(b.w.dir, source)
	if b.job.Overlay != nil {
		file = b.job.Overlay[file]
	}
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(b.job.Out, append([]byte("binary of "), text...), 0o755)
	}
	if err != nil {
		b.w.t.Fatal(err)
	}
	b.done <- nil
	synctest.Wait()
}

func (b *fakeBuild) fails(message string) {
	b.done <- &build.CompileError{Output: message}
	synctest.Wait()
}

// wasCancelled reports whether the build was cancelled.
func (b *fakeBuild) wasCancelled() bool {
	synctest.Wait()
	return b.cancelled()
}

type fakeWatcher struct {
	changed chan struct{}
	closed  bool
}

func (f *fakeWatcher) Watch(sources.Set)        { f.closed = false }
func (f *fakeWatcher) Changed() <-chan struct{} { return f.changed }
func (f *fakeWatcher) Close()                   { f.closed = true }

// pipeListener accepts the connections that the world makes.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{} }

var _ io.Writer = (*world)(nil)

func (p *process) String() string { return fmt.Sprintf("generation %d of %s", p.generation, p.binary) }
