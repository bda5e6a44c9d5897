//go:build unix

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"orchestrator/app/build"
	"orchestrator/app/control"
	"orchestrator/app/watch"
	"orchestrator/handoff"
	"orchestrator/handoff/failpoint"
)

const logIgnoring = "Hot-reload disabled, ignoring file changes"

// worker is a generation's process.
type worker struct {
	generation int
	pid        int
	build      string
	conn       *control.Conn
	serving    *control.Serving // what it said of itself when it began to serve
	stage      *control.Stage   // of the upgrade it is in
	watchdog   *time.Timer      // ends the stage
}

// supervisor is the loop's state.
type supervisor struct {
	opts    Options
	reaper  *reaper
	locks   *locks
	control *net.UnixListener // the control socket
	ctx     context.Context   // ends when the program stops: builds obey it

	inbox    chan func() // what other goroutines ask the loop to do
	workers  map[int]*worker
	serving  *worker
	first    firstWorker
	unwell   *worker        // has asked for a fresh process of its build
	groups   []int          // process groups of workers, to kill
	binaries map[int]string // generation -> binary it was started from
	kept     map[int]string // generation -> a copy of it
	older    string         // a copy of the build before the one that serves
	oldest   string         // and of the one before that, for a rollback
	number   int            // of the last generation
	everyone bool           // some generation has served
	crash    crashes

	lastServed int // generation
	beaten     int // the last generation that the one before it has given up

	last      *control.Outcome
	events    []control.Event // the last few
	seq       int64
	followers map[chan control.Event]bool
	answers   []chan control.Status // who waits for the worker's part of a status
	asked     *worker               // that is to answer them

	reloader

	stopping bool
	code     int
	deadline <-chan time.Time
	kill     func()
}

// firstWorker is a worker that was started here and has not served yet.
type firstWorker struct {
	pid  int
	done chan syscall.WaitStatus
}

// Run is the whole life of a supervisor. It returns the program's exit code.
func Run(opts Options) (int, error) {
	s := &supervisor{
		opts:      opts,
		inbox:     make(chan func(), 64),
		workers:   map[int]*worker{},
		binaries:  map[int]string{},
		kept:      map[int]string{},
		followers: map[chan control.Event]bool{},
	}
	terminal := hasTerminal() && !signal.Ignored(syscall.SIGHUP)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)

	var err error
	if s.locks, err = lockRunDir(opts.RunDir, s.say); err != nil {
		return 1, err
	}
	defer func() { s.locks.release() }()
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithCancel(context.Background())
	defer cancel()
	s.kill = cancel
	s.reaper = newReaper()
	if err := s.listen(); err != nil {
		return 1, err
	}
	defer func() { s.control.Close() }()

	if err := s.begin(); err != nil {
		return 1, err
	}
	for {
		if s.stopping && len(s.workers) == 0 && s.first.pid == 0 {
			s.end()
			return s.code, nil
		}
		select {
		case f := <-s.inbox:
			f()
		case sig := <-signals:
			s.signal(sig.(syscall.Signal), terminal)
		case status := <-s.first.done:
			s.firstExited(status)
		case <-s.deadline:
			s.say("the modules do not stop in time, killing them")
			s.code = 1
			s.killAll()
		case <-s.looks():
			s.look()
		case <-s.quiet:
			s.settle()
		}
	}
}

func (s *supervisor) say(format string, args ...any) {
	fmt.Fprintf(s.opts.Out, format+"\n", args...)
}

// do has the loop call f. It is how other goroutines change anything.
func (s *supervisor) do(f func()) { s.inbox <- f }

func (s *supervisor) signal(sig syscall.Signal, terminal bool) {
	switch {
	case sig == syscall.SIGHUP && (!terminal || hasTerminal()):
		s.restoreRunDir()
		s.request(&request{reload: control.ReloadRequest{}, why: "SIGHUP"})
	case s.stopping:
		s.code = 128 + int(sig)
		s.say("killing everything")
		s.killAll()
	default:
		s.stop()
	}
}

