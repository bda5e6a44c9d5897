//go:build unix

package failures_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestKilledAfterItsCommit kills new generations at random moments after their
// commit. During the probation the old one serves again with what it exported;
// later the same build starts again without its state. Both are reported, and
// only what was answered after the commit is missing.
func TestKilledAfterItsCommit(t *testing.T) {
	t.Parallel()
	for line, probation := range []time.Duration{300 * time.Millisecond, 300 * time.Millisecond, time.Second, time.Second} {
		t.Run(fmt.Sprint(line), func(t *testing.T) {
			t.Parallel()
			p, b := e2etest.Light(t)
			p.Edit("config/main.yaml", "probation: 300ms", "probation: "+probation.String())
			p.StartWith()
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			back, again := 0, 0
			var longest time.Duration
			for range 10 {
				after := time.Duration(random.IntN(1000)) * time.Millisecond
				wasBack, gap := killedAfter(p, b, probation, after)
				longest = max(longest, gap)
				if wasBack {
					back++
				} else {
					again++
				}
			}
			t.Logf("%d rolled back, %d started again; at most %v from the kill to an answer", back, again, longest)
		})
	}
}

// killedAfter reloads to the new build and kills it d after its commit. It returns
// whether the old generation came back, and for how long no request was answered.
func killedAfter(p *e2etest.Project, b e2etest.Pair, probation, d time.Duration) (back bool, gap time.Duration) {
	p.NextReloadWorks(b.Old)
	before, err := p.Peek()
	p.Check(err)
	address := before.Listen[0]
	base, err := e2etest.Count(address)
	p.Check(err)
	l := e2etest.StartLoad(address)
	p.Wait("some requests", func() bool { return l.Old.Load() > 3 })
	idle, err := net.Dial("tcp", address)
	p.Check(err)
	defer idle.Close()
	p.Check(e2etest.PostOn(idle, bufio.NewReader(idle)))
	base++
	began := time.Now()
	o, err := p.Upgrade(client.ReloadRequest{Binary: b.New})
	committed := time.Now()
	p.Check(err)
	if o.Verdict != client.Reloaded || o.Probation != client.ProbationPending {
		p.T.Fatalf("reload = %+v, want reloaded, on probation", *o)
	}
	s, err := p.Peek()
	p.Check(err)
	if s.Generation != o.Generation {
		p.T.Fatalf("generation %d serves, want %d", s.Generation, o.Generation)
	}
	<-time.After(time.Until(committed.Add(d))) // a random moment, not a wait for a condition
	p.Check(syscall.Kill(s.PID, syscall.SIGKILL))
	killed := time.Now()
	mark := l.Old.Load() + l.New.Load()
	p.Wait("an answer", func() bool { return l.Old.Load()+l.New.Load() > mark+1 })
	gap = time.Since(killed)
	var last *client.Status
	p.Wait("a word about it", func() bool {
		last, err = p.Peek()
		return err == nil && last.State == "serving" && last.PID != s.PID &&
			(last.LastReload.Verdict == client.RolledBack || last.LastCrash != nil && last.LastCrash.Generation == s.Generation)
	})
	l.End()
	have, err := e2etest.Count(address)
	p.Check(err)
	answeredOld, answeredNew, failed := l.Old.Load(), l.New.Load(), l.Failed.Load()
	if last.PID == before.PID {
		if last.LastReload.Verdict != client.RolledBack || !slices.Contains(last.LastReload.Reverted, "counter") {
			p.T.Fatalf("the old generation is back, but the reload says %+v", *last.LastReload)
		}
		if told := last.LastReload.String(); !strings.Contains(told, "had moved to generation") {
			p.T.Fatalf("a connection was lost with the candidate, but the reload says %s", told)
		}
		if have < base+answeredOld || have > base+answeredOld+failed {
			p.T.Fatalf("%v after the commit: the counter is %d, it was %d, the old generation answered %d, the new one %d, failed %d", d, have, base, answeredOld, answeredNew, failed)
		}
		return true, gap
	}
	if killed.Sub(began) < probation {
		p.T.Fatalf("%v after the commit, before the end of its probation (%q), nothing came back but a restart", d, last.LastReload.Probation)
	}
	// It was final, but may have died before it could report that.
	if o := last.LastReload; o.Probation != client.ProbationPassed && (o.Verdict != client.Failed || !slices.Contains(o.Lost, "counter")) {
		p.T.Fatalf("%v after the commit it was killed, and started again, but the reload says %+v", d, *o)
	}
	if c := last.LastCrash; c.Serving != last.Generation || !slices.Contains(c.Lost, "counter") {
		p.T.Fatalf("another generation serves, but the crash says %+v", *c)
	}
	return false, gap
}
