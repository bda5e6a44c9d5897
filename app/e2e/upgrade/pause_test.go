//go:build unix

package upgrade_test

import (
	"slices"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// BenchmarkPause reloads again and again under 32 busy connections and reports
// for how long no request was answered.
func BenchmarkPause(b *testing.B) {
	e2etest.RaceFlag = nil
	p, builds := e2etest.MakeLight(b, b.TempDir())
	b.Cleanup(p.CleanUp)
	p.Edit("config/main.yaml", "probation: 300ms", "probation: 0s")
	p.StartWith()
	clients := e2etest.KeepAlive(p.Address(), 32)
	var pauses, totals []float64
	for b.Loop() {
		mark := clients.Answered.Load()
		p.Wait("clients to be answered", func() bool { return clients.Answered.Load() > mark+100 })
		o, err := p.Upgrade(client.ReloadRequest{Binary: builds.Old, TimeoutMS: 60_000})
		if err != nil || o.Verdict != client.Reloaded {
			b.Fatalf("reload = %+v, %v", o, err)
		}
		pauses, totals = append(pauses, o.StagesMS["pause"]), append(totals, o.TotalMS)
	}
	clients.End()
	if clients.Failed.Load()+clients.Redialled.Load() > 0 {
		b.Errorf("%d requests failed: %v", clients.Failed.Load(), clients.Why.Load())
	}
	slices.Sort(pauses)
	slices.Sort(totals)
	b.ReportMetric(pauses[len(pauses)/2], "pause-ms-median")
	b.ReportMetric(pauses[len(pauses)*99/100], "pause-ms-p99")
	b.ReportMetric(totals[len(totals)/2], "reload-ms-median")
	b.ReportMetric(float64(clients.Answered.Load()), "requests")
	b.ReportMetric(0, "ns/op") // says nothing here
}
