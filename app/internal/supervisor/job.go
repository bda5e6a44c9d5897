//go:build unix

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/sources"
)

// phase is how far a job has come.
type phase int

const (
	listPhase    phase = iota // finding out what a build reads
	buildPhase                // building the snapshot snap
	upgradePhase              // the serving generation is handing over
	failedPhase               // failed, which is believed once the sources are quiet
)

// job is one attempt to bring the running program up to date, from its cause to
// its outcome.
type job struct {
	phase    phase
	initial  bool       // makes the first generation
	repair   bool       // starts the serving build again
	requests []*request // waiting for its outcome
	saved    bool       // begun by a save, not by a request
	forced   bool       // builds even if nothing changed
	began    time.Time

	snap     *sources.Snapshot // what is being built; nil for a given binary
	frozen   bool              // builds copies of the sources
	waited   bool              // has waited for a half-written configuration
	restarts int               // builds begun again because the sources changed
	again    bool              // the sources changed during the build

	paths   []string // files that changed since what serves was built
	trigger []string // paths, shortened for people
	changed []string // the packages of these files and those that import them
	unknown bool     // it is unknown which packages changed
	own     []string // changed packages that the supervisor runs too

	cancel    context.CancelCauseFunc // cancels the work in the background
	expired   error                   // set when its last request has expired
	buildTime time.Duration
	note      string // from the builder

	binary     string
	generation int // the one it tries to start; 0 before the upgrade

	failure *client.Outcome  // in failedPhase
	passing bool             // it failed for a reason that passes
	quiet   <-chan time.Time // in failedPhase: when to believe the failure
}

// end cancels the job's work in the background.
func (j *job) end(why error) {
	if j.cancel != nil {
		j.cancel(why)
	}
}

// toBinary makes the job an upgrade to binary, without a build.
func (j *job) toBinary(binary string) { j.binary, j.snap, j.unknown = binary, nil, true }

// overdue reports whether the next build must not be cancelled, so that a stream
// of saves cannot delay the job forever.
func (j *job) overdue() bool {
	return j.restarts >= maxCancelled || time.Since(j.began) >= maxWaiting && j.restarts > 0
}

// healed says that a mistake was undone: the last outcome is no longer how things are.
func (s *supervisor) healed() {
	n := s.workers.number()
	if n == 0 || s.last == nil || s.last.Good() {
		return
	}
	o := conclude(facts{end: endUnchanged, serving: n, generation: n})
	s.last = &o
	s.printf("undone: the sources are again those of generation %d, which serves", n)
}

// retry tries sources again that were refused, unless something else was tried since.
func (s *supervisor) retry(snap *sources.Snapshot) {
	if s.plan.refused != snap {
		return
	}
	s.plan.refused = nil
	if s.job == nil {
		s.next()
	}
}

// background returns a context for the job's work outside the loop.
func (j *job) background() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	j.cancel = cancel
	return ctx
}

var errChanged = errors.New("the sources changed")

// looks returns the channel that says when to look at the sources; nil for
// never.
func (s *supervisor) looks() <-chan struct{} {
	if s.plan.watcher == nil || s.stop.begun {
		return nil
	}
	return s.plan.watcher.Changed()
}

// look compares the sources with what is being built or serves.
func (s *supervisor) look() {
	snap, j := s.plan.look(), s.job
	alive := s.workers.serving != nil || s.state() == recovering || s.workers.notStarted
	switch s.plan.wants(snap, j, alive, time.Now()) {
	case wishMatches:
		if s.plan.refused != nil {
			s.healed()
		}
		s.plan.refused = nil
	case wishReload:
		s.start(&job{snap: snap})
	case wishCancel:
		j.again = true
		j.end(errChanged)
	case wishBuildAgain:
		j.again = true
	case wishRetry:
		s.start(&job{began: j.began, requests: j.requests, snap: snap})
	}
}

