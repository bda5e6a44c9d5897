//go:build unix

package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/sources"
	"example.org/orchestrator/app/internal/wire"
	"example.org/orchestrator/modules/topics"
)

// Log lines that people and tests search for.
const (
	logIgnoring     = "Hot-reload disabled, ignoring file changes"
	logReloadFailed = "Failed to reload module '%s': %s"
)

// supervisor is the loop and everything that it owns. Only the loop touches it,
// except the mailbox.
type supervisor struct {
	opts Options
	sys  system
	mailbox
	runDir  runDir
	workers workers
	queue   queue
	plan    plan
	builds  builds
	crashes crashes
	events  eventLog
	stop    stop
	sockets sockets

	job         *job            // the present attempt to reload; nil for none
	unconfirmed *unconfirmed    // the serving generation until it is final; nil for none
	last        *client.Outcome // outcome of the last reload
}

// mailbox is how other goroutines reach the loop. It is safe for concurrent
// use.
type mailbox struct {
	inbox chan happening
	ended chan struct{}   // closed when the loop has ended
	tasks *sync.WaitGroup // all goroutines that post
}

// runDir keeps other supervisors out of the run_dir and lets clients in.
type runDir struct {
	unlock  func()
	control net.Listener
}

func newSupervisor(opts Options, sys system) *supervisor {
	s := &supervisor{
		opts:    opts,
		sys:     sys,
		mailbox: mailbox{make(chan happening, 64), make(chan struct{}), &sync.WaitGroup{}},
		builds:  newBuilds(opts.RunDir),
	}
	s.workers.linked = map[int]*worker{}
	s.plan.config = sources.Absolute(opts.ConfigFile)
	return s
}

// run runs the supervisor until the program ends, and returns the program's exit
// code.
func (s *supervisor) run() (int, error) {
	s.stop.terminal = s.sys.terminal() // before anything that may take a while
	unlock, err := s.sys.lock(s.restBeforeStart)
	if errors.Is(err, errInterrupted) {
		return 0, nil // nothing has begun
	}
	if err != nil {
		return 1, err
	}
	s.runDir.unlock = unlock
	defer func() { s.runDir.unlock() }()
	if err := s.listen(); err != nil {
		return 1, err
	}
	defer s.end()
	if err := s.begin(); err != nil {
		return 1, err
	}
	return s.loop(), nil
}

// restBeforeStart waits for d. It reports false after a signal to stop.
func (s *supervisor) restBeforeStart(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case sig := <-s.sys.signals:
		return sig == syscall.SIGHUP && (!s.stop.terminal || s.sys.terminal())
	}
}

// loop handles everything that happens until the program has stopped.
func (s *supervisor) loop() int {
	for !s.stop.begun || !s.workers.none() {
		select {
		case h := <-s.inbox:
			h.handle(s)
		case sig := <-s.sys.signals:
			s.signal(sig.(syscall.Signal))
		case status := <-s.workers.first.exited:
			s.firstExited(status)
		case <-s.stop.deadline:
			s.printf("the program did not stop in time: killing it")
			s.stop.code = 1
			s.killAll()
		case <-s.looks():
			s.look()
		case <-s.quiet():
			s.believe()
		}
	}
	s.stopped()
	for _, waiting := range s.stop.waiting {
		waiting <- s.stop.code
	}
	return s.stop.code
}

// listen makes the control socket and accepts on it.
func (s *supervisor) listen() error {
	ln, err := s.sys.listen()
	if err != nil {
		return err
	}
	s.runDir.control = ln
	s.tasks.Go(func() { s.accept(ln) })
	return nil
}

// end waits for all goroutines that post.
func (s *supervisor) end() {
	close(s.ended)
	s.runDir.control.Close()
	s.tasks.Wait()
}

func (s *supervisor) signal(sig syscall.Signal) {
	switch {
	case sig == syscall.SIGHUP && (!s.stop.terminal || s.sys.terminal()):
		s.restoreRunDir()
		s.request(&request{})
	case s.stop.begun && time.Since(s.stop.since) < secondTime:
	case s.stop.begun:
		s.stop.code = 128 + int(sig)
		s.printf("killing everything")
		s.killAll()
	default:
		s.beginStop()
	}
}

// begin starts the first generation. In development it is built from the
// sources.
func (s *supervisor) begin() error {
	if !s.opts.HotReload {
		s.plan.current.binary = s.opts.Binary
		return s.startFirst(s.opts.Binary)
	}
	builder, err := s.sys.builder(context.Background())
	if err != nil {
		return fmt.Errorf("hot_reload is on, but the sources cannot be built: %w; start it in the folder of its sources, or set app.hot_reload: false", err)
	}
	if !s.opts.Debug {
		s.printf("builds omit what debuggers need; set build.debug: true in %s to keep it", s.opts.ConfigFile)
	}
	s.plan.builder = builder
	s.plan.set.Files = []string{s.plan.config}
	s.plan.watcher = s.sys.watch(s.plan.set)
	s.job = &job{initial: true, forced: true, began: time.Now(), snap: s.plan.look()}
	s.list()
	return nil
}

