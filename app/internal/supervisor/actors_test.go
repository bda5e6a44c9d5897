//go:build unix

package supervisor

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/wire"
)

// These tests run the real supervisor among generations that act by themselves, and make
// one or two of them fail at any point of what they do. Together with TestInterleaved of
// package handoff they cover the three parties of a reload.

// stage is where the actors are.
type scene struct {
	w        *world
	setbacks map[int]string // by point: how the generation that comes to it fails

	all sync.WaitGroup // of everything that they do

	mu     sync.Mutex // guards the fields below
	points int
	hung   []*process
}

// actor is a generation.
type actor struct {
	s     *scene
	p     *process
	conn  *wire.Conn
	heard chan control.Message // closed when the process or its link has ended
	pred  *pass                // how its old generation talks to it; nil for a first one
}

// pass is what an old generation and its candidate say to each other.
type pass struct {
	ready    chan struct{} // closed by the candidate: it needs the states
	states   chan struct{} // closed by the old one: the candidate has everything
	commit   chan struct{} // closed by the old one
	final    chan struct{} // closed by the old one: the probation is over
	accepted chan struct{} // closed by the candidate: it is final
	newGone  chan struct{} // closed when the candidate has died
	oldGone  chan struct{} // closed when the old one has died
}

func newPass() *pass {
	return &pass{make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})}
}

const actTime = 10 * time.Millisecond // how long each thing that they do takes

// point is a moment at which a generation may fail.
func (a *actor) point() {
	time.Sleep(actTime)
	a.s.mu.Lock()
	a.s.points++
	how := a.s.setbacks[a.s.points]
	a.s.mu.Unlock()
	switch how {
	case "dies":
		a.p.die(proc.Status{Code: 2})
	case "sleeps":
		time.Sleep(4 * time.Second)
	case "hangs":
		a.s.mu.Lock()
		a.s.hung = append(a.s.hung, a.p)
		a.s.mu.Unlock()
		for a.p.ended() == nil {
			time.Sleep(time.Second)
		}
	}
	if a.p.ended() != nil {
		runtime.Goexit()
	}
}

// act is the life of a generation.
func (s *scene) act(p *process, pred *pass) {
	a := &actor{s: s, p: p, heard: make(chan control.Message, 100), pred: pred}
	if pred != nil {
		defer close(pred.newGone)
	}
	defer func() { p.die(proc.Status{}) }()
	a.point()
	near, far := net.Pipe()
	s.w.conns <- far
	c, err := wire.Greet(near, wire.Hello{Role: wire.RoleWorker, PID: p.pid, Generation: p.generation})
	if err != nil {
		return
	}
	a.conn = c
	s.w.mu.Lock()
	p.link = &fakeWorker{process: p, conn: c}
	dead := p.status != nil
	s.w.mu.Unlock()
	if dead {
		c.Close()
	}
	s.all.Go(func() { // ends with the link
		defer close(a.heard)
		for {
			var m control.Message
			if c.Receive(&m) != nil {
				return
			}
			a.heard <- m
		}
	})
	a.point()
	if pred == nil {
		a.serve(nil)
	} else {
		a.takeOver()
	}
}

func (a *actor) say(m control.Message) {
	a.point()
	a.conn.Send(m)
	a.point()
}

// serve is the life of a generation that serves, until it has been replaced or told to
// stop.
func (a *actor) serve(report *control.Report) {
	a.say(control.Message{Type: control.TypeServing, Serving: &control.Serving{
		Name: "test", Listen: []string{"127.0.0.1:1"}, StopMS: 3000, QueueMS: 10_000, Report: report,
		Modules:  []client.Module{{Name: "counter", State: client.ModuleRunning, Stateful: true}},
		Packages: map[string]string{"counter": "p/counter"},
	}})
	if report != nil {
		a.probation()
	}
	for m := range a.heard {
		a.point()
		switch m.Type {
		case control.TypeUpgrade:
			if a.upgrade(*m.Upgrade) {
				return
			}
		case control.TypeStop:
			return
		}
	}
}

// probation is what the candidate does until it is final.
func (a *actor) probation() {
	select {
	case <-a.pred.final:
	case <-a.pred.oldGone:
	}
	a.point()
	close(a.pred.accepted)
	a.say(control.Message{Type: control.TypeFinal, Final: &control.Final{Generation: a.p.generation, Probation: client.ProbationPassed}})
}

// takeOver is the beginning of a candidate.
func (a *actor) takeOver() {
	a.point()
	close(a.pred.ready)
	select {
	case <-a.pred.states:
	case <-a.pred.oldGone:
		return
	}
	a.point()
	select {
	case <-a.pred.commit:
	case <-a.pred.oldGone:
	}
	a.serve(&control.Report{Generation: a.p.generation, TookOver: true, Standby: true, Changed: []string{"counter"}})
}

// stageLimit is what an old generation says of each stage.
const stageLimit = 2 * time.Second

func (a *actor) stage(name client.Stage) {
	a.say(control.Message{Type: control.TypeStage, Stage: &control.Stage{Name: name, LimitMS: stageLimit.Milliseconds()}})
}

