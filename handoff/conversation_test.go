package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// These tests let both sides of a handoff talk to each other, without a process
// and in no time.

const stepTime = time.Second // deadline of each step

// step is the context of one step.
func (c *conversation) step() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), stepTime)
	c.t.Cleanup(cancel)
	return ctx
}

func someStates(t *testing.T) *States {
	t.Helper()
	s, err := NewStates(1 << 10)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Add("counter", 3, 1<<10, func(w io.Writer) error { _, err := io.WriteString(w, "42"); return err }); err != nil {
		t.Fatal(err)
	}
	return s
}

// oldSteps are what the old generation does, in order. Each may fail.
var oldSteps = []string{"welcome", "states", "commit", "conns", "probation", "final"}

// oldSide runs the old generation until a step fails, which it names.
func (c *conversation) oldSide(states *States, conns []Conn) (failed string, left []Conn, err error) {
	for _, name := range oldSteps {
		switch name {
		case "welcome":
			if err = c.candidate.greet(c.step(), 0); err == nil {
				err = c.candidate.Welcome(c.step(), Welcome{Generation: 1, Modules: []ModuleInfo{{Name: "counter"}}})
			}
		case "states":
			if err = c.candidate.Transfer(c.step(), states, nil); err == nil {
				err = c.candidate.AwaitHealthy(c.step())
			}
		case "commit":
			err = c.candidate.Commit(c.step(), Commit{Held: 2, Probation: true})
		case "conns":
			left, err = c.candidate.Move(c.step(), conns)
		case "probation":
			err = c.candidate.Probation(context.Background(), ProbationTimes{Length: 5 * stepTime, Answer: stepTime, HandBack: stepTime, OnUnhealthy: func() {}}, nil)
		case "final":
			err = c.candidate.Finish(c.step(), false)
		}
		if err != nil {
			return name, left, err
		}
	}
	return "", nil, nil
}

// candidateSteps are what the candidate does, in order.
var candidateSteps = []string{"hello", "progress", "prepared", "healthy", "accepting", "probation", "ready"}

// candidateSide runs the candidate. before is called with the name of each step
// before it is taken, and stops the candidate by returning false.
func (c *conversation) candidateSide(before func(step string) bool, healthy func() *UpgradeError) (failed string, got []Conn, err error) {
	var states *States
	for _, name := range candidateSteps {
		if !before(name) {
			return name, got, nil
		}
		switch name {
		case "hello":
			_, err = c.old.Hello(c.step(), Hello{Generation: 2, Modules: []string{"counter"}})
		case "progress":
			c.old.Progress(c.step(), StagePrepare, "counter")
		case "prepared":
			if states, _, err = c.old.Prepared(c.step()); err == nil {
				err = states.Read("counter", func(r *StateReader) error {
					text, err := io.ReadAll(r)
					if string(text) != "42" {
						c.t.Errorf("the state is %q, %v", text, err)
					}
					return err
				})
				states.Close()
			}
		case "healthy":
			_, err = c.old.Healthy(c.step())
		case "accepting":
			_, err = c.old.Accepting(c.step(), func(conns []Conn) { got = append(got, conns...) })
		case "probation":
			_, err = c.old.Probation(context.Background(), healthy)
		case "ready":
			err = c.old.Ready(c.step())
		}
		if err != nil {
			return name, got, err
		}
	}
	return "", got, nil
}

func always(string) bool                          { return true }
func healthy() *UpgradeError                      { return nil }
func inBubble(t *testing.T, f func(t *testing.T)) { t.Helper(); synctest.Test(t, f) }

func TestConversation(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := converse(t)
		conns, clients := newConns(300) // more than fit into one message
		asked := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			failed, got, err := c.candidateSide(always, func() *UpgradeError { asked++; return nil })
			if failed != "" || len(got) != 300 {
				t.Errorf("the candidate fails in %q: %v; it has %d connections", failed, err, len(got))
			}
			for i, conn := range got {
				if conn.Owner != fmt.Sprint(i) {
					t.Errorf("connection %d is of %s", i, conn.Owner)
				}
				go io.WriteString(conn, "x")
				if n, err := clients[i].Read(make([]byte, 1)); n != 1 {
					t.Errorf("client %d reads %d bytes, %v", i, n, err)
				}
				conn.Close()
			}
		}()
		began := time.Now()
		failed, left, err := c.oldSide(someStates(t), conns)
		<-done
		if failed != "" || len(left) > 0 || !c.candidate.Final() || !c.candidate.Committed() {
			t.Errorf("the old generation fails in %q: %v; %d connections are left", failed, err, len(left))
		}
		if took := time.Since(began); took != 5*stepTime || asked < 6 || asked > 7 { // the last may come with the end
			t.Errorf("the probation took %v, and the candidate was asked %d times; want 5s and 6 or 7", took, asked)
		}
		for i, client := range clients { // no handle is left open
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Fatalf("client %d reads %v: a handle is open", i, err)
			}
		}
		if h := c.candidate.Hello(); h.Generation != 2 || c.process.pid != os.Getpid() {
			t.Errorf("the hello is %+v of process %d", h, c.process.pid)
		}
	})
}

