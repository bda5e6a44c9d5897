//go:build unix

package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/wire"
	"example.org/orchestrator/handoff/failpoint"
)

// worker is a generation's process, for as long as its link lasts.
type worker struct {
	generation int
	pid        int
	build      string
	conn       *wire.Conn
	out        *wire.Queue      // sends on conn
	says       *control.Serving // its latest description of itself; nil until it serves
	stage      *control.Stage   // of the upgrade that it performs; nil for none
	watchdog   *time.Timer      // fires when the stage takes too long
}

// stopTime is the longest that a graceful stop of w may take.
func (w *worker) stopTime() time.Duration {
	return time.Duration(w.says.StopMS) * time.Millisecond
}

// enter begins a stage of an upgrade; nil for none. timer fires when the stage
// takes too long; nil for no limit.
func (w *worker) enter(stage *control.Stage, timer *time.Timer) {
	w.unwatch()
	w.stage, w.watchdog = stage, timer
}

// unwatch stops the watchdog. w stays in its stage.
func (w *worker) unwatch() {
	if w.watchdog != nil {
		w.watchdog.Stop()
		w.watchdog = nil
	}
}

// startTime is the longest that a start of its build may take.
func (w *worker) startTime() time.Duration {
	return max(time.Duration(w.says.StartMS)*time.Millisecond, 2*w.stopTime())
}

// workers holds the processes of the program that are alive, as far as is known.
type workers struct {
	linked      map[int]*worker // by generation
	serving     *worker         // nil before the first one and after a crash
	everServed  bool
	waited      bool    // it has waited for a change of the sources, or will
	notStarted  bool    // development: the first generation could not start, and a change of the sources starts another
	wantsRepair *worker // asked for a fresh process of its build; nil for none
	first       firstProcess
	groups      []int // process groups to kill
	asking      statusQuery
	following   bool // somebody wants the events of modules

	// discarded is the last candidate that an old generation has given up. A
	// message that still arrives from it was sent before it was killed.
	discarded int
}

// firstProcess is a process that the supervisor itself started and waits for.
type firstProcess struct {
	pid    int // 0 for none
	exited <-chan proc.Status
}

// number returns the number of the serving generation, 0 for none.
func (ws *workers) number() int {
	if ws.serving == nil {
		return 0
	}
	return ws.serving.generation
}

// none reports whether no process is left.
func (ws *workers) none() bool { return len(ws.linked) == 0 && ws.first.pid == 0 }

// accept serves every connection to ln until ln is closed.
func (s *supervisor) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-time.After(10 * time.Millisecond):
				continue
			case <-s.ended:
				return
			}
		}
		s.tasks.Go(func() { s.greet(conn) })
	}
}

// lastAnswerTime is how long a client has to read its answer when the loop has
// ended.
const lastAnswerTime = time.Second

// greet serves one connection until it or the loop ends.
func (s *supervisor) greet(conn net.Conn) {
	done := make(chan struct{})
	defer close(done)
	s.tasks.Go(func() {
		select {
		case <-done:
		case <-s.ended:
			conn.SetReadDeadline(time.Unix(1, 0)) // read nothing more
			select {
			case <-done:
			case <-time.After(lastAnswerTime):
			}
		}
		conn.Close()
	})
	if uid, ok := peerUID(conn); ok && uid != 0 && uid != os.Geteuid() {
		s.opts.Log.Warn("refused a connection to the control socket", "user", uid)
		return
	}
	c, hello, err := wire.Accept(conn)
	if err != nil {
		s.opts.Log.Warn("refused a connection to the control socket", "err", err)
		return
	}
	switch hello.Role {
	case wire.RoleWorker:
		s.serveWorker(c, hello)
	case wire.RoleSockets:
		s.receiveSockets(c, hello)
	default:
		s.serveClient(c)
	}
}

// serveWorker reads the link of one worker until it ends.
func (s *supervisor) serveWorker(c *wire.Conn, hello *wire.Hello) {
	w := &worker{generation: hello.Generation, pid: hello.PID, conn: c, out: wire.NewQueue(c)}
	defer w.out.Close()
	s.post(workerCame{w})
	for {
		var m control.Message
		err := c.Receive(&m)
		if errors.Is(err, wire.ErrGarbled) {
			s.opts.Log.Warn("ignored a message", "generation", w.generation, "err", err)
			continue
		}
		if err != nil {
			break
		}
		s.post(workerSaid{w, m})
	}
	s.post(workerGone{w})
}

// send sends a worker a message. If the worker is gone, its link will say so.
func (s *supervisor) send(w *worker, m control.Message) {
	failpoint.At(failpoint.Supervisor, "before", m.Type)
	w.out.Push(m)
	failpoint.At(failpoint.Supervisor, "after", m.Type)
}