// upgrade hands over. It reports whether the candidate is final.
func (a *actor) upgrade(order control.Upgrade) bool {
	a.stage(client.StageStart)
	a.s.w.mu.Lock()
	p := a.s.w.process(order.Generation, order.Binary)
	a.s.w.mu.Unlock()
	to := newPass()
	a.s.all.Go(func() { a.s.act(p, to) })
	gone := make(chan struct{})
	defer close(gone)
	a.s.all.Go(func() { // tells the candidate, as its link would
		for a.p.ended() == nil {
			select {
			case <-gone:
				if a.p.ended() == nil {
					continue
				}
			case <-time.After(actTime):
			}
			select {
			case <-to.newGone:
				return
			default:
			}
		}
		close(to.oldGone)
	})
	kill := func() {
		p.die(proc.Status{Code: -1, Signal: "killed"})
		<-to.newGone
	}
	// await waits for the candidate, or says why that is in vain.
	await := func(c chan struct{}) string {
		select {
		case <-c:
			return ""
		case <-to.newGone:
			return "the candidate exited"
		case <-time.After(stageLimit / 2):
			return "the candidate does not answer"
		}
	}
	if why := await(to.ready); why != "" {
		kill()
		a.say(control.Message{Type: control.TypeReport, Report: &control.Report{Generation: order.Generation, Stage: client.StagePrepare, Error: why}})
		return false
	}
	a.stage(client.StageHold)
	close(to.states)
	a.point()
	close(to.commit)
	a.stage(client.StageProbation)
	select {
	case <-time.After(time.Second):
	case <-to.newGone:
	}
	a.point()
	close(to.final)
	if why := await(to.accepted); why != "" {
		kill()
		select {
		case <-to.accepted: // at the last moment
			return true
		default:
		}
		a.say(control.Message{Type: control.TypeReport, Report: &control.Report{Generation: order.Generation, Stage: client.StageProbation, Error: why, Committed: true, Reverted: []string{"counter"}}})
		return false
	}
	a.point()
	return true
}

// perform runs a few reloads with these setbacks, and returns what is wrong and how many
// points there were.
func performActors(t *testing.T, setbacks map[int]string) (faults []string, points int) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	inWorld(t, func(w *world) {
		s := &scene{w: w, setbacks: setbacks}
		stopActing := make(chan struct{})
		go func() {
			for {
				select {
				case p := <-w.starts:
					s.all.Go(func() { s.act(p, nil) })
				case <-stopActing:
					return
				}
			}
		}()
		defer func() {
			close(stopActing)
			w.killAll()
			s.all.Wait()
		}()
		outcome := func(k *fakeClient) *client.Outcome {
			select {
			case m := <-k.answer:
				return m.Outcome
			case <-time.After(5 * time.Minute):
				return nil
			}
		}
		for range 2 {
			time.Sleep(time.Second)
			select {
			case <-w.done: // it could not start: that is an end, and a fault only without a setback
				w.done <- 1
				if len(setbacks) == 0 {
					fault("it ended")
				}
				return
			default:
			}
			if o := outcome(w.reload(client.ReloadRequest{WaitProbation: true})); o == nil && w.sup.workers.everServed {
				fault("a reload has no answer")
			}
		}
		time.Sleep(time.Minute) // whatever has failed, it recovers
		s.mu.Lock()
		points, s.setbacks = s.points, nil
		for _, p := range s.hung { // people kill one that hangs while it serves, as they are told to
			if p.ended() == nil && len(setbacks) > 0 {
				w.kill(p.pid)
			}
		}
		s.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if !w.sup.workers.everServed {
			return // the start of a program is nobody's to judge
		}
		for try := 0; ; try++ {
			o := outcome(w.reload(client.ReloadRequest{WaitProbation: true}))
			if o != nil && o.Verdict == client.Reloaded {
				break
			}
			if try == 2 {
				fault("after it all a reload = %+v", o)
				break
			}
			time.Sleep(time.Minute)
		}
		if st := w.status(); st.State != client.Serving {
			fault("after it all the state is %s", st.State)
		}
		time.Sleep(time.Minute)
		w.mu.Lock()
		alive := 0
		for _, p := range w.procs {
			if p.status == nil {
				alive++
			}
		}
		w.mu.Unlock()
		if alive != 1 {
			fault("%d generations are alive at the end", alive)
		}
		w.signals <- syscall.SIGTERM
		select {
		case code := <-w.done:
			w.done <- code
			if code != 0 {
				fault("it ends with %d", code)
			}
		case <-time.After(time.Minute):
			fault("it does not stop")
		}
		if len(faults) > 0 {
			faults = append(faults, "it printed:\n"+w.printed())
		}
		synctest.Wait()
	})
	return faults, points
}

// TestActors makes a generation fail at each point, and at two: some pairs, chosen by a
// seed, or with FAULTS=all every one.
func TestActors(t *testing.T) {
	faults, points := performActors(t, nil)
	if len(faults) > 0 {
		t.Fatalf("without any setback: %q", faults)
	}
	kinds := []string{"dies", "sleeps", "hangs"}
	tried := 0
	try := func(setbacks map[int]string) {
		tried++
		if faults, _ := performActors(t, setbacks); len(faults) > 0 {
			t.Errorf("%v: %s", setbacks, faults)
		}
	}
	for at := 1; at <= points; at++ {
		for _, k := range kinds {
			try(map[int]string{at: k})
		}
	}
	if os.Getenv("FAULTS") == "all" {
		for at := 1; at <= points; at++ {
			for then := at + 1; then <= points+10; then++ {
				for _, k := range kinds {
					for _, l := range kinds {
						try(map[int]string{at: k, then: l})
					}
				}
			}
		}
	} else {
		seed, _ := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
		if seed == 0 {
			seed = rand.Uint64()
		}
		t.Logf("SEED=%d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		for range 200 {
			try(map[int]string{1 + random.IntN(points): kinds[random.IntN(3)], 1 + random.IntN(points+10): kinds[random.IntN(3)]})
		}
	}
	t.Logf("%d points, %d runs", points, tried)
}
