//go:build unix

package supervisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"orchestrator/app/control"
	"orchestrator/handoff"
)

const (
	// stableTime is how long a generation must serve before earlier crashes
	// are forgotten.
	stableTime = 10 * time.Second

	// tooManyCrashes in a row let an older build be tried, if that is allowed.
	tooManyCrashes = 3

	// statusTime is how much later than the end of its link a worker's exit
	// status may come.
	statusTime = 100 * time.Millisecond

	topicCrashed = "app.crashed"
)

// crashes is what is known of generations that died while they served.
type crashes struct {
	inARow int
	timer  *time.Timer    // of the next start
	last   *control.Crash // until a generation serves again Serving is 0

	mayOlder   bool          // an older build may be started
	startLimit time.Duration // how long a start may take: twice what a stop may

	instead string // a build that was made since, to be started in place of the one that crashed
}

// crashed tells whether a generation that served is gone and none serves yet.
func (s *supervisor) crashed() bool {
	return s.everyone && s.serving == nil && !s.stopping
}

// startInstead has the binary of j started in place of the build that crashed:
// the next save, or the next deployment, may be what repairs it.
func (s *supervisor) startInstead(j *job) {
	s.say("nothing serves since the crash: starting %s instead", j.binary)
	s.current.binary = j.binary
	if s.current.built = j.snap != nil; s.current.built {
		s.current.snap = j.snap
	}
	s.crash.instead, s.crash.inARow = j.binary, 0
	if s.first.pid != 0 { // the crashed build, about to try again
		kill(s.first.pid)
		return
	}
	if s.crash.timer != nil {
		s.crash.timer.Stop()
	}
	s.checkAlive()
}

// lost is called when the serving generation died and no other is there.
func (s *supervisor) lost(w *worker) {
	c := &control.Crash{Time: time.Now(), Generation: w.generation, Lost: []string{}}
	c.Error = "it died"
	if status, ok := s.exitStatus(w.pid); ok {
		c.Error = describe(status)
	}
	if w.serving != nil {
		for _, m := range w.serving.Modules {
			if m.Stateful {
				c.Lost = append(c.Lost, m.Name)
			}
		}
	}
	s.crash.last = c
	if j := s.job; j != nil && j.phase == upgrading {
		o := s.outcome(control.Failed, fmt.Sprintf("generation %d died during the upgrade: %s", w.generation, c.Error))
		o.Generation, o.Stage, o.Lost = j.generation, handoff.StageStart, c.Lost
		if w.stage != nil {
			o.Stage = w.stage.Name
		}
		s.job = nil
		s.last, s.refused = &o, j.snap
		s.say("%s", Describe(o))
		for _, r := range j.requests {
			r.answer(o)
		}
	}
	if p := s.proving; p != nil {
		p.outcome.Outcome, p.outcome.Serving = control.Failed, 0
		p.outcome.Error = fmt.Sprintf("generation %d died after it took over: %s", w.generation, c.Error)
		p.outcome.Lost = c.Lost
		o := p.outcome
		s.last = &o
		s.proved(control.ProbationFailed)
	}
}

// exitStatus tells how a worker whose link has ended did.
func (s *supervisor) exitStatus(pid int) (status syscall.WaitStatus, ok bool) {
	for end := time.Now().Add(statusTime); ; time.Sleep(time.Millisecond) {
		if status, ok = s.reaper.status(pid); ok || time.Now().After(end) {
			return status, ok
		}
	}
}

