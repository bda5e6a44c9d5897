package cmd_test

import (
	"slices"
	"testing"

	"orchestrator/app/control"
)

// BenchmarkPause reloads again and again under 32 busy connections and tells
// for how long no request was answered.
func BenchmarkPause(b *testing.B) {
	raceFlag = nil
	p, builds := lightProject(b, b.TempDir())
	b.Cleanup(p.cleanUp)
	p.edit("config/main.yaml", "probation: 300ms", "probation: 0s")
	p.startWith()
	clients := keepAlive(p.address(), 32)
	var pauses, totals []float64
	for b.Loop() {
		mark := clients.answered.Load()
		p.wait("clients to be answered", func() bool { return clients.answered.Load() > mark+100 })
		o, err := p.upgrade(control.ReloadRequest{Binary: builds.old, TimeoutMS: 60_000})
		if err != nil || o.Outcome != control.Reloaded {
			b.Fatalf("reload = %+v, %v", o, err)
		}
		pauses, totals = append(pauses, o.StagesMS["pause"]), append(totals, o.TotalMS)
	}
	clients.end()
	if clients.failed.Load()+clients.redialled.Load() > 0 {
		b.Errorf("%d requests failed: %v", clients.failed.Load(), clients.why.Load())
	}
	slices.Sort(pauses)
	slices.Sort(totals)
	b.ReportMetric(pauses[len(pauses)/2], "pause-ms-median")
	b.ReportMetric(pauses[len(pauses)*99/100], "pause-ms-p99")
	b.ReportMetric(totals[len(totals)/2], "reload-ms-median")
	b.ReportMetric(float64(clients.answered.Load()), "requests")
	b.ReportMetric(0, "ns/op") // says nothing here
}
