package handoff

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// These tests let both sides of a handoff run as package worker has them, with the
// supervisor's watchdog behind them, and make them fail at any point of their
// conversation, once or twice: by death, or by standing still for so long that deadlines
// pass, or for good.

// kind is how a side fails at a point.
type kind int

const (
	dies   kind = iota
	waits       // stands still, within all deadlines
	sleeps      // stands still until the other side's deadlines have passed
	hangs       // stands still until somebody kills it
	kinds
)

func (k kind) String() string { return [...]string{"dies", "waits", "sleeps", "hangs"}[k] }

const (
	waitTime  = stepTime / 4 // twice is within all deadlines too
	sleepTime = 3 * stepTime
	stuckTime = 20 * batchTime // after which the supervisor kills the old generation
)

// setback makes the old generation, or the candidate, fail at its nth operation.
type setback struct {
	old  bool
	at   int
	kind kind
}

func (s setback) String() string {
	side := "candidate"
	if s.old {
		side = "old"
	}
	return fmt.Sprintf("%s %s at %d", side, s.kind, s.at)
}

// side is a process that takes part.
type side struct {
	old      bool
	play     *play
	points   int
	setbacks []setback
	life     func() context.Context // ends with the process
	end      context.CancelFunc

	mu      sync.Mutex // guards the fields below
	dead    bool
	serving bool
	has     map[string]bool // connections that it reads from
	read    map[string]bool // those that it has read from and not given back
	passed  bool            // it has the states
}

// play is one run.
type play struct {
	t        *testing.T
	c        *conversation
	old, new *side
	headache bool // the candidate is unhealthy in its probation
	faults   []string
}

// point is before and after everything that a process sends or receives.
func (s *side) point() {
	s.points++
	s.mu.Lock()
	dead := s.dead
	s.mu.Unlock()
	if dead {
		runtime.Goexit()
	}
	for _, f := range s.setbacks {
		if f.old != s.old || f.at != s.points {
			continue
		}
		switch f.kind {
		case dies:
			s.die()
		case waits:
			time.Sleep(waitTime)
		case sleeps:
			time.Sleep(sleepTime)
		case hangs:
			time.Sleep(stuckTime)
			if s.old { // by the supervisor; a candidate is the old generation's to kill
				s.die()
			}
		}
		s.mu.Lock()
		dead := s.dead
		s.mu.Unlock()
		if dead {
			runtime.Goexit()
		}
	}
}

// die ends the process: what it has is closed.
func (s *side) die() {
	s.mu.Lock()
	if s.dead {
		s.mu.Unlock()
		return
	}
	s.dead, s.serving, s.has = true, false, map[string]bool{}
	s.mu.Unlock()
	s.end()
	if s.old {
		s.play.c.oldEnd.close()
		close(s.play.c.self.parent)
	} else {
		s.play.c.process.exit(errors.New("it died"))
	}
}

func (s *side) fault(format string, args ...any) {
	s.play.faults = append(s.play.faults, fmt.Sprintf(format, args...))
}

// serve makes the process the one that serves, with these connections.
func (s *side) serve(conns []Conn) {
	other := s.play.old
	if s.old {
		other = s.play.new
	}
	other.mu.Lock()
	both := other.serving
	other.mu.Unlock()
	if both {
		s.fault("both serve")
	}
	s.mu.Lock()
	s.serving = true
	s.mu.Unlock()
	s.take(conns)
}

// take begins to read from connections.
func (s *side) take(conns []Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	other := s.play.new
	if s == other {
		other = s.play.old
	}
	for _, c := range conns {
		s.has[c.Owner], s.read[c.Owner] = true, true
		if other.read[c.Owner] {
			s.fault("connection %s goes on in one process, and the other has read from it", c.Owner)
		}
	}
}

// give stops to read from all connections.
func (s *side) give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving, s.has, s.read = false, map[string]bool{}, map[string]bool{}
}

// pointLink is a link on which a process may fail.
type pointLink struct {
	link
	side *side
}

func (l *pointLink) send(ctx context.Context, m message, files ...file) error {
	l.side.point()
	err := l.link.send(ctx, m, files...)
	l.side.point()
	return err
}

func (l *pointLink) receive(ctx context.Context) (m message, files []file, err error) {
	l.side.point()
	m, files, err = l.link.receive(ctx)
	l.side.point()
	return m, files, err
}

// patience is how long a candidate waits for the old generation: longer than the
// supervisor does.
func patience() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 2*stuckTime)
}

