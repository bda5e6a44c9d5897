//go:build unix

package supervisor

import (
	"os"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/wire"
)

// workerAnswerTime is how long a status waits for the worker's part of it.
const workerAnswerTime = time.Second

// serveClient answers one command-line client, in a goroutine of its own.
func (s *supervisor) serveClient(c *wire.Conn) {
	var m control.Message
	if c.Receive(&m) != nil {
		return
	}
	switch {
	case m.Type == control.TypeReload && m.Reload != nil:
		r := &request{reload: *m.Reload, reply: make(chan client.Outcome, 1)}
		if !s.post(reloadAsked{r}) {
			return
		}
		var outcome client.Outcome
		select {
		case outcome = <-r.reply:
		case <-s.ended:
			select {
			case outcome = <-r.reply:
			default:
				return
			}
		}
		c.Send(control.Message{Type: control.TypeOutcome, Outcome: &outcome})
	case m.Type == control.TypeStatus:
		if status, ok := s.askStatus(); ok {
			c.Send(control.Message{Type: control.TypeStatus, Status: &status})
		}
	case m.Type == control.TypeStop && m.Stop != nil:
		q := stopAsked{time.Duration(m.Stop.TimeoutMS) * time.Millisecond, make(chan int, 1)}
		if !s.post(q) {
			return
		}
		<-s.ended
		select {
		case code := <-q.code:
			c.Send(control.Message{Type: control.TypeStopped, Stopped: &client.Stopped{Code: code}})
		default: // it came after the end
		}
	case m.Type == control.TypeEvents && m.Events != nil:
		s.sendEvents(c, *m.Events)
	default:
		c.Send(control.Message{Type: control.TypeError, Error: "this supervisor does not know \"" + m.Type + "\": it may be older than this program; restart run"})
	}
}

// askStatus returns a status, with the worker's part of it if the worker answers
// in time. ok is false if the loop has ended.
func (s *supervisor) askStatus() (status client.Status, ok bool) {
	q := statusAsked{make(chan client.Status, 1), make(chan client.Status, 1)}
	if !s.post(q) {
		return status, false
	}
	select {
	case status = <-q.answer:
	case <-s.ended:
		return status, false
	}
	select {
	case worker := <-q.worker:
		status.Goroutines = worker.Goroutines
	case <-time.After(workerAnswerTime):
	case <-s.ended:
	}
	return status, true
}

// answerStatus answers with the loop's part of a status, and asks the worker for
// the rest.
func (s *supervisor) answerStatus(q statusAsked) {
	if w := s.workers.serving; w == nil {
		close(q.worker)
	} else if s.workers.asking.add(w, q.worker) {
		s.send(w, control.Message{Type: control.TypeStatus})
	}
	q.answer <- s.status()
}

// status describes what runs. The loop does not change what it returns.
func (s *supervisor) status() client.Status {
	st := client.Status{
		State:         client.Starting,
		SupervisorPID: os.Getpid(),
		Config:        s.plan.config,
		HotReload:     s.plan.watcher != nil,
		Listen:        []string{},
		Modules:       []client.Module{},
	}
	if s.crashes.last != nil {
		last := *s.crashes.last
		st.LastCrash = &last
	}
	if s.last != nil {
		last := *s.last
		st.LastReload = &last
	}
	now := s.state()
	if w := s.workers.serving; w != nil && w.says != nil {
		st.State = client.Serving
		switch {
		case now == upgrading:
			st.State = client.Reloading
		case w.says.Degraded:
			st.State = client.Degraded
		}
		st.Name, st.Version = w.says.Name, w.says.Version
		st.Generation, st.PID, st.Build = w.generation, w.pid, w.build
		st.Listen, st.Modules = w.says.Listen, w.says.Modules
	}
	if now == stopping {
		st.State = client.Stopping
	}
	return st
}

// sendEvents sends the past events and, with follow, the future ones.
func (s *supervisor) sendEvents(c *wire.Conn, r client.EventsRequest) {
	follow := r.Follow
	q := eventsAsked{past: make(chan []client.Event, 1), all: r.All}
	if follow {
		q.live = make(chan client.Event, 1024)
	}
	if !s.post(q) {
		return
	}
	var past []client.Event
	select {
	case past = <-q.past:
	case <-s.ended:
		return
	}
	if follow {
		s.tasks.Go(func() { // the client sends nothing more: Receive returns when its link ends
			var m control.Message
			c.Receive(&m)
			s.post(eventsLeft{q.live})
		})
	}
	for _, e := range past {
		if c.Send(control.Message{Type: control.TypeEvent, Event: &e}) != nil {
			return
		}
	}
	for follow {
		select {
		case e, ok := <-q.live:
			if !ok {
				follow = false
			} else if c.Send(control.Message{Type: control.TypeEvent, Event: &e}) != nil {
				return
			}
		case <-s.ended:
			return
		}
	}
	c.Send(control.Message{Type: control.TypeEnd})
}

// tellFollowers tells the workers whether anybody wants the events of modules.
func (s *supervisor) tellFollowers() {
	want := s.events.wantsAll()
	if want == s.workers.following {
		return
	}
	s.workers.following = want
	for _, w := range s.workers.linked {
		s.send(w, control.Message{Type: control.TypeFollow, Follow: want})
	}
}
