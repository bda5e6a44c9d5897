package cmd_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"orchestrator/app/control"
)

// setbacks are failures of a candidate before its commit, of every kind.
var setbacks = []string{
	"candidate.before.hello exit1", "candidate.at.restored kill", "candidate.at.prepared exit0", "candidate.before.healthy garbage",
	"candidate.at.initialized exit1", "candidate.before.prepared garbage", "candidate.after.prepared kill", "candidate.at.initialized kill",
}

// TestSoak reloads again and again under load, every second time to a
// candidate that fails. $SOAK is how often; it prints its figures.
func TestSoak(t *testing.T) {
	t.Parallel()
	reloads := 40
	if n, err := strconv.Atoi(os.Getenv("SOAK")); err == nil {
		reloads = n
	}
	p, b := lightTest(t)
	place := p.path("failpoint")
	p.startWith("ORCHESTRATOR_FAILPOINT=" + place)
	p.nextReloadWorks(b.old)
	var first *control.Status
	p.wait("the worker's part of the status", func() (ok bool) {
		var err error
		first, err = p.peek()
		p.check(err)
		return first.Goroutines > 0
	})
	address := first.Listen[0]
	p.wait("the first generation to go", func() bool { return len(p.processes()) == 2 })
	files := func(s *control.Status) [2]int { return [2]int{open(s.PID), open(s.SupervisorPID)} }
	filesFirst, memoryFirst := files(first), memory(first.PID)+memory(first.SupervisorPID)

	l := startLoad(address)
	kept := keepAlive(address, 4)
	began := time.Now()
	var pauses []float64
	for i := range reloads {
		want, r := control.Reloaded, control.ReloadRequest{Binary: b.old, TimeoutMS: 60_000}
		switch {
		case i%20 == 19: // is not well after its commit
			want, r.Binary, r.WaitProbation = control.RolledBack, b.new, true
			p.write("sick", "Healthy")
		case i%2 == 1:
			want = control.Rejected
			p.setback(i / 2)
		}
		o, err := p.upgrade(r)
		if err != nil || o.Outcome != want {
			t.Fatalf("reload %d = %+v, %v; want %s", i, o, err, want)
		}
		if pause, ok := o.StagesMS["pause"]; ok {
			pauses = append(pauses, pause)
		}
	}
	took := time.Since(began)
	l.end()
	kept.end()
	if n := l.failed.Load() + kept.failed.Load(); n > 0 {
		t.Errorf("%d requests failed: %v %v", n, l.why.Load(), kept.why.Load())
	}
	answered := l.old.Load() + l.new.Load() + kept.answered.Load()
	if have, err := count(address); err != nil || have != answered {
		t.Errorf("the counter is %d, %v; answered %d", have, err, answered)
	}
	p.nextReloadWorks(b.old)
	var last *control.Status
	var filesLast [2]int
	p.wait("the descriptors, goroutines and processes to be as before", func() bool {
		var err error
		last, err = p.peek()
		p.check(err)
		filesLast = files(last)
		return filesLast[0] <= filesFirst[0] && filesLast[1] <= filesFirst[1] && len(p.processes()) == 2 && zombies(p) == 0 &&
			last.Goroutines > 0 && last.Goroutines <= first.Goroutines+2 // a connection may be closing
	})
	memoryLast := memory(last.PID) + memory(last.SupervisorPID)
	if memoryLast > 2*memoryFirst+32 { // both have a heap that grows and shrinks
		t.Errorf("%d MiB of memory, %d at first", memoryLast, memoryFirst)
	}
	slices.Sort(pauses)
	fmt.Printf("soak: %d reloads, every second one bad, in %.1fs; %d requests on new connections, %d on %d kept ones (%d re-dialled), %d failed; pause median %.1f ms, longest %.1f ms; files of worker and supervisor %v -> %v, goroutines %d -> %d, memory %d -> %d MiB\n",
		reloads, took.Seconds(), l.sent.Load(), kept.answered.Load(), kept.n, kept.redialled.Load(), l.failed.Load()+kept.failed.Load(),
		pauses[len(pauses)/2], pauses[len(pauses)-1], filesFirst, filesLast, first.Goroutines, last.Goroutines, memoryFirst, memoryLast)
}

// memory is what a process has resident, in MiB.
func memory(pid int) int { return statusField(pid, "VmRSS:") }

// statusField is a field of /proc/PID/status that is given in KiB, in MiB.
func statusField(pid int, name string) int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for _, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return atoi(strings.Fields(rest)[0]) >> 10
		}
	}
	return 0
}

// keptAlive are clients that use one connection each and never try a request
// again.
type keptAlive struct {
	n                           int
	stop                        chan struct{}
	done                        sync.WaitGroup
	answered, failed, redialled atomic.Int64
	reached                     atomic.Int64 // clients that were answered at least once
	why                         atomic.Value
}

func keepAlive(address string, n int) *keptAlive {
	k := &keptAlive{n: n, stop: make(chan struct{})}
	for range n {
		k.done.Go(func() { k.client(address) })
	}
	return k
}

func (k *keptAlive) client(address string) {
	var c net.Conn
	var in *bufio.Reader
	reached := sync.OnceFunc(func() { k.reached.Add(1) })
	for first := true; ; first = false {
		select {
		case <-k.stop:
			if c != nil {
				c.Close()
			}
			return
		default:
		}
		err := error(nil)
		if c == nil {
			if !first {
				k.redialled.Add(1)
			}
			if c, err = net.Dial("tcp", address); err == nil {
				in = bufio.NewReader(c)
			}
		}
		if err == nil {
			err = postOn(c, in)
		}
		if err != nil {
			k.failed.Add(1)
			k.why.Store(err.Error())
			if c != nil {
				c.Close()
				c = nil
			}
		} else {
			k.answered.Add(1)
			reached()
		}
		<-time.After(max(2*time.Millisecond, time.Duration(k.n)*time.Millisecond/8)) // pace: the machine is shared
	}
}

// postOn counts up on an open connection.
func postOn(c net.Conn, in *bufio.Reader) error {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "POST /counter/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body := make([]byte, resp.ContentLength)
	for n := 0; n < len(body); {
		m, err := resp.Body.Read(body[n:])
		if n += m; n < len(body) && err != nil {
			return err
		}
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return nil
}

func (k *keptAlive) end() {
	close(k.stop)
	k.done.Wait()
}