// hasTerminal tells whether there is a controlling terminal.
func hasTerminal() bool {
	f, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// stop ends the program gracefully.
func (s *supervisor) stop() {
	s.stopping = true
	s.kill()
	limit := 10 * time.Second
	if s.serving != nil && s.serving.serving != nil {
		limit = time.Duration(s.serving.serving.StopMS) * time.Millisecond
	}
	s.deadline = time.After(limit)
	for _, w := range s.workers {
		s.send(w, control.Message{Type: control.TypeStop})
	}
	if s.first.pid != 0 && len(s.workers) == 0 {
		syscall.Kill(s.first.pid, syscall.SIGTERM)
	}
	s.abandon("the program is stopping")
}

func (s *supervisor) killAll() {
	for _, group := range s.groups {
		syscall.Kill(-group, syscall.SIGKILL)
	}
}

// end makes sure that nothing is left.
func (s *supervisor) end() {
	if d, ok := s.builder.(*build.Direct); ok {
		d.Close()
	}
	for end := time.Now().Add(2 * time.Second); !s.reaper.childless() && time.Now().Before(end); {
		time.Sleep(2 * time.Millisecond)
	}
	if s.serving != nil && s.code == 0 {
		if status, ok := s.reaper.status(s.serving.pid); ok && status != 0 {
			s.code = max(1, status.ExitStatus())
		}
	}
	s.killAll()
	for end := time.Now().Add(time.Second); !s.reaper.childless() && time.Now().Before(end); {
		time.Sleep(2 * time.Millisecond)
	}
	os.Remove(control.Socket(s.opts.RunDir))
}

// startFirst starts a generation that nothing came before.
func (s *supervisor) startFirst(binary string) error {
	s.number++
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	env := handoff.FirstEnv(s.number, 3)
	pid, done, err := s.reaper.spawn(binary, s.opts.WorkerArgs, env, false, null, os.Stdout, os.Stderr, s.locks.workers)
	if err != nil {
		return fmt.Errorf("start %s: %w", binary, err)
	}
	s.binaries[s.number] = binary
	s.first = firstWorker{pid, done}
	s.groups = append(s.groups, pid)
	return nil
}

// firstExited is called when a process that was started here has ended.
func (s *supervisor) firstExited(status syscall.WaitStatus) {
	pid := s.first.pid
	s.first = firstWorker{}
	if s.everyone || s.stopping {
		if s.stopping && s.code == 0 && s.deadline != nil && status.ExitStatus() > 0 {
			s.code = status.ExitStatus()
		}
		s.checkAlive()
		return
	}
	s.say("the program could not start (process %d: %s)", pid, describe(status))
	s.stopping = true
	s.code = max(1, status.ExitStatus())
}

// listen makes the control socket, which only this user may use.
func (s *supervisor) listen() error {
	path := control.Socket(s.opts.RunDir)
	os.Remove(path) // left behind by a killed supervisor: we hold the lock
	mask := syscall.Umask(0o177)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(mask)
	if err != nil {
		abs, _ := filepath.Abs(path)
		return fmt.Errorf("run_dir: control socket %s: %w", abs, err)
	}
	s.control = ln
	go s.accept(ln)
	return nil
}

// restoreRunDir makes the run_dir again if somebody has removed it, as
// cleaners of temporary folders do. The workers there are hold a lock that
// nobody can find any more; those to come inherit it.
func (s *supervisor) restoreRunDir() {
	if _, err := os.Stat(control.Socket(s.opts.RunDir)); !errors.Is(err, os.ErrNotExist) {
		return
	}
	if _, err := os.Stat(filepath.Join(s.opts.RunDir, "lock")); errors.Is(err, os.ErrNotExist) {
		fresh, err := lockRunDir(s.opts.RunDir, s.say)
		if err != nil {
			s.say("the run_dir is gone and cannot be made again: %v", err)
			return
		}
		s.locks.release()
		s.locks = fresh
	}
	old := s.control
	if err := s.listen(); err != nil {
		s.say("the control socket is gone and cannot be made again: %v", err)
		return
	}
	old.SetUnlinkOnClose(false) // there is another of this name
	old.Close()
	s.say("somebody had removed the run_dir: it is there again")
	if s.serving != nil {
		s.keep(s.serving)
	}
}

func (s *supervisor) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		go func() {
			c, hello, err := control.Accept(conn)
			if err != nil {
				s.opts.Log.Warn("refused a connection to the control socket", "err", err)
				return
			}
			if hello.Role == control.RoleWorker {
				s.worker(c, hello)
			} else {
				s.client(c)
			}
			c.Close()
		}()
	}
}

// worker serves the link of one worker, in its own goroutine.
func (s *supervisor) worker(c *control.Conn, hello *control.Hello) {
	w := &worker{generation: hello.Generation, pid: hello.PID, conn: c}
	s.do(func() {
		w.build = buildID(s.binaries[w.generation])
		s.workers[w.generation] = w
		s.send(w, control.Message{Type: control.TypeKnown})
		if s.stopping {
			s.send(w, control.Message{Type: control.TypeStop})
		}
	})
	for {
		m, err := c.Receive()
		if errors.Is(err, control.ErrGarbled) {
			s.opts.Log.Warn("passed over a message", "generation", w.generation, "err", err)
			continue
		}
		if err != nil {
			break
		}
		s.do(func() { s.heard(w, m) })
	}
	s.do(func() { s.gone(w) })
}

// send tells a worker something. If it is gone, its link will say so.
func (s *supervisor) send(w *worker, m control.Message) {
	failpoint.At(failpoint.Supervisor, "before", m.Type)
	w.conn.Send(m)
	failpoint.At(failpoint.Supervisor, "after", m.Type)
}

