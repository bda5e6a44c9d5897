package cmd_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"orchestrator/app/control"
)

// TestKilledAfterItsCommit kills new generations at random moments after their
// commit. Within the probation the old one comes back with what it had
// exported; later the same build starts again, without its state. Either is
// said, and what is missing was answered after the commit.
func TestKilledAfterItsCommit(t *testing.T) {
	t.Parallel()
	for line, probation := range []time.Duration{300 * time.Millisecond, 300 * time.Millisecond, time.Second, time.Second} {
		t.Run(fmt.Sprint(line), func(t *testing.T) {
			t.Parallel()
			p, b := lightTest(t)
			p.edit("config/main.yaml", "probation: 300ms", "probation: "+probation.String())
			p.startWith()
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

// killedAfter reloads to the new build and kills it this long after its
// commit. It tells whether the old generation came back, and how long nobody
// answered.
func killedAfter(p *project, b pair, probation, d time.Duration) (back bool, gap time.Duration) {
	p.nextReloadWorks(b.old)
	before, err := p.peek()
	p.check(err)
	address := before.Listen[0]
	base, err := count(address)
	p.check(err)
	l := startLoad(address)
	p.wait("some requests", func() bool { return l.old.Load() > 3 })
	began := time.Now()
	o, err := p.upgrade(control.ReloadRequest{Binary: b.new})
	committed := time.Now()
	p.check(err)
	if o.Outcome != control.Reloaded || o.Probation != control.ProbationPending {
		p.t.Fatalf("reload = %+v, want reloaded, on probation", *o)
	}
	s, err := p.peek()
	p.check(err)
	if s.Generation != o.Generation {
		p.t.Fatalf("generation %d serves, want %d", s.Generation, o.Generation)
	}
	<-time.After(time.Until(committed.Add(d))) // the random moment, not a wait for something
	p.check(syscall.Kill(s.PID, syscall.SIGKILL))
	killed := time.Now()
	mark := l.old.Load() + l.new.Load()
	p.wait("an answer", func() bool { return l.old.Load()+l.new.Load() > mark+1 })
	gap = time.Since(killed)
	var last *control.Status
	p.wait("a word about it", func() bool {
		last, err = p.peek()
		return err == nil && last.State == "serving" && last.PID != s.PID &&
			(last.LastReload.Outcome == control.RolledBack || last.LastCrash != nil && last.LastCrash.Generation == s.Generation)
	})
	l.end()
	have, err := count(address)
	p.check(err)
	answeredOld, answeredNew, failed := l.old.Load(), l.new.Load(), l.failed.Load()
	if last.PID == before.PID {
		if last.LastReload.Outcome != control.RolledBack || !slices.Contains(last.LastReload.Rewound, "counter") {
			p.t.Fatalf("the old generation is back, but the reload says %+v", *last.LastReload)
		}
		if have < base+answeredOld || have > base+answeredOld+failed {
			p.t.Fatalf("%v after the commit: the counter is %d, it was %d, the old generation answered %d, the new one %d, failed %d", d, have, base, answeredOld, answeredNew, failed)
		}
		return true, gap
	}
	if killed.Sub(began) < probation {
		p.t.Fatalf("%v after the commit, before the end of its probation (%q), nothing came back but a restart", d, last.LastReload.Probation)
	}
	// It had been final, but may have died before it could say so.
	if o := last.LastReload; o.Probation != control.ProbationPassed && (o.Outcome != control.Failed || !slices.Contains(o.Lost, "counter")) {
		p.t.Fatalf("%v after the commit it was killed, and started again, but the reload says %+v", d, *o)
	}
	if c := last.LastCrash; c.Serving != last.Generation || !slices.Contains(c.Lost, "counter") {
		p.t.Fatalf("another generation serves, but the crash says %+v", *c)
	}
	return false, gap
}
