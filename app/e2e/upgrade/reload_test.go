//go:build unix

package upgrade_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/orchestrator/app/e2e/e2etest"
)

func TestStateSurvivesFiftyReloads(t *testing.T) {
	t.Parallel()
	p, good, _ := e2etest.BinaryProject(t)
	url := p.URL("")
	if code, _, err := e2etest.Do(http.MethodPut, url+"/kv/key", "value"); err != nil || code != http.StatusNoContent {
		t.Fatalf("PUT /kv/key = %d, %v", code, err)
	}
	supervisor := p.Status().SupervisorPID

	stop := make(chan struct{})
	var watching sync.WaitGroup
	var most atomic.Int64
	watching.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				most.Store(max(most.Load(), int64(holders(p, "kv.db"))))
			}
		}
	})
	for i := range 50 {
		if o, code := p.Reload("--binary", good); code != 0 || o.Generation != i+2 {
			t.Fatalf("reload %d = exit %d, %+v", i, code, o)
		}
		if _, got, err := e2etest.Do(http.MethodPost, url+"/counter/", ""); err != nil || got != strconv.Itoa(i+1) {
			t.Fatalf("after reload %d the counter answers %q, %v; want %d", i, got, err, i+1)
		}
	}
	close(stop)
	watching.Wait()
	if got := p.Get("/kv/key"); got != "value" {
		t.Errorf("kv has %q, want value", got)
	}
	if got := most.Load(); got != 1 {
		t.Errorf("kv's file was held by %d processes at a time, want 1", got)
	}
	if got := p.Status(); got.SupervisorPID != supervisor || got.SupervisorPID != p.Cmd.Process.Pid || got.Generation != 51 {
		t.Errorf("supervisor %d, generation %d; want %d, 51", got.SupervisorPID, got.Generation, supervisor)
	}
}

// holders counts the processes that have the project's file locked. The system
// lists its locks a page at a time, so a lock that moves may be listed at both
// places: a process counts only if two readings in a row list it.
func holders(p *e2etest.Project, name string) int {
	info, err := os.Stat(filepath.Join(p.Dir, ".orchestrator", name))
	if err != nil {
		return 0
	}
	inode := fmt.Sprintf(":%d ", inodeOf(info))
	look := func() map[string]bool {
		pids := map[string]bool{}
		locks, _ := os.ReadFile("/proc/locks")
		for _, line := range strings.Split(string(locks), "\n") {
			if f := strings.Fields(line); strings.Contains(line, inode) && !strings.Contains(line, "->") && len(f) > 4 {
				pids[f[4]] = true
			}
		}
		return pids
	}
	first := look()
	if len(first) < 2 {
		return len(first)
	}
	n := 0
	for pid := range look() {
		if first[pid] {
			n++
		}
	}
	return n
}

// TestNothingIsLeftBehind counts files, goroutines, processes and folders after a
// hundred reloads, good and failed.
func TestNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	p, good, bad := e2etest.BinaryProject(t)
	type resources struct{ workerFiles, supervisorFiles, goroutines, processes int }
	measure := func() resources {
		s := p.Status()
		return resources{e2etest.Open(s.PID), e2etest.Open(s.SupervisorPID), s.Goroutines, len(p.Processes())}
	}
	settle := func(want *resources) (r resources) { // a connection may still be closing
		for end := time.Now().Add(e2etest.Patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			before := r
			if r = measure(); r.processes == 2 && r.goroutines > 0 && (want == nil && r == before || want != nil && r == *want) {
				return r
			}
		}
		if want == nil {
			t.Fatalf("it does not come to rest: %+v", r)
		}
		return r
	}
	reload := func(binary string, want int) {
		t.Helper()
		if o, code := p.Reload("--binary", binary); code != want {
			t.Fatalf("reload = exit %d, %+v; want %d", code, o, want)
		}
	}
	reload(good, 0)
	first := settle(nil)
	for i := range 99 {
		if i%3 == 1 {
			reload(bad, 3)
		} else {
			reload(good, 0)
		}
	}
	if last := settle(&first); last != first {
		t.Errorf("after 100 reloads %+v, after the first %+v", last, first)
	}
	if left, _ := filepath.Glob(p.Path(".orchestrator/handoff-*")); len(left) > 0 {
		t.Errorf("handoff sockets were left: %v", left)
	}
}