// heard handles a worker's message.
func (s *supervisor) heard(w *worker, m control.Message) {
	failpoint.At(failpoint.Supervisor, "on", m.Type)
	switch {
	case m.Type == control.TypeServing && m.Serving != nil:
		fresh := w.serving == nil
		w.serving = m.Serving
		if fresh && w.generation != s.beaten { // else its last words come late: it is dead
			s.takesOver(w)
		}
	case m.Type == control.TypeOutcome && m.Outcome != nil && w.serving != nil:
		s.beaten = m.Outcome.Generation
		s.carriesOn(w)
		s.answered(w)
		s.upgraded(*m.Outcome)
	case m.Type == control.TypeStage && m.Stage != nil:
		s.staged(w, *m.Stage)
	case m.Type == control.TypeSettled && m.Settled != nil:
		if s.proving != nil && s.proving.generation == m.Settled.Generation {
			s.proved(m.Settled.Probation)
		}
	case m.Type == control.TypeDrained && m.Drained != nil:
		if s.last != nil && s.last.Generation == m.Drained.Generation {
			s.last.Cut = m.Drained.Cut
		}
		if m.Drained.Cut > 0 {
			s.say("generation %d has cut %d connections that could not move and were still open after app.drain", w.generation, m.Drained.Cut)
		}
	case m.Type == control.TypeRepair:
		s.repair(w)
	case m.Type == control.TypeEvent && m.Event != nil:
		s.publish(*m.Event)
	case m.Type == control.TypeStatus && m.Status != nil:
		for _, answer := range s.answers {
			answer <- *m.Status
		}
		s.answers = nil
		if s.asked == w {
			s.asked = nil
		}
	}
}

// takesOver is called when a generation serves for the first time.
func (s *supervisor) takesOver(w *worker) {
	s.serving, s.everyone = w, true
	s.keep(w)
	s.stable(w)
	s.crash.mayOlder = w.serving.RestartOlderBuild
	s.crash.startLimit = 2 * time.Duration(w.serving.StopMS) * time.Millisecond
	s.setHotReload(w.serving.HotReload)
	if o := w.serving.Outcome; o != nil {
		s.upgraded(*o)
		return
	}
	s.restarted(w)
	address := w.serving.Listen[0]
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	s.say("generation %d serves on %s (process %d)", w.generation, address, w.pid)
	s.startWaiting()
}

// carriesOn is called when a generation goes on to serve, or serves again.
func (s *supervisor) carriesOn(w *worker) {
	if s.lastServed != w.generation { // another had taken over
		s.older = s.oldest
	}
	s.serving, s.lastServed = w, w.generation
	s.crash.mayOlder = w.serving.RestartOlderBuild
	s.setHotReload(w.serving.HotReload)
}

// gone is called when a worker's link has ended, which is when it has died.
func (s *supervisor) gone(w *worker) {
	w.conn.Close()
	if w.watchdog != nil {
		w.watchdog.Stop()
	}
	if s.workers[w.generation] == w {
		delete(s.workers, w.generation)
	}
	if s.job == nil {
		s.prune()
	}
	if s.serving == w {
		for _, answer := range s.answers {
			close(answer)
		}
		s.answers = nil
	}
	switch {
	case s.serving != w && len(s.workers) > 0:
	case s.stopping:
	case len(s.workers) > 0: // one of them is about to say that it serves
		s.hurry(w)
	case s.everyone:
		if s.serving != nil {
			s.lost(s.serving)
		}
		s.serving = nil
	}
	if s.first.pid != w.pid {
		s.checkAlive()
	}
}

// hurry has those that are left go on without w, which served: one that still
// drains ends, and one that was about to take over gets the time that a stop
// has. Those that are in a step of an upgrade have their own limits.
func (s *supervisor) hurry(w *worker) {
	for _, other := range s.workers {
		s.send(other, control.Message{Type: control.TypeSettle})
	}
	limit := time.Duration(w.serving.StopMS)*time.Millisecond + answerTime
	time.AfterFunc(limit, func() {
		s.do(func() {
			for _, other := range s.workers {
				if s.serving == w && other.serving == nil && other.watchdog == nil {
					s.say("generation %d (process %d) has not taken over %v after generation %d died: killing it", other.generation, other.pid, limit, w.generation)
					kill(other.pid)
				}
			}
		})
	})
}

// publish numbers an event and keeps it for those who ask.
func (s *supervisor) publish(e control.Event) {
	s.seq++
	e.Seq = s.seq
	s.events = append(s.events, e)
	if len(s.events) > 1000 {
		s.events = slices.Clone(s.events[len(s.events)-1000:])
	}
	for f := range s.followers {
		select {
		case f <- e:
		default: // it reads too slowly: end it rather than leave a gap
			close(f)
			delete(s.followers, f)
		}
	}
}

// setHotReload begins or ends the watching.
func (s *supervisor) setHotReload(on bool) {
	switch {
	case !on && s.watcher != nil:
		s.watcher.Close()
		s.watcher = nil
		fallthrough
	case !on && !s.saidIgnoring:
		s.saidIgnoring = true
		s.opts.Log.Info(logIgnoring)
	case on && s.watcher == nil:
		s.saidIgnoring = false
		if s.inputs == nil { // the first look finds out what the sources are
			s.set = watch.Set{Files: []string{absolute(s.opts.ConfigFile)}}
		}
		s.watcher = watch.New(s.opts.Log)
		s.watcher.Watch(s.set)
	}
}
