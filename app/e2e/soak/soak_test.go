//go:build unix

package soak_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestSoak reloads again and again under load, every second time to a candidate
// that fails. $SOAK says how often. It prints its figures.
func TestSoak(t *testing.T) {
	t.Parallel()
	reloads := 40
	if n, err := strconv.Atoi(os.Getenv("SOAK")); err == nil {
		reloads = n
	}
	p, b := e2etest.Light(t)
	place := p.Path("failpoint")
	p.StartWith("ORCHESTRATOR_FAILPOINT=" + place)
	p.NextReloadWorks(b.Old)
	var first *client.Status
	p.Wait("the worker's part of the status", func() (ok bool) {
		var err error
		first, err = p.Peek()
		p.Check(err)
		return first.Goroutines > 0
	})
	address := first.Listen[0]
	p.Wait("the first generation to go", func() bool { return len(p.Processes()) == 2 })
	files := func(s *client.Status) [2]int { return [2]int{e2etest.Open(s.PID), e2etest.Open(s.SupervisorPID)} }
	filesFirst, memoryFirst := files(first), e2etest.Memory(first.PID)+e2etest.Memory(first.SupervisorPID)

	l := e2etest.StartLoad(address)
	kept := e2etest.KeepAlive(address, 4)
	began := time.Now()
	var pauses []float64
	for i := range reloads {
		want, r := client.Reloaded, client.ReloadRequest{Binary: b.Old, TimeoutMS: 60_000}
		switch {
		case i%20 == 19: // is unhealthy after its commit
			want, r.Binary, r.WaitProbation = client.RolledBack, b.New, true
			p.Write("failing", "Healthy")
		case i%2 == 1:
			want = client.Rejected
			p.Setback(i / 2)
		}
		o, err := p.Upgrade(r)
		if err != nil || o.Verdict != want {
			t.Fatalf("reload %d = %+v, %v; want %s", i, o, err, want)
		}
		if pause, ok := o.StagesMS["pause"]; ok {
			pauses = append(pauses, pause)
		}
	}
	took := time.Since(began)
	l.End()
	kept.End()
	if n := l.Failed.Load() + kept.Failed.Load(); n > 0 {
		t.Errorf("%d requests failed: %v %v", n, l.Why.Load(), kept.Why.Load())
	}
	answered := l.Old.Load() + l.New.Load() + kept.Answered.Load()
	if have, err := e2etest.Count(address); err != nil || have != answered {
		t.Errorf("the counter is %d, %v; answered %d", have, err, answered)
	}
	p.NextReloadWorks(b.Old)
	var last *client.Status
	var filesLast [2]int
	p.Wait("the descriptors, goroutines and processes to be as before", func() bool {
		var err error
		last, err = p.Peek()
		p.Check(err)
		filesLast = files(last)
		return filesLast[0] <= filesFirst[0] && filesLast[1] <= filesFirst[1] && len(p.Processes()) == 2 && e2etest.Zombies(p) == 0 &&
			last.Goroutines > 0 && last.Goroutines <= first.Goroutines+2 // a connection may be closing
	})
	memoryLast := e2etest.Memory(last.PID) + e2etest.Memory(last.SupervisorPID)
	if memoryLast > 2*memoryFirst+32 { // the heap grows and shrinks in both
		t.Errorf("%d MiB of memory, %d at first", memoryLast, memoryFirst)
	}
	slices.Sort(pauses)
	fmt.Printf("soak: %d reloads, every second one bad, in %.1fs; %d requests on new connections, %d on %d kept ones (%d re-dialled), %d failed; pause median %.1f ms, longest %.1f ms; files of worker and supervisor %v -> %v, goroutines %d -> %d, memory %d -> %d MiB\n",
		reloads, took.Seconds(), l.Sent.Load(), kept.Answered.Load(), kept.N, kept.Redialled.Load(), l.Failed.Load()+kept.Failed.Load(),
		pauses[len(pauses)/2], pauses[len(pauses)-1], filesFirst, filesLast, first.Goroutines, last.Goroutines, memoryFirst, memoryLast)
}
