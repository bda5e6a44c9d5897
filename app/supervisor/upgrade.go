//go:build unix

package supervisor

import (
	"fmt"
	"time"

	"orchestrator/app/control"
)

// answerTime is how long a generation may take to begin with an upgrade, and
// to say how it went, beyond the limits it has named itself.
const answerTime = 2 * time.Second

// proving is a generation that serves, and is not final yet: the one before it
// stands by.
type proving struct {
	generation int
	outcome    control.Outcome
	changed    []string // packages
	unknown    bool
	repair     bool
	requests   []*request // that wait for the end of it
}

// upgrade has the serving generation hand over to the job's binary. A newer
// reload cuts the probation of the one before it short.
func (s *supervisor) upgrade() {
	j := s.job
	w := s.serving
	if w == nil { // until a generation serves
		s.job = nil
		if s.crashed() && !j.repair {
			s.startInstead(j)
		}
		for _, r := range j.requests {
			s.wait(r)
		}
		return
	}
	j.phase = upgrading
	s.number++
	j.generation = s.number
	s.binaries[s.number] = j.binary
	order := control.Upgrade{
		Binary:     absolute(j.binary),
		Generation: s.number,
		TimeoutMS:  defaultTimeout.Milliseconds(),
		Changed:    j.changed,
		Unknown:    j.unknown,
		Repair:     j.repair,
	}
	if len(j.requests) > 0 {
		order.TimeoutMS = 0
	}
	for _, r := range j.requests { // they get one upgrade
		order.Force = order.Force || r.reload.Force
		order.DropState = append(order.DropState, r.reload.DropState...)
		order.TimeoutMS = max(order.TimeoutMS, r.limit().Milliseconds())
	}
	for _, other := range s.workers {
		if other != w {
			s.send(other, control.Message{Type: control.TypeSettle})
		}
	}
	s.send(w, control.Message{Type: control.TypeUpgrade, Upgrade: &order})
	w.stage = nil
	limit := time.Duration(order.TimeoutMS)*time.Millisecond + answerTime
	time.AfterFunc(limit, func() { s.do(func() { s.unanswered(j, w) }) })
}

// unanswered gives up on a generation that has not even begun with the
// upgrade. It may be stopped, by a debugger for instance, and serve again when
// it goes on, so it is left alone.
func (s *supervisor) unanswered(j *job, w *worker) {
	if s.job != j || s.serving != w || w.stage != nil {
		return
	}
	s.send(w, control.Message{Type: control.TypeCancel, Error: "the answer comes too late"})
	o := s.outcome(control.Rejected, fmt.Sprintf("generation %d (process %d) does not answer; is it stopped? Kill it to have the program started again, without its state", w.generation, w.pid))
	o.Generation, o.Stage = j.generation, "start"
	s.failed(o)
}

// staged notes what w does, and kills it if it does it for too long: it is
// stuck in a step of the upgrade, and nothing else ends that.
func (s *supervisor) staged(w *worker, stage control.Stage) {
	w.stage = &stage
	if w.watchdog != nil {
		w.watchdog.Stop()
		w.watchdog = nil
	}
	if stage.LimitMS == 0 {
		return
	}
	limit := time.Duration(stage.LimitMS)*time.Millisecond + answerTime
	w.watchdog = time.AfterFunc(limit, func() {
		s.do(func() {
			if w.stage != &stage || s.workers[w.generation] != w {
				return
			}
			s.say("generation %d (process %d) is stuck in %s for %v: killing it", w.generation, w.pid, stage.Name, limit)
			kill(w.pid)
		})
	})
}

// answered ends the watch over w.
func (s *supervisor) answered(w *worker) {
	w.stage = nil
	if w.watchdog != nil {
		w.watchdog.Stop()
		w.watchdog = nil
	}
}

// upgraded is called when a worker tells how an upgrade went.
func (s *supervisor) upgraded(o control.Outcome) {
	j := s.job
	if s.proving != nil && o.Generation == s.proving.generation {
		s.rolledBack(o)
		return
	}
	if j == nil || j.phase != upgrading || o.Generation != j.generation {
		return // somebody else's answer has been given already
	}
	if o.Outcome != control.Reloaded {
		s.failed(o)
		return
	}
	if !j.repair {
		s.previous = s.current
		s.current.binary = j.binary
		if s.current.built = j.snap != nil; s.current.built {
			s.current.snap = j.snap
		}
		s.refused = nil
		s.crash.inARow = 0 // those were of another build, or of none that is to blame
	}
	s.finish(o)
}

