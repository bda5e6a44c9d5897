//go:build unix

package supervisor

import (
	"fmt"
	"os"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/wire"
)

const (
	// stopLimit is how long a stop may take if no generation has said how long
	// it needs.
	stopLimit = 10 * time.Second

	// leaveTime is how long processes may take to exit after the last link has
	// ended, and killTime how long after they were killed.
	leaveTime = 2 * time.Second
	killTime  = time.Second

	// secondTime is how long after the first a signal counts as a second one: a
	// service manager and a terminal may send several at once.
	secondTime = 500 * time.Millisecond
)

// stop is the end of the program.
type stop struct {
	begun    bool
	since    time.Time
	code     int              // the program's exit code
	deadline <-chan time.Time // when everything is killed
	waiting  []chan int       // clients that wait for the end
	terminal bool             // the program was started in a terminal
}

// beginStop begins a graceful stop of the program.
func (s *supervisor) beginStop() {
	s.stop.begun, s.stop.since = true, time.Now()
	s.sockets.close()
	limit := stopLimit
	if w := s.workers.serving; w != nil && w.says != nil {
		limit = w.stopTime()
	}
	s.stop.deadline = time.After(limit)
	for _, w := range s.workers.linked {
		s.send(w, control.Message{Type: control.TypeStop})
	}
	if first := s.workers.first; first.pid != 0 && len(s.workers.linked) == 0 {
		s.sys.terminate(first.pid)
	}
	s.abandon(errStopping)
}

// stopFor stops the program for a client. A second one may only shorten its time.
func (s *supervisor) stopFor(q stopAsked) {
	s.stop.waiting = append(s.stop.waiting, q.code)
	if !s.stop.begun {
		s.beginStop()
	}
	if q.limit > 0 {
		s.after(q.limit, stopOver{})
	}
}

// stopTooLate is called when the time that a client gave a stop is over.
func (s *supervisor) stopTooLate() {
	s.printf("the program did not stop in the time that it was given: killing everything")
	s.stop.code = max(s.stop.code, 1)
	s.killAll()
}

// hearSignal is called when a worker has got a signal that was meant for the
// program. It never counts as a second one.
func (s *supervisor) hearSignal(*worker, control.Message) {
	if !s.stop.begun {
		s.beginStop()
	}
}

// hearUnclean is called when the program's last generation has not stopped properly.
func (s *supervisor) hearUnclean(*worker, control.Message) { s.stop.code = max(s.stop.code, 1) }

// abandon ends the job, the request that waits and the probation.
func (s *supervisor) abandon(why error) {
	if j := s.job; j != nil {
		s.job = nil
		j.end(why)
		for _, r := range j.requests {
			s.turnAway(r, endRefused, why.Error())
		}
	}
	if r := s.queue.take(); r != nil {
		s.turnAway(r, endRefused, why.Error())
	}
	if s.unconfirmed != nil {
		s.endStandby(client.ProbationCut)
	}
}

func (s *supervisor) killAll() {
	for _, group := range s.workers.groups {
		s.sys.killGroup(group)
	}
}

// firstExited is called when a process that the supervisor started has exited.
func (s *supervisor) firstExited(status proc.Status) {
	pid := s.workers.first.pid
	s.workers.first = firstProcess{}
	switch {
	case s.stop.begun:
		if s.stop.code == 0 && s.stop.deadline != nil && status.Code > 0 {
			s.stop.code = status.Code
		}
	case s.workers.everServed:
		s.restartIfGone()
	default:
		s.cannotStart(fmt.Sprintf("process %d: %s", pid, status), max(1, status.Code))
	}
}

// cannotStart is called when a program that has never served cannot start. It ends,
// but in development it waits for a change that may be the cure. A configuration that is
// wrong from the beginning ends it too: who has called it has made a mistake.
func (s *supervisor) cannotStart(why string, code int) {
	wrongConfig := code == control.ExitConfig
	if wrongConfig {
		code = client.ExitUsage
	} else {
		s.printf("the program could not start (%s)", why)
	}
	if s.plan.watcher == nil || wrongConfig && !s.workers.waited {
		s.stop.begun, s.stop.code = true, code
		s.abandon(errNotStarted)
		return
	}
	s.workers.waited = true
	s.printf("waiting for a change of the sources or the configuration; reload tries it again as it is")
	o := conclude(facts{end: endDied, stage: client.StageStart, err: fmt.Sprintf("%s: %s", errNotStarted, why)})
	s.last, s.workers.notStarted = &o, true
	if r := s.queue.take(); r != nil {
		s.turnAway(r, endRefused, errNotStarted.Error())
	}
	s.next() // the sources may have changed meanwhile
}

// startAgain starts the binary of j in place of the one that could not start.
func (s *supervisor) startAgain(j *job) {
	s.workers.notStarted = false
	s.plan.serves(j.binary, j.snap)
	s.plan.refused = nil
	if err := s.startFirst(j.binary); err != nil {
		s.cannotStart(err.Error(), 1)
	}
}

// stopped makes sure that no process and no control socket is left.
func (s *supervisor) stopped() {
	if s.plan.watcher != nil {
		s.plan.watcher.Close()
	}
	if s.plan.builder != nil {
		s.plan.builder.Close()
	}
	s.waitChildless(leaveTime)
	if w := s.workers.serving; w != nil && s.stop.code == 0 {
		if status, ok := s.sys.exited(w.pid); ok && status != (proc.Status{}) {
			s.stop.code = max(1, status.Code)
		}
	}
	s.killAll()
	s.waitChildless(killTime)
	os.Remove(wire.Socket(s.opts.RunDir))
}

func (s *supervisor) waitChildless(limit time.Duration) {
	for end := time.Now().Add(limit); !s.sys.childless() && time.Now().Before(end); {
		time.Sleep(2 * time.Millisecond)
	}
}
