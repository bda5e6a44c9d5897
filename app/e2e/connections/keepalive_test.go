//go:build unix

package connections_test

import (
	"fmt"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestKeptConnectionsNeverFail reloads under clients that keep one connection
// each and never retry. Every fifth candidate fails.
func TestKeptConnectionsNeverFail(t *testing.T) {
	t.Parallel()
	for _, n := range []int{32, 512} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			p, b := e2etest.Light(t)
			place := p.Path("failpoint")
			p.Edit("config/main.yaml", "drain: 500ms", "drain: 20s")        // the machine is shared with many clients
			p.Edit("config/main.yaml", "max_pause: 250ms", "max_pause: 2s") // for the same reason
			p.StartWith("ORCHESTRATOR_FAILPOINT=" + place)
			s, err := p.Peek()
			p.Check(err)
			clients := e2etest.KeepAlive(s.Listen[0], n)
			p.Wait("every client to be answered", func() bool { return clients.Answered.Load() >= int64(2*n) })
			var held, longest float64
			for i := range 50 {
				want := client.Reloaded
				if i%5 == 4 {
					want = client.Rejected
					p.Setback(i / 5)
				}
				mark := clients.Answered.Load()
				o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old, TimeoutMS: 60_000})
				if err != nil || o.Verdict != want {
					t.Fatalf("reload %d = %+v, %v; want %s", i, o, err, want)
				}
				held += o.StagesMS["pause"]
				longest = max(longest, o.StagesMS["pause"])
				p.Wait("clients to be answered", func() bool { return clients.Answered.Load() > mark+int64(n) })
			}
			clients.End()
			if clients.Failed.Load() != 0 || clients.Redialled.Load() != 0 {
				t.Errorf("%d of %d requests failed, %d connections were dialled again: %v", clients.Failed.Load(), clients.Answered.Load(), clients.Redialled.Load(), clients.Why.Load())
			}
			if have, err := e2etest.Count(s.Listen[0]); err != nil || have != clients.Answered.Load() {
				t.Errorf("the counter is %d, %v; answered %d", have, err, clients.Answered.Load())
			}
			t.Logf("%d requests on %d connections through 50 reloads, 10 of them rolled back; pauses %v in all, %v at most", clients.Answered.Load(), n, time.Duration(held*1e6), time.Duration(longest*1e6))
		})
	}
}
