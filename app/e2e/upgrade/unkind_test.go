//go:build unix

package upgrade_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// open sends text on a connection that stays open, and returns it.
func open(t *testing.T, network, address, text string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(e2etest.Patience))
	if _, err := fmt.Fprint(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

// others is clients that send request after request, each on its own connection,
// and remember the longest answer.
type others struct {
	stop    chan struct{}
	done    sync.WaitGroup
	longest atomic.Int64 // in nanoseconds
	failed  atomic.Value
	n       atomic.Int64
}

func startOthers(address, path string, n int) *others {
	o := &others{stop: make(chan struct{})}
	for range n {
		o.done.Go(func() {
			c, err := net.Dial("tcp", address)
			if err != nil {
				o.failed.Store(err.Error())
				return
			}
			defer c.Close()
			in := bufio.NewReader(c)
			for {
				select {
				case <-o.stop:
					return
				default:
				}
				began := time.Now()
				c.SetDeadline(began.Add(e2etest.Patience))
				fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
				resp, err := http.ReadResponse(in, nil)
				if err != nil || resp.StatusCode != http.StatusOK {
					o.failed.Store(fmt.Sprint(resp, err))
					return
				}
				in.Discard(int(resp.ContentLength))
				o.n.Add(1)
				took := time.Since(began)
				for old := o.longest.Load(); int64(took) > old && !o.longest.CompareAndSwap(old, int64(took)); old = o.longest.Load() {
				}
			}
		})
	}
	return o
}

// worst returns the longest answer since the last call.
func (o *others) worst() time.Duration { return time.Duration(o.longest.Swap(0)) }

func (o *others) end(t *testing.T) {
	t.Helper()
	close(o.stop)
	o.done.Wait()
	if why := o.failed.Load(); why != nil {
		t.Errorf("another client failed: %v", why)
	}
}

// TestUnkindClientsAndModules in production: a client that moves no byte does not
// hinder a reload beyond app.drain; code that does not end refuses it, and nobody
// else notices; --force goes through.
func TestUnkindClientsAndModules(t *testing.T) {
	t.Parallel()
	for _, unkind := range []struct {
		name    string
		provoke func(t *testing.T, p *e2etest.Project, address string) net.Conn
		refuses string // in the outcome; "" for nothing
		cut     string // answer to whoever is cut; "" for none
	}{
		{"a stalled upload", func(t *testing.T, _ *e2etest.Project, address string) net.Conn {
			return open(t, "tcp", address, "PUT /rude/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12")
		}, "", "HTTP/1.1 408 Request Timeout\r\n"},
		{"a reader that never reads", func(t *testing.T, _ *e2etest.Project, address string) net.Conn {
			return open(t, "tcp", address, "GET /rude/big HTTP/1.1\r\nHost: x\r\n\r\n")
		}, "", ""},
		{"select {}", func(t *testing.T, _ *e2etest.Project, address string) net.Conn {
			return open(t, "tcp", address, "GET /rude/select HTTP/1.1\r\nHost: x\r\n\r\n")
		}, `"GET /rude/select"`, "HTTP/1.1 503 Service Unavailable\r\n"},
		{"for {}", func(t *testing.T, _ *e2etest.Project, address string) net.Conn {
			return open(t, "tcp", address, "GET /rude/spin HTTP/1.1\r\nHost: x\r\n\r\n")
		}, `"GET /rude/spin"`, "HTTP/1.1 503 Service Unavailable\r\n"},
		{"an ignored ErrMoving", func(t *testing.T, p *e2etest.Project, _ string) net.Conn {
			c := open(t, "unix", p.Path("rude.sock"), "line\n")
			if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "line\n" {
				t.Fatalf("answered %q, %v", line, err)
			}
			return c
		}, `"a connection of module rude"`, ""},
	} {
		t.Run(unkind.name, func(t *testing.T) {
			t.Parallel()
			p, binary := e2etest.Rude(t, "drain: 500ms", "drain: 1500ms")
			address := p.Address()
			rest := startOthers(address, "/counter/", 32)
			defer rest.end(t)
			c := unkind.provoke(t, p, address)
			time.Sleep(300 * time.Millisecond) // until it is late; the clients see how they are served meanwhile
			before := rest.worst()
			began := time.Now()
			o, err := p.Upgrade(client.ReloadRequest{Binary: binary})
			took, worst := time.Since(began), rest.worst()
			p.Check(err)
			t.Logf("after %v, others waited at most %v (before: %v): %s", took, worst, before, o)
			if unkind.refuses == "" {
				if o.Verdict != client.Reloaded {
					t.Errorf("reload = %s", o)
				}
			} else if o.Verdict != client.Rejected || !strings.Contains(o.Error, unkind.refuses) || !strings.Contains(o.Error, "--force") {
				t.Errorf("reload = %s; want it refused, by %s", o, unkind.refuses)
			}
			if limit := 300*time.Millisecond + 2*before; worst > limit {
				t.Errorf("others waited for %v, want at most %v", worst, limit)
			}
			if unkind.refuses != "" {
				o, err := p.Upgrade(client.ReloadRequest{Binary: binary, Force: true})
				if err != nil || o.Verdict != client.Reloaded || !strings.Contains(o.String(), "left behind in generation") || strings.Contains(o.String(), "--force") {
					t.Errorf("reload --force = %v, %v", o, err)
				}
			}
			if unkind.cut != "" {
				if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != unkind.cut {
					t.Errorf("whoever was cut was answered %q, %v; want %q", line, err, unkind.cut)
				}
			}
		})
	}
}

// TestBusyServices: clients leave no gap, and every reload finds its moment all the
// same, without making them wait in vain. The long form has 8 and 32 clients, 300,
// 400 and 800 ms, and ten reloads each.
func TestBusyServices(t *testing.T) {
	t.Parallel()
	long := os.Getenv("BUSY") != ""
	for _, clients := range []int{8, 32} {
		for _, ms := range []int{300, 400, 800} {
			if !long && (clients == 8) == (ms == 800) {
				continue
			}
			t.Run(fmt.Sprintf("%d clients, %d ms", clients, ms), func(t *testing.T) {
				t.Parallel()
				drain, reloads := "drain: 3s", 3
				if long {
					drain, reloads = "drain: 10s", 10
				}
				p, binary := e2etest.Rude(t, "drain: 500ms", drain)
				rest := startOthers(p.Address(), fmt.Sprintf("/rude/slow?ms=%d", ms), clients)
				defer rest.end(t)
				p.Wait("the clients to be answered", func() bool { return rest.n.Load() > int64(3*clients) })
				for i := range reloads {
					o, err := p.Upgrade(client.ReloadRequest{Binary: binary, WaitProbation: true})
					p.Check(err)
					t.Logf("%s; holds %v", o, o.HoldsMS)
					if o.Verdict != client.Reloaded {
						t.Errorf("reload %d = %s", i, o)
					}
					if i > 0 && len(o.HoldsMS) != 1 {
						t.Errorf("reload %d: holds of %v ms, want one", i, o.HoldsMS)
					}
					slices.Sort(o.HoldsMS)
					if n := len(o.HoldsMS); n > 1 && o.HoldsMS[n-2] > 260 || n > 0 && o.HoldsMS[n-1] > 1010 {
						t.Errorf("reload %d: holds of %v ms, want at most one longer than max_pause, and none longer than max_freeze", i, o.HoldsMS)
					}
				}
			})
		}
	}
}

// TestAFailedReloadDoesNotWaitForPrepare: the values that a rollback starts have
// been prepared while everybody was served.
func TestAFailedReloadDoesNotWaitForPrepare(t *testing.T) {
	t.Parallel()
	p, binary := e2etest.Rude(t)
	p.Write("prepare-ms", "5000")
	before, err := p.Peek()
	p.Check(err)
	p.Write("initialize-fails", "")
	o, err := p.Upgrade(client.ReloadRequest{Binary: binary})
	p.Check(err)
	t.Logf("%s", o)
	if o.Verdict != client.Rejected || o.Stage != client.StageInitialize || o.TotalMS < 5000 {
		t.Errorf("reload = %s; want it rejected in Initialize, after a Prepare of 5 s", o)
	}
	if pause := o.StagesMS[client.StagePause]; pause >= 300 {
		t.Errorf("the pause was %v ms, want less than 300", pause)
	}
	if s, err := p.Peek(); err != nil || s.PID != before.PID || s.State != client.Serving {
		t.Errorf("after it: %+v, %v", s, err)
	}
}

// TestFailedReloadsLeaveAStateExact that no deadline allows to be read back.
func TestFailedReloadsLeaveAStateExact(t *testing.T) {
	t.Parallel()
	p, binary := e2etest.Rude(t, "hook_timeout: 15s", "hook_timeout: 5s")
	url := "http://" + p.Address() + "/rude/blob"
	_, want, err := e2etest.Do(http.MethodGet, url+"?mib=64", "")
	p.Check(err)
	p.Write("decode-ms", "60000")
	for i := range 3 {
		o, err := p.Upgrade(client.ReloadRequest{Binary: binary})
		p.Check(err)
		t.Logf("%s", o)
		if o.Verdict != client.Rejected || o.Stage != client.StageRestore || o.FailedModule != "rude" || !strings.Contains(o.Error, "app.hook_timeout") {
			t.Errorf("reload %d = %s; want it rejected: the state is decoded too slowly", i, o)
		}
		if _, got, err := e2etest.Do(http.MethodGet, url, ""); err != nil || got != want {
			t.Fatalf("after failed reload %d the state is %q, %v; want %q", i, got, err, want)
		}
	}
	// The limit that counts is that of the configuration which is being loaded.
	p.Write("decode-ms", "6000")
	p.Edit("config/main.yaml", "hook_timeout: 5s", "hook_timeout: 60s")
	if o, err := p.Upgrade(client.ReloadRequest{Binary: binary}); err != nil || o.Verdict != client.Reloaded {
		t.Errorf("reload = %v, %v", o, err)
	}
	if _, got, err := e2etest.Do(http.MethodGet, url, ""); err != nil || got != want {
		t.Errorf("after a reload the state is %q, %v; want %q", got, err, want)
	}
}

// TestAStateThatIsStillWrittenTo: a handler that was left behind goes on writing to
// its map, which may kill the old process in the middle of the handoff. Every other
// state is exact.
func TestAStateThatIsStillWrittenTo(t *testing.T) {
	t.Parallel()
	p, binary := e2etest.Rude(t)
	address := p.Address()
	for range 3 {
		_, _, err := e2etest.Increment(address)
		p.Check(err)
	}
	open(t, "tcp", address, "GET /rude/scribble HTTP/1.1\r\nHost: x\r\n\r\n")
	o, err := p.Upgrade(client.ReloadRequest{Binary: binary, Force: true})
	p.Check(err)
	t.Logf("%s", o)
	if o.Verdict != client.Reloaded {
		t.Errorf("reload --force = %s", o)
	}
	if n, err := e2etest.Count(address); err != nil || n != 3 {
		t.Errorf("the counter is %d, %v; want 3", n, err)
	}
	if s, err := p.Peek(); err != nil || s.LastCrash != nil {
		t.Errorf("status = %+v, %v; want no crash", s, err)
	}
}
