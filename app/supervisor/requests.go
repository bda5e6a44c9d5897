//go:build unix

package supervisor

import (
	"errors"
	"slices"
	"time"

	"orchestrator/app/control"
)

const defaultTimeout = 15 * time.Second

// request is somebody's wish to reload.
type request struct {
	reload control.ReloadRequest
	why    string
	reply  chan control.Outcome // receives the outcome; nil if nobody waits
	timer  *time.Timer
}

func (r *request) answer(o control.Outcome) {
	if r.timer != nil {
		r.timer.Stop()
	}
	if r.reply != nil {
		r.reply <- o
	}
}

// request asks for a reload. There is one attempt at a time and one that
// waits; a later request takes its place.
func (s *supervisor) request(r *request) {
	if s.stopping {
		r.answer(control.Outcome{Outcome: control.Rejected, Error: "the program is stopping"})
		return
	}
	r.timer = time.AfterFunc(r.limit(), func() { s.do(func() { s.expire(r) }) })
	fromSources := r.reload.Binary == "" && (s.watcher != nil || r.reload.Build)
	switch {
	case s.job == nil && (s.serving != nil || s.crashed() && s.crash.inARow > 1):
		s.start(&job{requests: []*request{r}})
	case s.job == nil || s.job.initial: // until a generation serves
		s.wait(r)
	case s.job.phase == settling:
		s.quiet = nil
		s.start(&job{requests: append(s.job.requests, r)})
	case fromSources && s.job.phase < upgrading:
		s.job.requests = append(s.job.requests, r)
	default:
		s.wait(r)
	}
}

func (r *request) limit() time.Duration {
	if r.reload.TimeoutMS > 0 {
		return time.Duration(r.reload.TimeoutMS) * time.Millisecond
	}
	return defaultTimeout
}

// wait puts r in the queue of one.
func (s *supervisor) wait(r *request) {
	if s.waiting != nil {
		s.waiting.answer(s.outcome(control.Superseded, "a newer reload was asked for"))
	}
	s.waiting = r
}

// startWaiting begins with what waits, or looks whether there is anything to do.
func (s *supervisor) startWaiting() {
	if r := s.waiting; r != nil {
		s.waiting = nil
		s.start(&job{requests: []*request{r}})
		return
	}
	if w := s.unwell; w != nil && w == s.serving {
		s.unwell = nil
		s.repair(w)
		return
	}
	if s.watcher != nil {
		s.look()
	}
}

// expire gives up what r waits for, unless it is committed, or others want it.
func (s *supervisor) expire(r *request) {
	cause := errors.New("the timeout of the reload is over")
	switch {
	case s.waiting == r:
		s.waiting = nil
		r.answer(s.outcome(control.Rejected, cause.Error()))
	case s.job != nil && slices.Contains(s.job.requests, r) && (s.job.saved || len(s.job.requests) > 1):
		s.job.requests = slices.DeleteFunc(s.job.requests, func(other *request) bool { return other == r })
		r.answer(s.outcome(control.Rejected, cause.Error()+"; it goes on, as it was asked for by others or by a save"))
	case s.job != nil && slices.Contains(s.job.requests, r):
		s.job.expired = cause
		if s.job.cancel != nil {
			s.job.cancel(cause)
		}
		if s.job.phase == upgrading && s.serving != nil {
			s.serving.conn.Send(control.Message{Type: control.TypeCancel, Error: cause.Error()})
		}
	}
}

// abandon ends whatever is being tried.
func (s *supervisor) abandon(why string) {
	o := s.outcome(control.Rejected, why)
	if s.job != nil {
		if s.job.cancel != nil {
			s.job.cancel(errors.New(why))
		}
		for _, r := range s.job.requests {
			r.answer(o)
		}
		s.job = nil
	}
	if s.waiting != nil {
		s.waiting.answer(o)
		s.waiting = nil
	}
	if s.proving != nil {
		s.proved(control.ProbationCut)
	}
}
