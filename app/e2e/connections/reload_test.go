//go:build unix

package connections_test

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"example.org/orchestrator/app/e2e/e2etest"
)

// TestAConnectionPerRequestNeverFails reloads under clients that open a
// connection for each request. Every fifth reload is rolled back.
func TestAConnectionPerRequestNeverFails(t *testing.T) {
	t.Parallel()
	p, good, bad := e2etest.BinaryProject(t)
	url := p.URL("")
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var sent, failures atomic.Int64
	var example atomic.Value
	for range 8 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				sent.Add(1)
				if code, text, err := e2etest.Do(http.MethodPost, url+"/counter/", ""); err != nil || code != http.StatusOK {
					failures.Add(1)
					example.Store(fmt.Sprint(code, text, err))
				}
			}
		})
	}
	for i := range 50 {
		binary, want := good, 0
		if i%5 == 4 {
			binary, want = bad, 3
		}
		if o, code := p.Reload("--binary", binary); code != want {
			t.Errorf("reload %d = exit %d, %+v; want exit %d", i, code, o, want)
		}
	}
	close(stop)
	clients.Wait()
	if failures.Load() != 0 {
		t.Errorf("%d of %d requests failed, such as: %v", failures.Load(), sent.Load(), example.Load())
	}
	if got := p.Get("/counter/"); got != strconv.FormatInt(sent.Load(), 10) {
		t.Errorf("the counter is %s after %d answered requests", got, sent.Load())
	}
	t.Logf("%d requests through 50 reloads", sent.Load())
}
