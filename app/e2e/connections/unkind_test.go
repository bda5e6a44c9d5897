//go:build unix

package connections_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestCrowdsOfUnkindClients: the service answers others throughout, reloads go
// through, and nothing that was acknowledged is lost.
func TestCrowdsOfUnkindClients(t *testing.T) {
	t.Parallel()
	for _, crowd := range []struct {
		name  string
		n     int
		send  string
		files int // descriptors that the program may open; 0 for as many as here
	}{
		{"half heads", 500, "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n", 0},
		{"stalled bodies", 500, "PUT /kv/x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", 0},
		{"half heads of 60 KiB", 500, "GET / HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("b", 60<<10), 0},
		{"idle connections, few descriptors", 2000, "", 1024},
	} {
		t.Run(crowd.name, func(t *testing.T) {
			t.Parallel()
			p, b := e2etest.Light(t)
			p.Configure("drain: 500ms", "drain: 3s", "max_pause: 250ms", "max_pause: 1s\n  max_freeze: 3s") // the machine is shared
			startWithFiles(p, crowd.files)
			address := p.Address()
			clients := e2etest.KeepAlive(address, 8)
			p.Wait("every client to be answered", func() bool { return clients.Reached.Load() == 8 })
			for range crowd.n {
				c, err := net.Dial("tcp", address)
				p.Check(err)
				defer c.Close()
				_, err = io.WriteString(c, crowd.send)
				p.Check(err)
			}
			for range 2 {
				o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old, WaitProbation: true})
				if err != nil || o.Verdict != client.Reloaded {
					t.Errorf("reload = %v, %v", o, err)
				}
				t.Logf("%s", o)
			}
			for range 3 { // newcomers
				if _, _, err := e2etest.Increment(address); err != nil {
					t.Errorf("a newcomer: %v", err)
				}
			}
			clients.End()
			if clients.Failed.Load() > 0 && crowd.files == 0 || clients.Answered.Load() == 0 {
				t.Errorf("%d requests failed, %d were answered: %v", clients.Failed.Load(), clients.Answered.Load(), clients.Why.Load())
			}
			// A client whose idle connection is closed for others has lost no answer.
			if n, err := e2etest.Count(address); err != nil || n < clients.Answered.Load()+3 {
				t.Errorf("the counter is %d, %v; answered were %d", n, err, clients.Answered.Load()+3)
			}
		})
	}
}

// startWithFiles starts run with a limit of open files; 0 for that of the test.
func startWithFiles(p *e2etest.Project, files int) {
	if files == 0 {
		p.StartWith()
		return
	}
	cmd := exec.Command("sh", "-c", fmt.Sprintf("ulimit -n %d && exec bin/orchestrator run >>run.log 2>&1", files))
	cmd.Dir, cmd.Env = p.Dir, e2etest.Environ
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.Check(cmd.Start())
	p.Began(cmd)
	p.Wait("the program to serve", func() bool {
		s, err := p.Peek()
		return err == nil && s.State == client.Serving
	})
}

// TestSlowloris: a client that never ends its head is disconnected, and one that
// waits for its next request for long is not, nor does a reload begin its time anew.
func TestSlowloris(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.Edit("config/main.yaml", "drain: 500ms", "drain: 500ms\n  read_header_timeout: 3s\n  idle_timeout: 60s")
	p.StartWith()
	address := p.Address()
	idle, err := net.Dial("tcp", address)
	p.Check(err)
	defer idle.Close()
	idleIn := bufio.NewReader(idle)
	p.Check(e2etest.PostOn(idle, idleIn))
	half, err := net.Dial("tcp", address)
	p.Check(err)
	defer half.Close()
	began := time.Now()
	fmt.Fprint(half, "GET / HTTP/1.1\r\n")
	ended := make(chan time.Duration, 1)
	go func() {
		io.Copy(io.Discard, half)
		ended <- time.Since(began)
	}()
	reloads := 0
	for {
		select {
		case after := <-ended:
			if after < 3*time.Second || after > 15*time.Second || reloads < 2 {
				t.Errorf("it was disconnected after %v and %d reloads, want about 3 s", after, reloads)
			}
			p.Check(e2etest.PostOn(idle, idleIn))
			return
		case <-time.After(500 * time.Millisecond):
			o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old, WaitProbation: true})
			if err != nil || o.Verdict != client.Reloaded {
				t.Fatalf("reload = %v, %v", o, err)
			}
			reloads++
		}
	}
}

// TestALongHead is refused before it costs memory.
func TestALongHead(t *testing.T) {
	t.Parallel()
	p, _ := e2etest.Light(t)
	p.StartWith()
	c, err := net.Dial("tcp", p.Address())
	p.Check(err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(e2etest.Patience))
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nX: %s\r\n\r\n", strings.Repeat("x", 128<<10))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a head of 128 KiB was answered %v, %v; want 431", resp, err)
	}
}
