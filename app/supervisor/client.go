//go:build unix

package supervisor

import (
	"os"
	"path/filepath"
	"time"

	"orchestrator/app/control"
)

// client answers one command-line client, in its own goroutine.
func (s *supervisor) client(c *control.Conn) {
	m, err := c.Receive()
	if err != nil {
		return
	}
	switch {
	case m.Type == control.TypeReload && m.Reload != nil:
		r := &request{reload: *m.Reload, why: "reload", reply: make(chan control.Outcome, 1)}
		s.do(func() { s.request(r) })
		outcome := <-r.reply
		c.Send(control.Message{Type: control.TypeOutcome, Outcome: &outcome})
	case m.Type == control.TypeStatus:
		status := s.ask()
		c.Send(control.Message{Type: control.TypeStatus, Status: &status})
	case m.Type == control.TypeEvents && m.Events != nil:
		s.follow(c, m.Events.Follow)
	default:
		c.Send(control.Message{Type: control.TypeError, Error: "this supervisor does not know \"" + m.Type + "\": it may be older than this program; restart run"})
	}
}

// maxAnswers bounds what waits for a worker that does not answer.
const maxAnswers = 100

// ask puts a status together, with what only the worker knows if it answers.
func (s *supervisor) ask() control.Status {
	reply := make(chan control.Status, 1)
	more := make(chan control.Status, 1)
	s.do(func() {
		switch {
		case s.serving == nil:
			close(more)
		case len(s.answers) < maxAnswers:
			s.answers = append(s.answers, more)
			if s.asked != s.serving { // one answer is for all
				s.asked = s.serving
				s.serving.conn.Send(control.Message{Type: control.TypeStatus})
			}
		}
		reply <- s.status()
	})
	status := <-reply
	select {
	case worker := <-more:
		status.Goroutines = worker.Goroutines
	case <-time.After(time.Second):
	}
	return status
}

func (s *supervisor) status() control.Status {
	st := control.Status{
		State:         "starting",
		SupervisorPID: os.Getpid(),
		HotReload:     s.watcher != nil,
		Listen:        []string{},
		Modules:       []control.Module{},
	}
	if s.crash.last != nil {
		last := *s.crash.last
		st.LastCrash = &last
	}
	if s.last != nil {
		last := *s.last // the loop may change its own
		st.LastReload = &last
	}
	if w := s.serving; w != nil && w.serving != nil {
		st.State = "serving"
		if w.serving.Degraded {
			st.State = "degraded"
		}
		if s.job != nil && s.job.phase == upgrading {
			st.State = "reloading"
		}
		st.Name, st.Version = w.serving.Name, w.serving.Version
		st.Generation, st.PID, st.Build = w.generation, w.pid, w.build
		st.Listen, st.Modules = w.serving.Listen, w.serving.Modules
	}
	if s.stopping {
		st.State = "stopping"
	}
	return st
}

// follow sends the events there are and, if asked, those to come.
func (s *supervisor) follow(c *control.Conn, on bool) {
	type subscription struct {
		past []control.Event
		live chan control.Event
	}
	reply := make(chan subscription, 1)
	live := make(chan control.Event, 1024)
	s.do(func() {
		if on {
			s.followers[live] = true
		} else {
			close(live)
		}
		reply <- subscription{append([]control.Event(nil), s.events...), live}
	})
	sub := <-reply
	if on {
		go func() { // the client says nothing more; the end of its link is its leave
			c.Receive()
			s.do(func() {
				if s.followers[live] {
					delete(s.followers, live)
					close(live)
				}
			})
		}()
	}
	for _, e := range sub.past {
		if c.Send(control.Message{Type: control.TypeEvent, Event: &e}) != nil {
			return
		}
	}
	for e := range sub.live {
		if c.Send(control.Message{Type: control.TypeEvent, Event: &e}) != nil {
			return
		}
	}
	c.Send(control.Message{Type: control.TypeEnd})
}

// buildID is how a build is called: the name of its folder, or of the binary.
func buildID(binary string) string {
	if dir := filepath.Dir(binary); filepath.Base(filepath.Dir(dir)) == "builds" {
		return filepath.Base(dir)
	}
	return filepath.Base(binary)
}