// came is called when a worker has connected.
func (s *supervisor) came(w *worker) {
	if !slices.Contains(s.workers.groups, w.pid) { // a candidate leads a group of its own
		s.workers.groups = append(s.workers.groups, w.pid)
	}
	w.build = buildID(s.builds.binary[w.generation])
	s.workers.linked[w.generation] = w
	s.send(w, control.Message{Type: control.TypeKnown})
	if s.workers.following {
		s.send(w, control.Message{Type: control.TypeFollow, Follow: true})
	}
	if s.stop.begun {
		s.send(w, control.Message{Type: control.TypeStop})
	}
}

// hearServing is called when w serves: for the first time, or with modules that
// stopped or run again.
func (s *supervisor) hearServing(w *worker, m control.Message) {
	if m.Serving == nil {
		return
	}
	first := w.says == nil
	w.says = m.Serving
	if first && w.generation != s.workers.discarded {
		s.servesFirst(w)
	}
}

// servesFirst is called when a generation serves for the first time.
func (s *supervisor) servesFirst(w *worker) {
	before := s.workers.serving
	s.workers.serving, s.workers.everServed = w, true
	s.sockets.serve()
	s.keep(w)
	s.after(stableTime, servedLong{w})
	s.crashes.mayOlder = w.says.RestartOlderBuild
	s.crashes.startLimit = w.startTime()
	s.setHotReload(w.says.HotReload)
	if r := w.says.Report; r != nil {
		report := *r
		report.Notes = append(moves(before, w), report.Notes...)
		s.reported(report)
		return
	}
	s.restarted(w)
	s.printf("generation %d serves on %s (process %d)", w.generation, url(w.says.Listen[0]), w.pid)
	s.next()
}

// url returns the address of HTTP as people open it.
func url(address string) string {
	if strings.Contains(address, "://") {
		return address
	}
	return "http://" + address
}

// moves says which listeners have another address than before.
func moves(before, after *worker) (notes []string) {
	if before == nil || before.says == nil {
		return nil
	}
	if was, is := before.says.Listen[0], after.says.Listen[0]; was != is {
		notes = append(notes, fmt.Sprintf("HTTP is now on %s, no longer on %s", is, was))
	}
	was := map[string]string{}
	for _, m := range before.says.Modules {
		was[m.Name] = m.Listen
	}
	for _, m := range after.says.Modules {
		old, known := was[m.Name]
		switch {
		case !known || old == m.Listen:
		case m.Listen == "":
			notes = append(notes, fmt.Sprintf("module %s no longer listens on %s", m.Name, old))
		case old == "":
			notes = append(notes, fmt.Sprintf("module %s now listens on %s", m.Name, m.Listen))
		default:
			notes = append(notes, fmt.Sprintf("module %s is now on %s, no longer on %s", m.Name, m.Listen, old))
		}
	}
	return notes
}

// servesOn is called when a generation still serves, or serves again.
func (s *supervisor) servesOn(w *worker) {
	s.builds.servesOn(w.generation)
	s.workers.serving = w
	s.crashes.mayOlder = w.says.RestartOlderBuild
	s.setHotReload(w.says.HotReload)
}

// hearReport is called when an upgrade has failed and w, the old generation,
// serves.
func (s *supervisor) hearReport(w *worker, m control.Message) {
	if m.Report == nil || w.says == nil {
		return
	}
	s.workers.discarded = m.Report.Generation
	s.servesOn(w)
	w.enter(nil, nil)
	s.reported(*m.Report)
}

// hearStage is called when w begins a stage of an upgrade. If w exceeds the
// stage's limit it is stuck and is killed: nothing else would end the stage.
func (s *supervisor) hearStage(w *worker, m control.Message) {
	if m.Stage == nil {
		return
	}
	var timer *time.Timer
	if limit := m.Stage.Limit(); limit > 0 {
		timer = s.after(limit+answerTime, stageOver{w, m.Stage})
	}
	w.enter(m.Stage, timer)
}

// stuck kills a worker that is still in a stage after its limit.
func (s *supervisor) stuck(w *worker, stage *control.Stage) {
	if w.stage != stage || s.workers.linked[w.generation] != w {
		return
	}
	s.printf("generation %d (process %d) is stuck in %s for %v: killing it", w.generation, w.pid, stage.Name, stage.Limit()+answerTime)
	s.sys.kill(w.pid)
}

// hearFinal is called when a candidate has become final.
func (s *supervisor) hearFinal(_ *worker, m control.Message) {
	switch {
	case m.Final == nil:
	case s.unconfirmed != nil && s.unconfirmed.generation == m.Final.Generation:
		s.endStandby(m.Final.Probation)
	case s.last != nil && s.last.Generation == m.Final.Generation && s.last.Probation == client.ProbationPending:
		s.last.Probation = m.Final.Probation // late
	}
	s.dropSockets()
}

