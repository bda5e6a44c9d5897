//go:build unix

package supervisor

import (
	"fmt"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/sources"
)

// answerTime is how long, beyond the limits that it has named itself, a
// generation may take to begin an upgrade and to report on it.
const answerTime = 2 * time.Second

// beginTime is how long a generation may take to begin an upgrade. It may have to
// end its own probation first, and hand back what it has if it is unhealthy.
const beginTime = 20 * time.Second

// unconfirmed is a serving generation that is not final yet: the old generation
// stands by.
type unconfirmed struct {
	generation int
	outcome    client.Outcome
	changed    []string // packages that changed
	unknown    bool
	repair     bool
	requests   []*request // waiting until it is final
}

// newUnconfirmed returns what follows o. Requests that wait for the end
// of the probation move to it; done is the rest.
func newUnconfirmed(j *job, o client.Outcome) (s *unconfirmed, done []*request) {
	s = &unconfirmed{generation: o.Generation, outcome: o, changed: j.changed, unknown: j.unknown, repair: j.repair}
	for _, r := range j.requests {
		if !r.reload.WaitProbation {
			done = append(done, r)
			continue
		}
		if r.timer != nil {
			r.timer.Stop() // it limits the time until the commit only
		}
		s.requests = append(s.requests, r)
	}
	return s, done
}

// upgrade orders the serving generation to hand over to the job's binary. It
// expedites the probation of the previous reload.
func (s *supervisor) upgrade() {
	j, w := s.job, s.workers.serving
	if w == nil {
		s.postpone()
		return
	}
	s.restoreRunDir() // or the candidate could not reach anybody
	j.phase = upgradePhase
	j.generation = s.builds.add(j.binary)
	order := j.order()
	for _, other := range s.workers.linked {
		if other != w {
			s.send(other, control.Message{Type: control.TypeExpedite})
		}
	}
	s.send(w, control.Message{Type: control.TypeUpgrade, Upgrade: &order})
	w.enter(nil, nil)
	patience := beginTime
	if order.TimeoutMS > 0 {
		patience = time.Duration(order.TimeoutMS)*time.Millisecond + answerTime
	}
	s.after(patience, upgradeUnanswered{j, w})
}

// postpone ends the job because nothing serves. Its latest request waits until a
// generation does; the others are superseded. After a crash the job's binary is
// what is started next.
func (s *supervisor) postpone() {
	j := s.job
	instead := s.state() == recovering && !j.repair
	s.job = nil
	for _, r := range j.requests {
		s.wait(r)
	}
	switch {
	case instead:
		s.startInstead(j)
	case s.workers.notStarted:
		s.startAgain(j)
	}
}

// order returns the order for the serving generation. Requests that share a job
// get one upgrade that does what any of them asked for.
func (j *job) order() control.Upgrade {
	order := control.Upgrade{
		Binary:     sources.Absolute(j.binary),
		Generation: j.generation,
		Changed:    j.changed,
		Unknown:    j.unknown,
		Repair:     j.repair,
	}
	limited := !j.saved && len(j.requests) > 0
	for _, r := range j.requests {
		order.Force = order.Force || r.reload.Force
		order.DropState = append(order.DropState, r.reload.DropState...)
		order.TimeoutMS = max(order.TimeoutMS, r.reload.TimeoutMS)
		limited = limited && r.limit() > 0
	}
	if !limited { // a request with a timeout of its own ends alone
		order.TimeoutMS = 0
	}
	return order
}

// unanswered gives up on a generation that has not even begun the upgrade. It is
// not killed: it may be stopped, for instance by a debugger, and serve again
// once it continues.
func (s *supervisor) unanswered(j *job, w *worker) {
	if s.job != j || s.workers.serving != w || w.stage != nil {
		return
	}
	s.send(w, control.Message{Type: control.TypeCancel, Error: "it did not answer in time"})
	s.failed(facts{
		end:   endRefused,
		stage: client.StageStart,
		err:   fmt.Sprintf("generation %d (process %d) does not answer; is it stopped? Kill it to have the program started again, without its state", w.generation, w.pid),
	})
}

// reported is called when a worker has reported how an upgrade ended.
func (s *supervisor) reported(r control.Report) {
	if s.unconfirmed != nil && r.Generation == s.unconfirmed.generation {
		s.rolledBack(s.conclude(facts{report: &r}))
		return
	}
	j := s.job
	if j == nil || j.phase != upgradePhase || r.Generation != j.generation {
		return // the supervisor has given up on this one
	}
	if !r.TookOver {
		s.failed(facts{report: &r})
		return
	}
	if !j.repair {
		s.plan.previous = s.plan.current
		s.plan.serves(j.binary, j.snap)
		s.plan.refused = nil
		s.crashes.forget() // of another build, or not the fault of any
	}
	s.finish(s.conclude(facts{report: &r}))
}

// rolledBack is called when a generation has failed in its probation and the
// old generation serves again.
func (s *supervisor) rolledBack(now client.Outcome) {
	p := s.unconfirmed
	s.unconfirmed = nil
	if !p.repair { // a repair has the same sources
		s.plan.refused = s.plan.current.snap
		s.plan.current = s.plan.previous
	}
	o := revise(p.outcome, now)
	s.last = &o
	s.printf("%s", o.String())
	s.tellFailure(o, p.changed, p.unknown)
	for _, r := range p.requests {
		r.answer(o)
	}
	j := s.job
	if j == nil {
		s.prune()
		s.next()
		return
	}
	if j.phase >= buildPhase && j.phase <= upgradePhase && j.snap != nil && !j.repair {
		s.nameChange()
	}
	if j.phase == upgradePhase && !s.endIfExpired(client.StageStart) { // the order went to the failed generation
		s.upgrade()
	}
}

// endStandby is called when a generation is final, healthy or not.
func (s *supervisor) endStandby(how client.Probation) {
	p := s.unconfirmed
	s.unconfirmed = nil
	if p.outcome.Probation != "" || how == client.ProbationFailed {
		p.outcome.Probation = how
	}
	if s.last != nil && s.last.Generation == p.generation {
		s.last.Probation = p.outcome.Probation
	}
	if how == client.ProbationFailed && s.workers.number() == p.generation {
		s.printf("generation %d is unhealthy, and there is none to go back to: it goes on", p.generation)
	}
	for _, r := range p.requests {
		r.answer(p.outcome)
	}
	if s.job == nil {
		s.prune()
	}
}

// repair replaces a degraded generation with a fresh process of the same build.
func (s *supervisor) repair(w *worker) {
	if s.workers.serving != w || s.stop.begun {
		return
	}
	if s.job != nil { // if it succeeds, it replaces w too
		s.workers.wantsRepair = w
		return
	}
	s.printf("generation %d is still degraded: starting a fresh process of the same build", w.generation)
	s.job = &job{repair: true, binary: s.builds.startable(w.generation), began: time.Now(), snap: s.plan.current.snap}
	s.upgrade()
}
