package cmd_test

import (
	"fmt"
	"testing"
	"time"

	"orchestrator/app/control"
)

// TestKeptConnectionsNeverFail reloads under clients that keep one connection
// each and never try again; every fifth candidate fails and is rolled back.
func TestKeptConnectionsNeverFail(t *testing.T) {
	t.Parallel()
	for _, n := range []int{32, 512} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			p, b := lightTest(t)
			place := p.path("failpoint")
			p.edit("config/main.yaml", "drain: 500ms", "drain: 20s")        // the machine is shared with many clients
			p.edit("config/main.yaml", "max_pause: 250ms", "max_pause: 2s") // and so is the pause
			p.startWith("ORCHESTRATOR_FAILPOINT=" + place)
			s, err := p.peek()
			p.check(err)
			clients := keepAlive(s.Listen[0], n)
			p.wait("every client to be answered", func() bool { return clients.answered.Load() >= int64(2*n) })
			var held, longest float64
			for i := range 50 {
				want := control.Reloaded
				if i%5 == 4 {
					want = control.Rejected
					p.setback(i / 5)
				}
				mark := clients.answered.Load()
				o, err := p.upgrade(control.ReloadRequest{Binary: b.old, TimeoutMS: 60_000})
				if err != nil || o.Outcome != want {
					t.Fatalf("reload %d = %+v, %v; want %s", i, o, err, want)
				}
				held += o.StagesMS["pause"]
				longest = max(longest, o.StagesMS["pause"])
				p.wait("clients to be answered", func() bool { return clients.answered.Load() > mark+int64(n) })
			}
			clients.end()
			if clients.failed.Load() != 0 || clients.redialled.Load() != 0 {
				t.Errorf("%d of %d requests failed, %d connections were dialled again: %v", clients.failed.Load(), clients.answered.Load(), clients.redialled.Load(), clients.why.Load())
			}
			if have, err := count(s.Listen[0]); err != nil || have != clients.answered.Load() {
				t.Errorf("the counter is %d, %v; answered %d", have, err, clients.answered.Load())
			}
			t.Logf("%d requests on %d connections through 50 reloads, 10 of them rolled back; pauses %v in all, %v at most", clients.answered.Load(), n, time.Duration(held*1e6), time.Duration(longest*1e6))
		})
	}
}
