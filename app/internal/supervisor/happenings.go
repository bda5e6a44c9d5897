//go:build unix

package supervisor

import (
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/sources"
)

// happening is something that the loop must react to. Other goroutines post
// happenings; only the loop handles them, so handling needs no lock.
type happening interface{ handle(*supervisor) }

// post makes the loop handle h. It returns false if the loop has ended.
func (m *mailbox) post(h happening) bool {
	select {
	case m.inbox <- h:
		return true
	case <-m.ended:
		return false
	}
}

// after makes the loop handle h after d.
func (m *mailbox) after(d time.Duration, h happening) *time.Timer {
	return time.AfterFunc(d, func() { m.post(h) })
}

// Happenings on a worker's link.
type (
	workerCame struct{ w *worker }
	workerSaid struct {
		w *worker
		m control.Message
	}
	workerGone  struct{ w *worker } // its link has ended, so it has died
	socketsCame struct {
		generation int
		set        socketSet
	}
)

func (h workerCame) handle(s *supervisor)  { s.came(h.w) }
func (h workerSaid) handle(s *supervisor)  { s.hear(h.w, h.m) }
func (h workerGone) handle(s *supervisor)  { s.gone(h.w) }
func (h socketsCame) handle(s *supervisor) { s.socketsCame(h.generation, h.set) }

// Requests of clients.
type (
	reloadAsked struct{ r *request }
	statusAsked struct {
		answer chan client.Status
		worker chan client.Status // the worker's part; closed if there is none
	}
	eventsAsked struct {
		live chan client.Event // nil for the past events only
		all  bool              // those of modules too
		past chan []client.Event
	}
	eventsLeft struct{ live chan client.Event }
	stopAsked  struct {
		limit time.Duration // 0 for none of its own
		code  chan int      // receives the program's exit code at its end
	}
)

func (h reloadAsked) handle(s *supervisor) { s.request(h.r) }
func (h stopAsked) handle(s *supervisor)   { s.stopFor(h) }
func (h statusAsked) handle(s *supervisor) { s.answerStatus(h) }
func (h eventsAsked) handle(s *supervisor) {
	if h.live != nil {
		s.events.follow(h.live, h.all)
		s.tellFollowers()
	}
	h.past <- s.events.last()
}
func (h eventsLeft) handle(s *supervisor) {
	s.events.leave(h.live)
	s.tellFollowers()
}

// Results of work in the background. A result for a job is ignored if another
// is the present one.
type (
	builderMade struct {
		j       *job
		builder build.Builder
		err     error
	}
	listed struct {
		j       *job
		inputs  *sources.Inputs // on error, everything that a build may read
		now     *sources.Snapshot
		changed bool // the sources changed meanwhile
		err     error
	}
	built struct {
		j      *job
		binary string
		note   string
		took   time.Duration
		err    error
	}
	copied struct {
		generation int
		binary     string // the original
		kept       string // the copy
		err        error
	}
)

func (h builderMade) handle(s *supervisor) { s.builderMade(h) }
func (h listed) handle(s *supervisor)      { s.listed(h) }
func (h built) handle(s *supervisor)       { s.built(h) }
func (h copied) handle(s *supervisor)      { s.copied(h) }

// Happenings of timers.
type (
	requestExpired    struct{ r *request }
	configWaited      struct{ j *job } // for a half-written configuration
	upgradeUnanswered struct {
		j *job
		w *worker
	}
	stageOver struct {
		w     *worker
		stage *control.Stage
	}
	takeoverLate struct {
		died  *worker // the one that served
		limit time.Duration
	}
	retryDue         struct{ snap *sources.Snapshot } // these were refused
	confirmationLate struct{ generation int }
	restartDue       struct{ binary string }
	restartLate      struct {
		pid   int
		limit time.Duration
	}
	servedLong struct{ w *worker }
	queueOver  struct{ crash time.Time }
	stopOver   struct{}
)

func (h requestExpired) handle(s *supervisor) { s.expire(h.r) }
func (h configWaited) handle(s *supervisor) {
	if s.job == h.j {
		s.buildAnew()
	}
}
func (h upgradeUnanswered) handle(s *supervisor) { s.unanswered(h.j, h.w) }
func (h stageOver) handle(s *supervisor)         { s.stuck(h.w, h.stage) }
func (h takeoverLate) handle(s *supervisor)      { s.killLate(h.died, h.limit) }
func (h retryDue) handle(s *supervisor)          { s.retry(h.snap) }
func (h confirmationLate) handle(s *supervisor)  { s.notConfirmed(h.generation) }
func (h restartDue) handle(s *supervisor)        { s.restart(h.binary) }
func (h restartLate) handle(s *supervisor)       { s.killStart(h.pid, h.limit) }
func (h stopOver) handle(s *supervisor)          { s.stopTooLate() }
func (h queueOver) handle(s *supervisor)         { s.queueOver(h.crash) }
func (h servedLong) handle(s *supervisor) {
	if s.workers.serving == h.w {
		s.crashes.forget()
	}
}