// start begins a job. Its snapshot, if it has one, was taken just now.
func (s *supervisor) start(j *job) {
	if j.began.IsZero() {
		j.began = time.Now()
	}
	s.job = j
	j.saved = len(j.requests) == 0
	var r client.ReloadRequest
	if !j.saved {
		r = j.requests[len(j.requests)-1].reload
	}
	switch {
	case r.Binary != "":
		j.toBinary(r.Binary)
		s.upgrade()
	case s.plan.watcher == nil && !r.Build:
		j.toBinary(s.opts.Binary)
		s.upgrade()
	case s.plan.builder == nil:
		s.makeBuilder()
	default:
		s.fromSources()
	}
}

// next starts what waits: a request, then a repair, then changed sources.
func (s *supervisor) next() {
	if r := s.queue.take(); r != nil {
		s.start(&job{requests: []*request{r}})
		return
	}
	if w := s.workers.wantsRepair; w != nil && w == s.workers.serving {
		s.workers.wantsRepair = nil
		s.repair(w)
		return
	}
	if s.plan.watcher != nil && !s.stop.begun {
		s.look()
	}
}

// endIfExpired ends the job, which is in this stage, if its last request has
// expired. It reports whether it did.
func (s *supervisor) endIfExpired(stage client.Stage) bool {
	if s.job.expired == nil {
		return false
	}
	s.failed(facts{end: endRefused, stage: stage, err: s.job.expired.Error()})
	return true
}

// quiet returns the channel that says when to believe a failure; nil for never.
func (s *supervisor) quiet() <-chan time.Time {
	if s.job == nil {
		return nil
	}
	return s.job.quiet
}

// failed ends the job: at once if a request waits for it, otherwise when the
// sources are quiet.
func (s *supervisor) failed(f facts) {
	j := s.job
	if j.initial { // something has to run
		s.builtFirst("", errors.New(f.err))
		return
	}
	o := s.conclude(f)
	j.passing = f.passing()
	if len(j.requests) > 0 || s.stop.begun {
		s.finish(o)
		return
	}
	j.phase, j.failure = failedPhase, &o
	j.quiet = time.After(s.plan.quietTime(j.snap))
}

// believe ends a job that has failed, or starts it again if the sources have
// changed since.
func (s *supervisor) believe() {
	j := s.job
	if s.plan.watcher != nil && !j.repair && j.snap != nil && !j.snap.Current(s.plan.set) {
		s.start(&job{began: j.began, snap: s.plan.look()})
		return
	}
	s.finish(*j.failure)
}

// conclude returns the outcome of the job, or of a request without one.
func (s *supervisor) conclude(f facts) client.Outcome {
	f.serving = s.workers.number()
	if j := s.job; j != nil {
		if f.generation == 0 {
			f.generation = j.generation
		}
		f.trigger = j.trigger
		f.build = j.buildTime
		f.total = time.Since(j.began)
		f.notes = s.notes(j)
	}
	return conclude(f)
}

// notes returns what people should know about a job that succeeds.
func (s *supervisor) notes(j *job) (notes []string) {
	if len(j.own) > 0 {
		notes = append(notes, ownCodeNote(j.own))
	}
	if j.note != "" {
		notes = append(notes, "built the long way, by go build: "+j.note)
	}
	if j.repair {
		notes = append(notes, "this was the same build again, because the program was degraded after a rollback")
	}
	return notes
}

// finish ends the job with the outcome o, reports it, and starts what waits.
func (s *supervisor) finish(o client.Outcome) {
	j := s.job
	s.job = nil
	o.TotalMS = client.Milliseconds(time.Since(j.began))
	o.Serving = s.workers.number()
	if j.passing && s.plan.watcher != nil && j.snap != nil && j.expired == nil && !s.stop.begun {
		o.Notes = append(o.Notes, fmt.Sprintf("this passes: the sources are tried again in %v", retryTime))
		s.after(retryTime, retryDue{j.snap})
	}
	if !o.Good() && !j.repair {
		if j.expired == nil {
			s.plan.refused = j.snap
		}
		s.tellFailure(o, j.changed, j.unknown)
	}
	if !j.repair {
		s.last = &o
	}
	s.printf("%s", o.String())
	waiting := j.requests
	if o.Verdict == client.Reloaded { // not final yet, even without a probation
		s.unconfirmed, waiting = newUnconfirmed(j, o)
		s.awaitConfirmation()
	}
	for _, r := range waiting {
		r.answer(o)
	}
	s.prune()
	s.next()
}
