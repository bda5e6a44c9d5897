//go:build unix

package supervisor

import (
	"fmt"
	"os"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/proc"
)

// statusTime is how long after the end of its link a worker's exit status may
// arrive.
const statusTime = 100 * time.Millisecond

// crashed is called when the serving generation has died and no other is left.
func (s *supervisor) crashed(w *worker) {
	c := &client.Crash{Time: time.Now(), Generation: w.generation, Error: "it died", Lost: []string{}}
	if status, ok := s.exitStatus(w.pid); ok {
		c.Error = status.String()
	}
	if w.says != nil {
		for _, m := range w.says.Modules {
			if m.Stateful {
				c.Lost = append(c.Lost, m.Name)
			}
		}
	}
	s.crashes.last = c
	s.workers.serving = nil
	if w.says != nil {
		s.after(time.Duration(w.says.QueueMS)*time.Millisecond, queueOver{c.Time})
	}
	if j := s.job; j != nil && j.phase == upgradePhase {
		s.diedUpgrading(w, c)
	}
	if s.unconfirmed != nil {
		s.diedInStandby(w, c)
	}
}

// diedUpgrading ends the job: w, the old generation, died during its upgrade.
func (s *supervisor) diedUpgrading(w *worker, c *client.Crash) {
	j := s.job
	stage := client.StageStart
	if w.stage != nil {
		stage = w.stage.Name
	}
	o := s.conclude(facts{end: endDied, stage: stage, err: fmt.Sprintf("generation %d died during the upgrade: %s", w.generation, c.Error), lost: c.Lost})
	s.job = nil
	s.last, s.plan.refused = &o, j.snap
	s.printf("%s", o.String())
	s.publishFailure(w, o, j.changed, j.unknown)
	for _, r := range j.requests {
		r.answer(o)
	}
}

// diedInStandby ends a probation in which both generations have died.
func (s *supervisor) diedInStandby(w *worker, c *client.Crash) {
	p := s.unconfirmed
	now := conclude(facts{end: endDiedAfter, stage: client.StageProbation, err: fmt.Sprintf("generation %d died after it took over: %s", w.generation, c.Error), lost: c.Lost})
	p.outcome = revise(p.outcome, now)
	o := p.outcome
	s.last = &o
	s.publishFailure(w, o, p.changed, p.unknown)
	s.endStandby(client.ProbationFailed)
}

// exitStatus returns how a worker ended, after its link has ended. ok is false
// if that is still unknown after statusTime.
func (s *supervisor) exitStatus(pid int) (status proc.Status, ok bool) {
	for end := time.Now().Add(statusTime); ; time.Sleep(time.Millisecond) {
		if status, ok = s.sys.exited(pid); ok || time.Now().After(end) {
			return status, ok
		}
	}
}

// restartIfGone restarts the program when no generation is left: at once the
// first time, later after a growing pause.
func (s *supervisor) restartIfGone() {
	if s.stop.begun || !s.workers.everServed || !s.workers.none() {
		return
	}
	// A candidate that never connected would keep the sockets. The groups are
	// forgotten because their numbers may be reused.
	s.killAll()
	s.workers.groups = nil
	c := &s.crashes
	if s.queue.waiting != nil && s.job == nil && c.inARow > 0 && c.instead == "" {
		s.start(&job{requests: []*request{s.queue.take()}}) // the request waits again
		if c.instead != "" {
			return
		}
	}
	wait, binary, tried := c.nextAttempt(s.builds.startable(s.builds.lastServed), s.builds.older)
	if tried > 0 {
		s.printf("the build has crashed %d times in a row; trying the one before it (restart_older_build)", tried)
	}
	when := " at once"
	if wait > 0 {
		when = fmt.Sprintf(" in %v", wait)
	}
	s.printf("generation %d is gone (%s), and with it the state in memory of %v; starting it again%s", c.last.Generation, c.last.Error, c.last.Lost, when)
	c.timer = s.after(wait, restartDue{binary})
}

// restart starts a generation in place of one that crashed.
func (s *supervisor) restart(binary string) {
	if s.stop.begun || !s.workers.none() {
		return
	}
	s.restoreRunDir()
	if err := s.startFirst(binary); err != nil {
		s.printf("%v", err)
		s.restartIfGone()
		return
	}
	limit := s.crashes.startLimit
	s.after(limit, restartLate{s.workers.first.pid, limit})
}

// killStart kills a starting process that is stuck where no deadline applies.
func (s *supervisor) killStart(pid int, limit time.Duration) {
	if s.workers.first.pid == pid && s.state() == recovering {
		s.printf("process %d has not begun to serve within %v: killing it", pid, limit)
		s.sys.kill(pid)
	}
}

// startInstead starts the binary of j in place of the build that crashed: the
// next save or deployment may be what repairs it.
func (s *supervisor) startInstead(j *job) {
	s.printf("nothing has served since the crash: starting %s instead", j.binary)
	s.plan.serves(j.binary, j.snap)
	s.crashes.replaceBy(j.binary)
	if first := s.workers.first; first.pid != 0 { // the crashed build, about to try again
		s.sys.kill(first.pid)
		return
	}
	if s.crashes.timer != nil {
		s.crashes.timer.Stop()
	}
	s.restartIfGone()
}

// restarted is called when a generation serves in place of one that crashed.
func (s *supervisor) restarted(w *worker) {
	if c := s.crashes.serves(w.generation, s.builds.binary[w.generation], w.build, s.builds.older); c != nil {
		s.publish(topicCrashed, c)
	}
}

// keep copies the binary of w to the folder of builds, unless it is there
// already. The copy is made in the background; until then the original is used.
func (s *supervisor) keep(w *worker) {
	if !s.builds.serves(w.generation, w.says.Report != nil) {
		return
	}
	n, pid, binary, dir := w.generation, w.pid, s.builds.binary[w.generation], s.builds.dir
	s.tasks.Go(func() {
		kept, err := copyBuild(s.sys.image(pid, binary), dir, n)
		s.post(copied{n, binary, kept, err})
	})
}

func (s *supervisor) copied(h copied) {
	if h.err != nil {
		s.opts.Log.Warn("cannot keep a copy of the binary; after a crash it is started from its original path", "binary", h.binary, "err", h.err)
		return
	}
	s.builds.copied(h.generation, h.kept)
}

// prune removes builds that no process runs or would be started from.
func (s *supervisor) prune() {
	needed := []string{s.plan.current.binary}
	if s.unconfirmed != nil {
		needed = append(needed, s.plan.previous.binary)
	}
	if s.crashes.mayOlder {
		needed = append(needed, s.builds.older)
		if s.unconfirmed != nil {
			needed = append(needed, s.builds.oldest)
		}
	}
	s.builds.prune(func(n int) bool { return s.workers.linked[n] != nil }, needed...)
	os.RemoveAll(s.frozenDir())
}