// oldGeneration is the old generation as [worker.attempt] has it.
func (p *play) oldGeneration(conns []Conn) {
	c := p.c.candidate
	rollBack := func(left []Conn) {
		c.Kill()
		if c.Final() {
			p.old.fault("a final candidate was to be killed")
		}
		p.old.serve(left)
	}
	if err := c.greet(p.c.step(), 0); err != nil {
		c.Kill()
		return // it has served all the time
	}
	if err := c.Welcome(p.c.step(), Welcome{Generation: 1}); err != nil {
		c.Kill()
		return
	}
	p.old.give()
	states := someStates(p.t)
	err := c.Transfer(p.c.step(), states, nil)
	if err == nil {
		err = c.AwaitHealthy(p.c.step())
	}
	if err != nil {
		rollBack(conns)
		return
	}
	if err := c.Commit(p.c.step(), Commit{Probation: true}); err != nil {
		rollBack(conns)
		return
	}
	left, err := c.Move(p.c.step(), conns)
	if err == nil {
		err = c.Probation(context.Background(), ProbationTimes{Length: 5 * stepTime, Answer: stepTime, HandBack: stepTime, OnUnhealthy: func() {}}, nil)
	}
	if back := (*ReturnedError)(nil); errors.As(err, &back) {
		back.States.Close()
		if _, err := c.TakeBack(p.c.step(), p.old.take); err != nil {
			c.Kill()
		}
		p.old.serve(nil)
		c.AwaitExit(p.c.step())
		return
	}
	if err == nil {
		err = c.Finish(p.c.step(), false)
	}
	if err == nil || c.Final() {
		return // it exits
	}
	c.killProcess()
	if c.Final() {
		return
	}
	rollBack(left)
}

// candidate is the candidate as [worker.takeover] has it.
func (p *play) candidate() {
	old, me := p.c.old, p.new
	exit := func() { me.die() }
	wait, cancel := patience()
	defer cancel()
	if _, err := old.Hello(wait, Hello{Generation: 2}); err != nil {
		exit()
		return
	}
	old.Progress(wait, StagePrepare, "counter")
	states, _, err := old.Prepared(wait)
	if err != nil {
		exit()
		return
	}
	states.Close()
	me.passed = true
	_, err = old.Healthy(wait)
	alone := errors.Is(err, ErrPredecessorGone)
	if err != nil && !alone {
		exit()
		return
	}
	gone := func(err error) {
		p.waitGone(err)
		alone = true
	}
	var has []Conn
	if !alone {
		_, err := old.Accepting(wait, func(conns []Conn) { has = append(has, conns...); me.take(conns) })
		if err != nil {
			gone(err)
		}
	}
	me.point()
	me.serve(nil)
	if !alone {
		asked := 0
		failure := &UpgradeError{Stage: StageHealthy, Err: errors.New("a headache")}
		_, err := old.Probation(context.Background(), func() *UpgradeError {
			if asked++; p.headache && asked == 3 {
				return failure
			}
			return nil
		})
		switch {
		case errors.Is(err, failure):
			if p.handBack(failure, has) {
				return
			}
		case err != nil && !errors.Is(err, ErrPredecessorGone):
			gone(err)
		}
	}
	ready, cancel := context.WithTimeout(context.Background(), stepTime)
	defer cancel()
	old.Ready(ready)
	me.point()
}

// handBack returns everything. It reports whether the old generation has it.
func (p *play) handBack(failure *UpgradeError, has []Conn) bool {
	wait, cancel := patience()
	defer cancel()
	err := p.c.old.Unhealthy(wait)
	left := has
	if err == nil {
		p.new.give()
		left, err = p.c.old.Return(wait, failure, someStates(p.t), has)
		if err == nil {
			p.new.passed = false
			p.new.die()
			return true
		}
	}
	p.waitGone(err)
	p.new.serve(left)
	return false
}

// waitGone waits for the death of an old generation that has not been understood.
func (p *play) waitGone(err error) {
	if errors.Is(err, ErrPredecessorGone) {
		return
	}
	p.c.old.Close()
	p.c.old.Gone(p.new.life())
	p.new.point() // it may have been killed meanwhile
}