// TestConversation_theCandidateFails in each of its steps, in each way. Before
// the commit the old generation learns of it and has everything; afterwards it
// has what was not acknowledged.
func TestConversation_theCandidateFails(t *testing.T) {
	ways := map[string]func(c *conversation) bool{
		"dies":     func(c *conversation) bool { c.process.exit(errors.New("exit status 2")); return false },
		"is stuck": func(c *conversation) bool { return false },
		"gives up": func(c *conversation) bool {
			c.old.Fail(c.step(), &UpgradeError{Stage: StagePrepare, Module: "counter", Err: errors.New("no database")})
			return false
		},
		"talks nonsense": func(c *conversation) bool { c.old.link.send(c.step(), message{Type: "nonsense"}); return false },
	}
	for _, at := range candidateSteps {
		if at == "progress" {
			continue // nobody waits for it
		}
		for way, fails := range ways {
			if at == "ready" && (way == "gives up" || way == "talks nonsense") {
				continue // nobody listens any more
			}
			t.Run(at+" "+way, func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					c := converse(t)
					conns, _ := newConns(3)
					defer closeConns(conns)
					done := make(chan struct{})
					go func() {
						defer close(done)
						_, got, _ := c.candidateSide(func(name string) bool { return name != at || fails(c) }, healthy)
						closeConns(got)
					}()
					failed, left, err := c.oldSide(someStates(t), conns)
					if failed == "" {
						t.Fatal("the old generation has noticed nothing")
					}
					committed := at == "accepting" || at == "probation" || at == "ready"
					if c.candidate.Committed() != committed {
						t.Errorf("committed = %v after %q failed", c.candidate.Committed(), failed)
					}
					if failed == "conns" && len(left) != 3 {
						t.Errorf("%d connections are left, want all", len(left))
					}
					var where *UpgradeError
					if failed != "welcome" && !errors.As(err, &where) {
						t.Fatalf("%s: %v is no UpgradeError", failed, err)
					}
					want := map[string]string{"dies": "it exited|the candidate exited (exit status 2)|EOF|broken pipe", "is stuck": "did not answer in time|deadline exceeded", "gives up": "no database|failed", "talks nonsense": "nonsense"}[way]
					if !slices.ContainsFunc(strings.Split(want, "|"), func(w string) bool { return strings.Contains(err.Error(), w) }) {
						t.Errorf("%s: %v; want %q", failed, err, want)
					}
					c.candidate.Kill()
					if c.process.err() == nil {
						t.Error("the candidate lives")
					}
					<-done
				})
			})
		}
	}
}

// TestConversation_theOldGenerationDies in each of its steps. From the states on
// the candidate has everything, and knows it.
func TestConversation_theOldGenerationDies(t *testing.T) {
	for i, at := range oldSteps {
		t.Run(at, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := converse(t)
				conns, _ := newConns(1)
				defer closeConns(conns)
				failed := ""
				var err error
				done := make(chan struct{})
				go func() {
					defer close(done)
					var got []Conn
					failed, got, err = c.candidateSide(always, healthy)
					closeConns(got)
				}()
				steps := oldSteps
				oldSteps = steps[:i]
				c.oldSide(someStates(t), conns)
				oldSteps = steps
				c.oldEnd.close()
				<-done
				if !errors.Is(err, ErrPredecessorGone) {
					t.Errorf("in %q the candidate hears %v, want that the old generation is gone", failed, err)
				}
				if knows := failed == "healthy" || failed == "accepting" || failed == "probation" || failed == "ready"; knows != (i > 1) {
					t.Errorf("it fails in %q", failed)
				}
			})
		})
	}
}

// TestConversation_silence: a candidate may take long for many hooks, if it says which,
// but not stand still for longer than one may take.
func TestConversation_silence(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := converse(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if _, err := c.old.Hello(c.step(), Hello{Generation: 2}); err != nil {
				t.Error(err)
			}
			for i := range 20 {
				time.Sleep(stepTime * 9 / 10)
				c.old.Progress(c.step(), StagePrepare, fmt.Sprint("m", i))
			}
		}()
		if err := c.candidate.greet(c.step(), 0); err != nil {
			t.Fatal(err)
		}
		heard := 0
		c.candidate.Watch(stepTime, func() { heard++ })
		began := time.Now()
		long, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		err := c.candidate.Welcome(long, Welcome{})
		where := (*UpgradeError)(nil)
		if !errors.As(err, &where) || where.Module != "m19" || !strings.Contains(err.Error(), "did not answer in time") {
			t.Errorf("Welcome = %v, want that it stands still in m19", err)
		}
		if took := time.Since(began); took != 20*stepTime*9/10+stepTime || heard != 21 {
			t.Errorf("it took %v and %d signs of life", took, heard)
		}
		c.candidate.Kill()
		<-done
	})
}

