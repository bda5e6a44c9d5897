//go:build unix

package supervisor

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/sources"
	"example.org/orchestrator/app/internal/wire"
)

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
	job       build.Spec
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

func (b *fakeBuilder) Build(ctx context.Context, job build.Spec) (string, error) {
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