// perform runs a handoff with these setbacks and returns what is wrong, and how many
// points each side has.
func perform(t *testing.T, headache bool, setbacks []setback) (faults []string, old, candidate int) {
	const conns = 3
	synctest.Test(t, func(t *testing.T) {
		c := converse(t)
		p := &play{t: t, c: c, headache: headache}
		p.old = &side{old: true, play: p, setbacks: setbacks, serving: true, has: map[string]bool{}, read: map[string]bool{}}
		p.new = &side{play: p, setbacks: setbacks, has: map[string]bool{}, read: map[string]bool{}}
		for _, s := range []*side{p.old, p.new} {
			life, end := context.WithCancel(t.Context())
			s.life, s.end = func() context.Context { return life }, end
			defer end()
		}
		c.candidate.link = &pointLink{c.candidate.link, p.old}
		c.old.link = &pointLink{c.old.link, p.new}
		c.process.onKill = p.new.die
		list, _ := newConns(conns)
		p.old.take(list)
		var both sync.WaitGroup
		both.Go(func() { p.oldGeneration(list); p.old.exits() })
		both.Go(p.candidate)
		both.Wait()
		faults, old, candidate = append(p.faults, p.judge(conns)...), p.old.points, p.new.points
		closeConns(list)
		c.oldEnd.close()
		c.process.link.close()
		for _, l := range []*memoryLink{c.oldEnd, c.process.link} { // the kernel does that
			for len(l.in) > 0 {
				closeAll((<-l.in).files)
			}
		}
	})
	return faults, old, candidate
}

// exits ends the old generation if it is not the one that serves.
func (s *side) exits() {
	s.mu.Lock()
	serving := s.serving
	s.mu.Unlock()
	if !serving {
		s.die()
	}
}

// judge says what is wrong with how it ended.
func (p *play) judge(conns int) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	failed := func(old bool) bool {
		return slices.ContainsFunc(p.old.setbacks, func(f setback) bool { return f.old == old && f.kind != waits })
	}
	if p.old.serving && p.new.serving {
		fault("both serve")
	}
	for _, s := range []*side{p.old, p.new} {
		if !s.dead && !s.serving {
			fault("a process lives and does not serve; it is the old one: %v", s.old)
		}
	}
	for name := range p.old.has {
		if p.new.has[name] {
			fault("connection %s is read by both", name)
		}
	}
	nobody := !p.old.serving && !p.new.serving
	if nobody && !failed(true) && !p.c.candidate.Final() {
		fault("nobody serves, though only a candidate has failed that was not final")
	}
	if nobody && !failed(false) && p.new.passed && p.c.process.kills == 0 && !p.c.candidate.Final() {
		fault("nobody serves, though the candidate had every state and has not failed")
	}
	if have := len(p.old.has) + len(p.new.has); !failed(true) && !failed(false) && have != conns {
		fault("%d connections are left, of %d, though nobody has failed", have, conns)
	}
	if !failed(true) && p.old.serving && !p.new.passed && len(p.old.has) != conns {
		fault("the old generation has %d connections, of %d, though it has passed none on", len(p.old.has), conns)
	}
	return faults
}

// TestInterleaved makes each side fail at each of its points in each way, and then makes
// both, or one twice, fail: some such pairs, chosen by a seed, or with FAULTS=all every
// one.
func TestInterleaved(t *testing.T) {
	for _, headache := range []bool{false, true} {
		t.Run(fmt.Sprintf("unhealthy %v", headache), func(t *testing.T) {
			faults, old, candidate := perform(t, headache, nil)
			if len(faults) > 0 {
				t.Fatalf("without any setback: %q", faults)
			}
			var all []setback
			for k := range kinds {
				for at := 1; at <= old+4; at++ {
					all = append(all, setback{true, at, k})
				}
				for at := 1; at <= candidate+4; at++ {
					all = append(all, setback{false, at, k})
				}
			}
			tried := 0
			try := func(setbacks ...setback) {
				tried++
				if faults, _, _ := perform(t, headache, setbacks); len(faults) > 0 {
					t.Errorf("%v: %q", setbacks, faults)
				}
			}
			for _, f := range all {
				try(f)
			}
			if os.Getenv("FAULTS") == "all" {
				for i, f := range all {
					for _, g := range all[i+1:] {
						try(f, g)
					}
				}
			} else {
				seed, _ := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
				if seed == 0 {
					seed = rand.Uint64()
				}
				t.Logf("SEED=%d", seed)
				random := rand.New(rand.NewPCG(seed, 0))
				for range 1500 {
					try(all[random.IntN(len(all))], all[random.IntN(len(all))])
				}
			}
			t.Logf("%d points of the old generation, %d of the candidate; %d runs", old, candidate, tried)
		})
	}
}
