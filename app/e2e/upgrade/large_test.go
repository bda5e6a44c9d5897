//go:build unix

package upgrade_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// reloadLarge reloads once, and returns the outcome and the peak memory in MiB of
// the old and the new process, or of the old one only if the reload fails.
func reloadLarge(p *e2etest.Project, binary, holds string) (o *client.Outcome, peakOld, peakNew int) {
	before, err := p.Peek()
	p.Check(err)
	p.Check(os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", before.PID), []byte("5"), 0)) // forgets earlier peaks
	stop, peak := make(chan struct{}), make(chan int)
	go func() { // afterwards the process is gone
		most := 0
		for {
			most = max(most, e2etest.StatusField(before.PID, "VmHWM:"))
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	o, err = p.Upgrade(client.ReloadRequest{Binary: binary, TimeoutMS: 60_000, WaitProbation: true})
	close(stop)
	peakOld = <-peak
	p.Check(err)
	after, err := p.Peek()
	p.Check(err)
	if after.PID != before.PID {
		peakNew = e2etest.StatusField(after.PID, "VmHWM:")
	}
	if _, got, err := e2etest.Do(http.MethodGet, "http://"+after.Listen[0]+"/large/", ""); err != nil || got != holds {
		p.T.Fatalf("after the reload it holds %s, %v; want %s", got, err, holds)
	}
	return o, peakOld, peakNew
}

// TestALargeStateIsNeverInMemoryTwice moves a state to a new process, and back to
// the old one when the new one fails.
func TestALargeStateIsNeverInMemoryTwice(t *testing.T) {
	t.Parallel()
	const mib = 128
	p := e2etest.New(t)
	binary, holds := e2etest.LargeProject(p, mib)
	o, peakOld, peakNew := reloadLarge(p, binary, holds)
	t.Logf("reload: peak %d MiB in the old process, %d in the new one, for a state of %d", peakOld, peakNew, mib)
	if o.Verdict != client.Reloaded || peakOld < mib || peakOld > mib*3/2 || peakNew < mib || peakNew > mib*3/2 {
		t.Errorf("reload %+v: peak memory %d MiB in the old process, %d in the new one, for a state of %d", *o, peakOld, peakNew, mib)
	}
	p.Write("failpoint", "candidate.at.initialized exit1")
	o, peakOld, _ = reloadLarge(p, binary, holds)
	t.Logf("rollback: peak %d MiB", peakOld)
	if o.Verdict != client.Rejected || peakOld > mib*3/2 {
		t.Errorf("rollback %+v: peak memory %d MiB for a state of %d", *o, peakOld, mib)
	}
}

// BenchmarkStateOf1GiB compares moving such a state with copying as much through
// a pipe on the same machine.
func BenchmarkStateOf1GiB(b *testing.B) {
	const mib = 1024
	dir := b.TempDir()
	p := e2etest.Make(b, dir)
	b.Cleanup(p.CleanUp)
	binary, holds := e2etest.LargeProject(p, mib)
	var pause, pipe float64
	var atOld, atNew int
	for b.Loop() {
		o, peakOld, peakNew := reloadLarge(p, binary, holds)
		if o.Verdict != client.Reloaded {
			b.Fatalf("reload = %+v", *o)
		}
		if peakOld > mib*3/2 || peakNew > mib*3/2 {
			b.Errorf("peak memory %d and %d MiB", peakOld, peakNew)
		}
		pause += o.StagesMS["pause"]
		atOld, atNew = max(atOld, peakOld), max(atNew, peakNew)
		began := time.Now()
		p.Check(copyThroughPipe(mib))
		pipe += time.Since(began).Seconds() * 1000
	}
	b.ReportMetric(pause/float64(b.N), "pause-ms")
	b.ReportMetric(pipe/float64(b.N), "pipe-ms")
	b.ReportMetric(pause/pipe, "pause/pipe")
	b.ReportMetric(float64(atOld), "peak-old-MiB")
	b.ReportMetric(float64(atNew), "peak-new-MiB")
	b.ReportMetric(0, "ns/op") // says nothing here
}

// copyThroughPipe writes chunks of 1 MiB at one end and keeps them at the other.
func copyThroughPipe(mib int) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	go func() {
		chunk := []byte(strings.Repeat("x", 1<<20))
		for range mib {
			w.Write(chunk)
		}
		w.Close()
	}()
	var kept [][]byte
	for range mib {
		c := make([]byte, 1<<20)
		if _, err := io.ReadFull(r, c); err != nil {
			return err
		}
		kept = append(kept, c)
	}
	if len(kept) != mib {
		return fmt.Errorf("%d chunks of %d", len(kept), mib)
	}
	return nil
}