// TestConversation_handedBack: an unhealthy candidate returns everything, and
// keeps what the old generation does not take.
func TestConversation_handedBack(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := converse(t)
		conns, _ := newConns(2)
		failure := &UpgradeError{Stage: StageHealthy, Module: "hello", Err: errors.New("a headache")}
		asked := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			failed, got, err := c.candidateSide(always, func() *UpgradeError {
				if asked++; asked == 3 {
					return failure
				}
				return nil
			})
			if failed != "probation" || !errors.Is(err, failure) {
				t.Errorf("the candidate goes on after %q: %v", failed, err)
				return
			}
			if err := c.old.Unhealthy(c.step()); err != nil {
				t.Error(err)
			}
			left, err := c.old.Return(c.step(), failure, someStates(t), got)
			if err != nil || len(left) > 0 {
				t.Errorf("Return = %d left, %v", len(left), err)
			}
		}()
		recalled := false
		if err := c.candidate.greet(c.step(), 0); err != nil {
			t.Fatal(err)
		}
		states := someStates(t)
		for _, err := range []error{
			c.candidate.Welcome(c.step(), Welcome{}), c.candidate.Transfer(c.step(), states, nil), c.candidate.AwaitHealthy(c.step()), c.candidate.Commit(c.step(), Commit{}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.candidate.Move(c.step(), conns); err != nil {
			t.Fatal(err)
		}
		err := c.candidate.Probation(context.Background(), ProbationTimes{Length: 5 * stepTime, Answer: stepTime, HandBack: stepTime, OnUnhealthy: func() { recalled = true }}, nil)
		var back *ReturnedError
		if !errors.As(err, &back) || back.Module != "hello" || !recalled {
			t.Fatalf("Probation = %v, recalled %v", err, recalled)
		}
		if v, ok := back.States.Version("counter"); !ok || v != 3 {
			t.Errorf("the state that came back has version %d, %v", v, ok)
		}
		back.States.Close()
		var again []Conn
		if n, err := c.candidate.TakeBack(c.step(), func(conns []Conn) { again = append(again, conns...) }); n != 2 || err != nil {
			t.Errorf("TakeBack = %d, %v", n, err)
		}
		closeConns(again)
		<-done
		c.process.exit(errors.New("exit status 1")) // it has said why
		c.candidate.AwaitExit(c.step())
		if c.process.kills != 0 {
			t.Error("a candidate that ends by itself was killed")
		}
	})
}

func TestConversation_theProbationIsCut(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := converse(t)
		cut := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			if wasCut, err := c.old.Probation(context.Background(), healthy); !wasCut || err != nil {
				t.Errorf("Probation = %v, %v; want cut", wasCut, err)
			}
			c.self.ready()
		}()
		time.AfterFunc(stepTime, func() { close(cut) })
		began := time.Now()
		if err := c.candidate.Probation(context.Background(), ProbationTimes{Length: time.Hour, Answer: stepTime}, cut); err != nil || time.Since(began) != stepTime {
			t.Errorf("Probation = %v after %v", err, time.Since(began))
		}
		if err := c.candidate.Finish(c.step(), true); err != nil {
			t.Error(err)
		}
		<-done
	})
}

// TestKill goes on until the process is dead: it may not be found at first.
func TestKill(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := converse(t)
		c.process.spare = 10
		c.candidate.Kill()
		if c.process.err() == nil || c.process.kills != 11 {
			t.Errorf("it was killed %d times: %v", c.process.kills, c.process.err())
		}
	})
}

// TestKill_leavesAFinalCandidateAlone: it serves.
func TestKill_leavesAFinalCandidateAlone(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := converse(t)
		c.process.exit(nil)
		c.candidate.Kill()
		if c.process.kills != 0 || !c.candidate.Final() {
			t.Error("a candidate that serves was killed")
		}
	})
}

// TestDismiss gives a candidate that has prepared the time to shut down.
func TestDismiss(t *testing.T) {
	for _, obeys := range []bool{true, false} {
		inBubble(t, func(t *testing.T) {
			c := converse(t)
			if obeys {
				go func() {
					c.old.link.receive(context.Background()) // until the link is closed
					time.Sleep(stepTime / 2)
					c.process.exit(errors.New("exit status 1"))
				}()
			}
			began := time.Now()
			c.candidate.Dismiss(c.step())
			if took := time.Since(began); obeys != (c.process.kills == 0) || obeys && took != stepTime/2 || !obeys && took != stepTime {
				t.Errorf("obeys %v: it was killed %d times, after %v", obeys, c.process.kills, took)
			}
		})
	}
}

// TestSocketsOfAFailedCandidate are removed, if only it has made them.
func TestSocketsOfAFailedCandidate(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/s"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	inBubble(t, func(t *testing.T) {
		c := converse(t)
		c.self.made = []string{path}
		go c.candidateSide(func(name string) bool {
			if name == "healthy" {
				c.process.exit(errors.New("exit status 1"))
			}
			return name != "healthy"
		}, healthy)
		if failed, _, err := c.oldSide(someStates(t), nil); failed != "states" {
			t.Errorf("it fails in %q: %v", failed, err)
		}
		c.candidate.Kill()
	})
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there")
	}
}
