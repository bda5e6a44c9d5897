//go:build unix

package failures_test

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestACrashRefusesNobody kills the serving generation, a first one and later ones,
// under clients with a connection for each request: every connection is accepted.
func TestACrashRefusesNobody(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.StartWith()
	address := p.Address()
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var refused, answered atomic.Int64
	for range 32 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond): // pace: the machine is shared
				}
				if _, _, err := e2etest.Increment(address); errors.Is(err, syscall.ECONNREFUSED) {
					refused.Add(1)
				} else if err == nil {
					answered.Add(1)
				}
			}
		})
	}
	for i := range 4 {
		if i%2 == 1 {
			p.Reloads(b.Old)
		}
		before, err := p.Peek()
		p.Check(err)
		mark := answered.Load()
		p.Wait("requests to be answered", func() bool { return answered.Load() > mark+50 })
		p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
		p.Wait("another generation to serve", func() bool {
			s, err := p.Peek()
			return err == nil && s.State == client.Serving && s.Generation > before.Generation
		})
	}
	close(stop)
	clients.Wait()
	if n := refused.Load(); n > 0 {
		t.Errorf("%d connections were refused, %d requests answered", n, answered.Load())
	}
}

// TestWhoWaitsTooLongIsTurnedAway: after app.crash_queue nobody waits for a program
// that does not start.
func TestWhoWaitsTooLongIsTurnedAway(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.Edit("config/main.yaml", "drain: 500ms", "drain: 500ms\n  crash_queue: 1s")
	p.StartWith()
	address := p.Address()
	p.Reloads(b.New)
	s, err := p.Peek()
	p.Check(err)
	p.Write("failing", "Initialize")
	p.Check(syscall.Kill(s.PID, syscall.SIGKILL))
	p.Wait("clients to be turned away", func() bool { return strings.Contains(p.Printed(), "app.crash_queue") })
	c, err := net.Dial("tcp", address)
	p.Check(err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(e2etest.Patience))
	_, err = c.Write([]byte("GET /counter/ HTTP/1.1\r\nHost: x\r\n\r\n"))
	p.Check(err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("it was answered %v, %v; want 503 with Retry-After", resp, err)
	}
	p.Write("failing", "")
	p.Wait("a generation to serve", func() bool { s, err := p.Peek(); return err == nil && s.State == client.Serving })
	p.Wait("requests to be answered", func() bool { _, _, err := e2etest.Increment(address); return err == nil })
}