// hearDrained is called when w, which was replaced, has no connections left.
func (s *supervisor) hearDrained(w *worker, m control.Message) {
	if m.Drained == nil {
		return
	}
	if s.last != nil && s.last.Generation == m.Drained.Generation {
		s.last.Closed = m.Drained.Closed
	}
	if s.unconfirmed != nil && s.unconfirmed.generation == m.Drained.Generation {
		s.unconfirmed.outcome.Closed = m.Drained.Closed
	}
	if m.Drained.Closed > 0 {
		s.printf("generation %d has closed %d connections that could not move and were still open after app.drain", w.generation, m.Drained.Closed)
	}
}

func (s *supervisor) hearRepair(w *worker, _ control.Message) { s.repair(w) }

func (s *supervisor) hearEvent(_ *worker, m control.Message) {
	if m.Event != nil {
		s.events.publish(*m.Event)
	}
}

func (s *supervisor) hearStatus(w *worker, m control.Message) {
	if m.Status != nil {
		s.workers.asking.answered(w, *m.Status)
	}
}

// gone is called when a worker has died.
func (s *supervisor) gone(w *worker) {
	ws := &s.workers
	w.conn.Close()
	w.unwatch()
	if ws.linked[w.generation] == w {
		delete(ws.linked, w.generation)
	}
	if s.job == nil {
		s.prune()
	}
	ws.groups = slices.DeleteFunc(ws.groups, s.sys.groupGone) // their numbers may be reused
	if ws.serving == w {
		s.workers.asking.abandon()
	}
	switch {
	case s.stop.begun || ws.serving != w && len(ws.linked) > 0:
	case len(ws.linked) > 0: // one of them is about to say that it serves
		s.servingDied(w)
	case ws.everServed:
		if ws.serving != nil {
			s.crashed(ws.serving)
		}
		ws.serving = nil
	}
	s.awaitConfirmation()
	if ws.first.pid != w.pid {
		s.restartIfGone()
	}
}

// confirmTime is how long a generation may take to say that it is final once the one
// before it is gone.
const confirmTime = 10 * time.Second

// awaitConfirmation begins that time if the generation before is gone.
func (s *supervisor) awaitConfirmation() {
	ws := &s.workers
	if u := s.unconfirmed; u != nil && len(ws.linked) == 1 && ws.linked[u.generation] != nil {
		s.after(confirmTime, confirmationLate{u.generation})
	}
}

// notConfirmed ends the wait for a generation that does not say that it is final. It
// cannot be anything else, but it may be stopped, or hang.
func (s *supervisor) notConfirmed(generation int) {
	u := s.unconfirmed
	if u == nil || u.generation != generation || s.stop.begun {
		return
	}
	note := fmt.Sprintf("generation %d does not say that it is final, though the one before it is gone: is it stopped?", generation)
	s.printf("%s", note)
	u.outcome.Notes = append(u.outcome.Notes, note)
	if s.last != nil && s.last.Generation == generation {
		s.last.Notes = append(s.last.Notes, note)
	}
	s.endStandby(client.ProbationPending)
}

// servingDied is called when w died while it served and others are left. One that
// drains ends at once; one that was about to take over has as long as a stop may
// take. Those in a stage of an upgrade keep its limit.
func (s *supervisor) servingDied(w *worker) {
	for _, other := range s.workers.linked {
		s.send(other, control.Message{Type: control.TypeExpedite})
	}
	limit := w.startTime()/2 + answerTime
	s.after(limit, takeoverLate{w, limit})
}

// killLate kills a generation that should have taken over from died.
func (s *supervisor) killLate(died *worker, limit time.Duration) {
	for _, other := range s.workers.linked {
		if s.workers.serving == died && other.says == nil && other.watchdog == nil {
			s.printf("generation %d (process %d) has not taken over %v after generation %d died: killing it", other.generation, other.pid, limit, died.generation)
			s.sys.kill(other.pid)
		}
	}
}

// statusQuery holds the clients that wait for the serving worker's part of a
// status.
type statusQuery struct {
	waiting []chan client.Status
	asked   *worker // the worker that was asked; nil for none
}

// maxStatusWaiting is how many clients may wait for a worker that does not
// answer.
const maxStatusWaiting = 100

// add adds a waiting client. It reports whether w has to be asked: one answer
// serves all clients.
func (q *statusQuery) add(w *worker, answer chan client.Status) (ask bool) {
	if len(q.waiting) >= maxStatusWaiting {
		return false
	}
	q.waiting = append(q.waiting, answer)
	ask = q.asked != w
	q.asked = w
	return ask
}

func (q *statusQuery) answered(w *worker, status client.Status) {
	for _, answer := range q.waiting {
		answer <- status // each is buffered
	}
	q.waiting = nil
	if q.asked == w {
		q.asked = nil
	}
}

// abandon stops waiting for a worker that has died.
func (q *statusQuery) abandon() {
	for _, answer := range q.waiting {
		close(answer)
	}
	q.waiting = nil
}

// printf prints a line for people. It never blocks.
func (s *supervisor) printf(format string, args ...any) {
	fmt.Fprintf(s.opts.Out, format+"\n", args...)
}
