package cmd_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"orchestrator/app/control"
)

// largeModule holds as many MiB as it is told, and streams them.
const largeModule = `package large

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"

	"orchestrator/app/eventbus"
	"orchestrator/modules"
)

type Large struct{ value value }

type value struct{ chunks [][]byte }

func New() modules.Module { return &Large{} }

func (l *Large) State() modules.State { return modules.State{Value: &l.value} }
func (l *Large) Initialize(context.Context, *eventbus.Bus, modules.Config) error { return nil }
func (l *Large) Shutdown(context.Context) error { return nil }

func (v *value) WriteTo(w io.Writer) (n int64, err error) {
	for _, c := range v.chunks {
		m, err := w.Write(c)
		if n += int64(m); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (v *value) ReadFrom(r io.Reader) (n int64, err error) {
	for left := r.(interface{ Size() int64 }).Size(); left > 0; {
		c := make([]byte, min(left, 1<<20))
		m, err := io.ReadFull(r, c)
		if n += int64(m); err != nil {
			return n, err
		}
		left -= int64(m)
		v.chunks = append(v.chunks, c)
	}
	return n, nil
}

func (l *Large) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if mib, err := strconv.Atoi(r.FormValue("mib")); err == nil {
		l.value.chunks = nil
		debug.FreeOSMemory()
		for i := range mib {
			c := make([]byte, 1<<20)
			for j := range c {
				c[j] = byte(i + j*j)
			}
			l.value.chunks = append(l.value.chunks, c)
		}
	}
	sum, size := uint32(0), 0
	for _, c := range l.value.chunks {
		sum, size = crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), c), size+len(c)
	}
	fmt.Fprintln(w, size, sum)
}
`

// largeProject serves a module that holds this much.
func largeProject(p *project, mib int) (binary, holds string) {
	p.addModule("large", largeModule)
	p.write("config/main.yaml", "app:\n  hot_reload: false\n  listen: 127.0.0.1:0\n  probation: 100ms\nmodules:\n  - name: large\n")
	binary = p.path("bin/orchestrator")
	p.check(os.Remove(binary))
	p.check(p.compile("bin/orchestrator"))
	p.startWith("ORCHESTRATOR_FAILPOINT=" + p.path("failpoint"))
	s, err := p.peek()
	p.check(err)
	_, holds, err = do(http.MethodGet, fmt.Sprintf("http://%s/large/?mib=%d", s.Listen[0], mib), "")
	p.check(err)
	return binary, holds
}

// reloadLarge reloads once, and returns the pause and the peak memory of the
// old process and the new one, or of the old one only if the reload fails.
func (p *project) reloadLarge(binary, holds string) (o *control.Outcome, peakOld, peakNew int) {
	before, err := p.peek()
	p.check(err)
	p.check(os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", before.PID), []byte("5"), 0)) // forgets earlier peaks
	stop, peak := make(chan struct{}), make(chan int)
	go func() { // it is gone before it could be asked afterwards
		most := 0
		for {
			most = max(most, statusField(before.PID, "VmHWM:"))
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	o, err = p.upgrade(control.ReloadRequest{Binary: binary, TimeoutMS: 60_000, WaitProbation: true})
	close(stop)
	peakOld = <-peak
	p.check(err)
	after, err := p.peek()
	p.check(err)
	if after.PID != before.PID {
		peakNew = statusField(after.PID, "VmHWM:")
	}
	if _, got, err := do(http.MethodGet, "http://"+after.Listen[0]+"/large/", ""); err != nil || got != holds {
		p.t.Fatalf("after the reload it holds %s, %v; want %s", got, err, holds)
	}
	return o, peakOld, peakNew
}

// TestALargeStateIsNeverInMemoryTwice moves one to a new process, and back into
// the old one when that fails.
func TestALargeStateIsNeverInMemoryTwice(t *testing.T) {
	t.Parallel()
	const mib = 128
	p := testProject(t)
	binary, holds := largeProject(p, mib)
	o, peakOld, peakNew := p.reloadLarge(binary, holds)
	t.Logf("reload: peak %d MiB in the old process, %d in the new one, for a state of %d", peakOld, peakNew, mib)
	if o.Outcome != control.Reloaded || peakOld < mib || peakOld > mib*3/2 || peakNew < mib || peakNew > mib*3/2 {
		t.Errorf("reload %+v: peak memory %d MiB in the old process, %d in the new one, for a state of %d", *o, peakOld, peakNew, mib)
	}
	p.write("failpoint", "candidate.at.initialized exit1")
	o, peakOld, _ = p.reloadLarge(binary, holds)
	t.Logf("rollback: peak %d MiB", peakOld)
	if o.Outcome != control.Rejected || peakOld > mib*3/2 {
		t.Errorf("rollback %+v: peak memory %d MiB for a state of %d", *o, peakOld, mib)
	}
}

// BenchmarkStateOf1GiB tells what moving it costs, beside what copying as much
// through a pipe does on the same machine.
func BenchmarkStateOf1GiB(b *testing.B) {
	const mib = 1024
	dir := b.TempDir()
	p := newProject(b, dir)
	b.Cleanup(p.cleanUp)
	binary, holds := largeProject(p, mib)
	var pause, pipe float64
	var old, new int
	for b.Loop() {
		o, peakOld, peakNew := p.reloadLarge(binary, holds)
		if o.Outcome != control.Reloaded {
			b.Fatalf("reload = %+v", *o)
		}
		if peakOld > mib*3/2 || peakNew > mib*3/2 {
			b.Errorf("peak memory %d and %d MiB", peakOld, peakNew)
		}
		pause += o.StagesMS["pause"]
		old, new = max(old, peakOld), max(new, peakNew)
		began := time.Now()
		p.check(copyThroughPipe(mib))
		pipe += time.Since(began).Seconds() * 1000
	}
	b.ReportMetric(pause/float64(b.N), "pause-ms")
	b.ReportMetric(pipe/float64(b.N), "pipe-ms")
	b.ReportMetric(pause/pipe, "pause/pipe")
	b.ReportMetric(float64(old), "peak-old-MiB")
	b.ReportMetric(float64(new), "peak-new-MiB")
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
