//go:build unix

package supervisor

import (
	"errors"
	"slices"

	"example.org/orchestrator/app/internal/control"
)

var (
	errStopping   = errors.New("the program is stopping")
	errNotStarted = errors.New("the program could not start")
	errTimeout    = errors.New("the reload timed out")
)

// request handles a request for a reload. At most one job runs and one request
// waits; a newer request supersedes the waiting one.
func (s *supervisor) request(r *request) {
	now := s.state()
	if now == stopping {
		s.turnAway(r, endRefused, errStopping.Error())
		return
	}
	if limit := r.limit(); limit > 0 {
		r.timer = s.after(limit, requestExpired{r})
	}
	fromSources := r.reload.Binary == "" && (s.plan.watcher != nil || r.reload.Build)
	switch placeFor(s.job, now, now == recovering && s.crashes.looping() || s.workers.notStarted, fromSources) {
	case placeStart:
		s.start(&job{requests: []*request{r}})
	case placeRetry:
		s.start(&job{requests: append(s.job.requests, r)})
	case placeJoin:
		s.job.requests = append(s.job.requests, r)
	case placeQueue:
		s.wait(r)
	}
}

// wait puts r in the queue.
func (s *supervisor) wait(r *request) {
	if superseded := s.queue.put(r); superseded != nil {
		s.turnAway(superseded, endSuperseded, "a newer reload was asked for")
	}
}

// turnAway answers a request with an outcome that no job gave.
func (s *supervisor) turnAway(r *request, end ending, why string) {
	r.answer(conclude(facts{end: end, err: why, serving: s.workers.number()}))
}

// expire handles the timeout of r. It gives up what r waits for, unless that has
// committed or others want it.
func (s *supervisor) expire(r *request) {
	j := s.job
	switch {
	case s.queue.drop(r):
		s.turnAway(r, endRefused, errTimeout.Error())
	case j == nil || !slices.Contains(j.requests, r):
	case j.saved || len(j.requests) > 1:
		j.requests = slices.DeleteFunc(j.requests, func(other *request) bool { return other == r })
		s.turnAway(r, endRefused, errTimeout.Error()+"; the reload goes on, for other requests or a save")
	default:
		j.expired = errTimeout
		j.end(errTimeout)
		if w := s.workers.serving; j.phase == upgradePhase && w != nil {
			s.send(w, control.Message{Type: control.TypeCancel, Error: errTimeout.Error()})
		}
	}
}