// checkAlive restarts the program when no generation is left: at once the
// first time, later with a growing pause.
func (s *supervisor) checkAlive() {
	if s.stopping || !s.everyone || len(s.workers) > 0 || s.first.pid != 0 {
		return
	}
	// A candidate that never spoke would keep the sockets; and the numbers of
	// these groups may soon be somebody else's.
	s.killAll()
	s.groups = nil
	if r := s.waiting; r != nil && s.job == nil && s.crash.inARow > 0 && s.crash.instead == "" {
		s.waiting = nil
		s.start(&job{requests: []*request{r}}) // waits again
		if s.crash.instead != "" {
			return
		}
	}
	wait := time.Duration(0)
	if s.crash.inARow > 0 {
		wait = min(100*time.Millisecond<<min(s.crash.inARow-1, 10), 5*time.Second)
	}
	s.crash.inARow++
	binary := s.restartable(s.lastServed)
	if s.crash.instead != "" {
		binary = s.crash.instead
	} else if s.crash.mayOlder && s.crash.inARow > tooManyCrashes && exists(s.older) {
		binary = s.older
		s.say("the build has crashed %d times in a row; trying the one before it (restart_older_build)", s.crash.inARow-1)
	}
	c, when := s.crash.last, " at once"
	if wait > 0 {
		when = fmt.Sprintf(" in %v", wait)
	}
	s.say("generation %d is gone (%s), and with it the state in memory of %v; starting it again%s", c.Generation, c.Error, c.Lost, when)
	s.crash.timer = time.AfterFunc(wait, func() {
		s.do(func() {
			if s.stopping || len(s.workers) > 0 || s.first.pid != 0 {
				return
			}
			s.restoreRunDir()
			if err := s.startFirst(binary); err != nil {
				s.say("%v", err)
				s.checkAlive()
				return
			}
			s.limitStart()
		})
	})
}

// limitStart ends a start that is stuck in something that has no deadline.
func (s *supervisor) limitStart() {
	pid, limit := s.first.pid, s.crash.startLimit
	time.AfterFunc(limit, func() {
		s.do(func() {
			if s.first.pid == pid && s.crashed() {
				s.say("process %d has not begun to serve within %v: killing it", pid, limit)
				kill(pid)
			}
		})
	})
}

// restarted is called when a generation serves in the place of one that crashed.
func (s *supervisor) restarted(w *worker) {
	if s.binaries[w.generation] == s.crash.instead {
		s.crash.instead = ""
	}
	c := s.crash.last
	if c == nil || c.Serving != 0 {
		return
	}
	c.Serving, c.Build, c.Older = w.generation, w.build, s.older != "" && s.binaries[w.generation] == s.older
	data, err := json.Marshal(c)
	if err == nil {
		s.publish(control.Event{Time: time.Now(), Generation: w.generation, Topic: topicCrashed, Data: data})
	}
}

// stable forgets earlier crashes when w has served for a while.
func (s *supervisor) stable(w *worker) {
	time.AfterFunc(stableTime, func() {
		s.do(func() {
			if s.serving == w {
				s.crash.inARow = 0
			}
		})
	})
}

// restartable is the binary of a generation, as it was when it began to
// serve: the file it was started from may have been replaced or deleted.
func (s *supervisor) restartable(generation int) string {
	if kept := s.kept[generation]; exists(kept) {
		return kept
	}
	return s.binaries[generation]
}

// keep copies what w runs to a place of ours, if it is not there already. The
// copy is made in the background; until it is there the original has to do.
func (s *supervisor) keep(w *worker) {
	binary := s.binaries[w.generation]
	// A restart after a crash makes nothing older.
	if s.lastServed != 0 && w.serving.Outcome != nil && s.lastServed != w.generation && s.restartable(s.lastServed) != binary {
		s.older, s.oldest = s.restartable(s.lastServed), s.older
	}
	s.lastServed = w.generation
	builds := filepath.Join(absolute(s.opts.RunDir), "builds")
	if exists(binary) && filepath.Dir(filepath.Dir(binary)) == builds {
		s.kept[w.generation] = binary
		return
	}
	go func() {
		kept, err := copyBuild(running(w.pid, binary), builds, w.generation)
		s.do(func() {
			if err != nil {
				s.opts.Log.Warn("cannot keep a copy of the binary; should it crash, it is started from its path", "binary", binary, "err", err)
				return
			}
			s.kept[w.generation] = kept
		})
	}()
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func kill(pid int) { syscall.Kill(pid, syscall.SIGKILL) }