// rolledBack is called when a generation has failed in its probation and the
// one before it serves again.
func (s *supervisor) rolledBack(o control.Outcome) {
	p := s.proving
	s.proving = nil
	if !p.repair { // else it was of the same sources
		s.refused = s.current.snap
		s.current = s.previous
	}
	full := p.outcome
	full.Outcome, full.Serving, full.Probation = o.Outcome, s.servingNumber(), o.Probation
	full.Stage, full.FailedModule, full.Error = o.Stage, o.FailedModule, o.Error
	full.Lost, full.Rewound, full.Notes = o.Lost, o.Rewound, nil
	s.last = &full
	s.say("%s", Describe(full))
	s.tellFailure(full, p.changed, p.unknown)
	for _, r := range p.requests {
		r.answer(full)
	}
	switch j := s.job; {
	case j == nil:
		s.prune()
		s.startWaiting()
	case j.phase == building && j.snap != nil && !j.repair:
		s.nameChange()
	case j.phase == upgrading: // its order went to the generation that failed
		if j.snap != nil && !j.repair {
			s.nameChange()
		}
		s.upgrade()
	}
}

// proved ends the probation.
func (s *supervisor) proved(probation string) {
	p := s.proving
	s.proving = nil
	if p.outcome.Probation != "" || probation == control.ProbationFailed {
		p.outcome.Probation = probation
	}
	if s.last != nil && s.last.Generation == p.generation {
		s.last.Probation = p.outcome.Probation
	}
	if probation == control.ProbationFailed {
		s.say("generation %d is not well, and there is none to go back to: it goes on", p.generation)
	}
	for _, r := range p.requests {
		r.answer(p.outcome)
	}
	if s.job == nil {
		s.prune()
	}
}

// tellFailure has the serving generation publish that a reload failed.
func (s *supervisor) tellFailure(o control.Outcome, changed []string, unknown bool) {
	if s.serving != nil {
		s.send(s.serving, control.Message{Type: control.TypeFailure, Failure: &control.Failure{Outcome: o, Changed: changed, Unknown: unknown}})
	}
}

// repair replaces a degraded generation by a fresh process of its own build.
func (s *supervisor) repair(w *worker) {
	if s.serving != w || s.stopping {
		return
	}
	if s.job != nil { // which replaces it as well, if it succeeds
		s.unwell = w
		return
	}
	s.say("generation %d does not get well by itself: handing over to a fresh process of the same build", w.generation)
	s.job = &job{repair: true, binary: s.restartable(w.generation), began: time.Now(), snap: s.current.snap}
	s.upgrade()
}

// finish ends the job with o, tells everybody, and goes on with what waits.
func (s *supervisor) finish(o control.Outcome) {
	j := s.job
	s.job = nil
	o.Serving = s.servingNumber()
	o.Trigger = append([]string{}, j.trigger...)
	if o.Modules == nil {
		o.Modules = []string{}
	}
	if o.StagesMS == nil {
		o.StagesMS = map[string]float64{}
	}
	if j.buildTime > 0 {
		o.StagesMS["build"] = milliseconds(j.buildTime)
	}
	o.TotalMS = milliseconds(time.Since(j.began))
	if notes := supervisorOnly(s.inputs, j.trigger); notes != "" && o.Outcome == control.Reloaded {
		o.Notes = append(o.Notes, notes)
	}
	if j.note != "" && o.Outcome == control.Reloaded {
		o.Notes = append(o.Notes, "built the long way, by go build: "+j.note)
	}
	good := o.Outcome == control.Reloaded || o.Outcome == control.Unchanged
	if !good && !j.repair {
		if j.expired == nil {
			s.refused = j.snap
		}
		s.tellFailure(o, j.changed, j.unknown)
	}
	if j.repair {
		o.Notes = append(o.Notes, "this was the same build again, after a rollback that did not work")
	} else {
		s.last = &o
	}
	s.say("%s", Describe(o))
	waiting := j.requests
	if o.Outcome == control.Reloaded { // also without a probation it is not final yet
		s.proving = &proving{generation: o.Generation, outcome: o, changed: j.changed, unknown: j.unknown, repair: j.repair}
		waiting = nil
		for _, r := range j.requests {
			if r.reload.WaitProbation {
				r.timer.Stop()
				s.proving.requests = append(s.proving.requests, r)
			} else {
				waiting = append(waiting, r)
			}
		}
	}
	for _, r := range waiting {
		r.answer(o)
	}
	s.prune()
	s.startWaiting()
}
