package handoff

import (
	"errors"
	"io"
	"testing"
	"time"
)

// TestDoubtfulStatesFollow: a state that something may still write to crosses
// after all others, so that it endangers none of them.
func TestDoubtfulStatesFollow(t *testing.T) {
	for name, dies := range map[string]bool{"the old generation lives": false, "and dies of the last one": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := converse(t)
				done := make(chan struct{})
				go func() {
					defer close(done)
					if _, err := c.old.Hello(c.step(), Hello{}); err != nil {
						t.Error(err)
						return
					}
					states, doubtful, err := c.old.Prepared(c.step())
					if _, ok := states.Version("counter"); err != nil || !ok || len(doubtful) != 3 {
						t.Errorf("Prepared = %v, %v, %v", states, doubtful, err)
						return
					}
					module, torn, err := c.old.Doubtful(c.step())
					if _, ok := torn.Version("counter"); err != nil || module != "torn" || !ok {
						t.Errorf("Doubtful = %q, %v, %v; want a state", module, torn, err)
					}
					lost := (*LostError)(nil)
					if module, _, err := c.old.Doubtful(c.step()); module != "late" || !errors.As(err, &lost) || lost.Reason != "too late" {
						t.Errorf("Doubtful = %q, %v; want why it is lost", module, err)
					}
					_, _, err = c.old.Doubtful(c.step())
					if errors.Is(err, ErrPredecessorGone) != dies {
						t.Errorf("Doubtful = %v, want that the old generation is gone: %v", err, dies)
					}
				}()
				if err := c.candidate.greet(c.step(), 0); err != nil {
					t.Fatal(err)
				}
				for _, err := range []error{
					c.candidate.Welcome(c.step(), Welcome{}),
					c.candidate.Transfer(c.step(), someStates(t), []string{"torn", "late", "last"}),
					c.candidate.TransferDoubtful(c.step(), "torn", someStates(t), nil),
					c.candidate.TransferDoubtful(c.step(), "late", nil, errors.New("too late")),
				} {
					if err != nil {
						t.Fatal(err)
					}
				}
				if dies {
					c.oldEnd.close()
				} else if err := c.candidate.TransferDoubtful(c.step(), "last", someStates(t), nil); err != nil {
					t.Error(err)
				}
				<-done
			})
		})
	}
}

// TestALateAcknowledgementCounts: when the time for a batch is over, the old
// generation does not know whether the candidate has read from its connections.
// Once that one is dead, the acknowledgement is there or it is not.
func TestALateAcknowledgementCounts(t *testing.T) {
	for name, acknowledged := range map[string]bool{"acknowledged": true, "not acknowledged": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := converse(t)
				conns, clients := newConns(2)
				defer func() {
					for _, client := range clients {
						client.Close()
					}
				}()
				taken := make(chan struct{})
				go func() {
					defer close(taken)
					m, files, err := c.old.link.receive(c.step())
					if err != nil {
						t.Error(err)
						return
					}
					defer closeAll(files)
					time.Sleep(2 * batchTime) // the process stands still: no deadline of its own acts
					if acknowledged {
						c.old.link.send(c.step(), message{Type: typeConns, Conns: m.Conns})
					}
				}()
				c.process.onKill = func() { <-taken }
				left, err := c.candidate.Move(t.Context(), conns)
				if err == nil {
					t.Fatal("Move has not noticed")
				}
				if want := map[bool]int{true: 0, false: 2}[acknowledged]; len(left) != want {
					t.Errorf("%d connections are left, want %d", len(left), want)
				}
				closeConns(left)
				if acknowledged {
					if _, err := clients[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
						t.Errorf("a connection that the candidate had is open here: %v", err)
					}
				}
			})
		})
	}
}