// startFirst starts a first generation.
func (s *supervisor) startFirst(binary string) error {
	n := s.builds.add(binary)
	set := s.sockets.latest()
	pid, exited, err := s.sys.start(binary, s.opts.WorkerArgs, n, set.keys(), set.files)
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("start %s: %w: it was built for another system: are GOOS or GOARCH set?", binary, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("start %s: %w: is app.run_dir on a file system that is mounted noexec?", binary, err)
	case err != nil:
		return fmt.Errorf("start %s: %w", binary, err)
	}
	s.workers.first = firstProcess{pid, exited}
	s.workers.groups = append(s.workers.groups, pid)
	return nil
}

// restoreRunDir makes the run_dir again if it was removed, as cleaners of
// temporary folders do. Running workers, and the generations that inherit from
// them, keep holding the lock of the removed folder: if this process died, a new
// run would neither see them nor wait for them.
func (s *supervisor) restoreRunDir() {
	if _, err := os.Stat(wire.Socket(s.opts.RunDir)); !errors.Is(err, os.ErrNotExist) {
		return
	}
	gone := func(name string) bool {
		_, err := os.Stat(filepath.Join(s.opts.RunDir, name))
		return errors.Is(err, os.ErrNotExist)
	}
	if gone("lock") && gone(workersLock) { // otherwise that would wait for our own workers
		unlock, err := s.sys.lock(func(time.Duration) bool { return false }) // these are new: nobody holds them
		if err != nil {
			s.printf("the run_dir is missing and cannot be made again: %v", err)
			return
		}
		s.runDir.unlock()
		s.runDir.unlock = unlock
	}
	old := s.runDir.control
	if err := s.listen(); err != nil {
		s.printf("the control socket is missing and cannot be made again: %v", err)
		return
	}
	if ln, ok := old.(*net.UnixListener); ok {
		ln.SetUnlinkOnClose(false) // the new socket has the same path
	}
	old.Close()
	s.printf("the run_dir had been removed: made it again")
	if s.workers.serving != nil {
		s.keep(s.workers.serving)
	}
}

// setHotReload starts or stops watching the sources.
func (s *supervisor) setHotReload(on bool) {
	p := &s.plan
	switch {
	case !on && p.watcher != nil:
		p.watcher.Close()
		p.watcher = nil
		fallthrough
	case !on && !p.saidIgnoring:
		p.saidIgnoring = true
		s.opts.Log.Info(logIgnoring)
	case on && p.watcher == nil:
		p.saidIgnoring = false
		if p.inputs == nil { // the first look leads to a listing
			p.set.Files = []string{p.config}
		}
		p.watcher = s.sys.watch(p.set)
	}
}

// tellFailure publishes a failed reload to the followers of the events and to
// the modules of the serving generation.
func (s *supervisor) tellFailure(o client.Outcome, changed []string, unknown bool) {
	app := s.publishFailure(s.workers.serving, o, changed, unknown)
	if w := s.workers.serving; w != nil {
		s.send(w, control.Message{Type: control.TypeFailure, Failure: &control.Failure{App: app, RolledBack: o.Verdict == client.RolledBack}})
	}
}

// publishFailure publishes a failed reload to the followers of the events. It
// concerns the modules of w, which serves or has served until now.
func (s *supervisor) publishFailure(w *worker, o client.Outcome, changed []string, unknown bool) topics.App {
	var says *control.Serving
	if w != nil {
		says = w.says
	}
	names := affected(says, changed, unknown)
	if o.FailedModule != "" && !slices.Contains(names, o.FailedModule) {
		names = append(names, o.FailedModule)
	}
	topic := topics.ModuleReloadFailed.Name()
	if o.Verdict == client.RolledBack {
		topic = topics.ModuleRolledBack.Name()
	}
	for _, name := range names {
		s.opts.Log.Error(fmt.Sprintf(logReloadFailed, name, o.Error), "stage", o.Stage)
		s.publish(topic, topics.Module{Name: name, Generation: o.Generation, Stage: string(o.Stage), Error: o.Error})
	}
	app := topics.App{
		Generation: o.Generation, Outcome: string(o.Verdict), Modules: names, Stage: string(o.Stage), Error: o.Error,
		PauseMS: o.StagesMS[client.StagePause], Held: o.Held, Moved: o.Moved, Forwarded: o.Forwarded, Cancelled: o.Cancelled,
	}
	s.publish(topics.AppReloadFailed.Name(), app)
	return app
}

// publish publishes an event of the supervisor itself.
func (s *supervisor) publish(topic string, data any) {
	text, err := json.Marshal(data)
	if err != nil {
		s.opts.Log.Error("an event cannot be written", "topic", topic, "err", err)
		return
	}
	s.events.publish(client.Event{Time: time.Now(), Generation: s.workers.number(), Topic: topic, Data: text})
}
