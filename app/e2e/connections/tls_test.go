//go:build unix

package connections_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestTLSThroughReloads: clients of HTTP/2 and HTTP/1.1 count up through reloads.
// Some reloads fail, and the drain of one overlaps the next. A client that
// follows the protocol sees no failure.
func TestTLSThroughReloads(t *testing.T) {
	t.Parallel()
	p, binary, address := e2etest.TLS(t, "drain: 500ms", "drain: 20s")
	var clients sync.WaitGroup
	var answered atomic.Int64
	stop := make(chan struct{})
	for i := range 8 {
		clients.Go(func() {
			c, _ := e2etest.HTTPSClient(i%2 == 0)
			defer c.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond): // pace
				}
				if _, err := e2etest.Ask(c, http.MethodPost, address+"/counter/", ""); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				answered.Add(1)
			}
		})
	}
	forwarded := 0
	for i := range 6 {
		want := client.Reloaded
		if i%3 == 2 {
			want = client.Rejected
			p.Setback(i)
		}
		mark := answered.Load()
		p.Wait("clients to be answered", func() bool { return answered.Load() > mark+100 })
		o, err := p.Upgrade(client.ReloadRequest{Binary: binary, TimeoutMS: 60_000})
		if err != nil || o.Verdict != want {
			t.Fatalf("reload %d = %+v, %v; want %s", i, o, err, want)
		}
		forwarded += o.Forwarded
		mark = answered.Load()
		p.Wait("clients to be answered", func() bool { return answered.Load() > mark+100 })
	}
	close(stop)
	clients.Wait()
	c, _ := e2etest.HTTPSClient(true)
	defer c.CloseIdleConnections()
	if got, err := e2etest.Ask(c, http.MethodGet, address+"/counter/", ""); err != nil || got != fmt.Sprint(answered.Load()) {
		t.Errorf("the counter is %s, %v; answered %d", got, err, answered.Load())
	}
	if forwarded == 0 {
		t.Error("no connection was forwarded: this shows nothing")
	}
	t.Logf("%d requests, %d connections forwarded", answered.Load(), forwarded)
}

// TestAForwardedRequestIsWhatItWas compares what a module sees of a request
// before a reload, and of one on the same connection after it. It also sends a
// large body. A connection still open at the end of the drain is closed and
// counted.
func TestAForwardedRequestIsWhatItWas(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{true, false} {
		t.Run(fmt.Sprint("HTTP/2 ", h2), func(t *testing.T) {
			t.Parallel()
			p, binary, address := e2etest.TLS(t, "drain: 500ms", "drain: 10s")
			p.Edit("config/main.yaml", "drain: 10s", "drain: 3s") // for the next generation
			c, dialled := e2etest.HTTPSClient(h2)
			defer c.CloseIdleConnections()
			before, err := e2etest.Ask(c, http.MethodGet, address+"/zoo/origin?a=1;b&c", "")
			p.Check(err)
			p.Certify(2)
			o, err := p.Upgrade(client.ReloadRequest{Binary: binary})
			if err != nil || o.Verdict != client.Reloaded || o.Forwarded != 1 {
				t.Fatalf("reload = %+v, %v; want reloaded, 1 forwarded", o, err)
			}
			if h2 {
				body := strings.Repeat("x", 1<<20)
				if got, err := e2etest.Ask(c, http.MethodPost, address+"/zoo/echo", body); err != nil || got != "POST "+body+" <nil>" {
					t.Errorf("a large body came back as %d bytes, %v", len(got), err)
				}
			}
			after, err := e2etest.Ask(c, http.MethodGet, address+"/zoo/origin?a=1;b&c", "")
			if err != nil || after != before || !strings.Contains(before, "true") || dialled.Load() != 1 {
				t.Errorf("told %q before, %q after the reload, %v, on %d connections; want the same on one", before, after, err, dialled.Load())
			}
			p.Wait("the old generation to go", func() bool { return len(p.Processes()) == 2 })
			s, err := p.Peek()
			p.Check(err)
			// A client of HTTP/1.1 closes after Connection: close, one of
			// HTTP/2 after GOAWAY.
			if s.LastReload.Forwarded != 1 || s.LastReload.Closed != 0 {
				t.Errorf("last reload = %+v, want 1 forwarded, 0 cut", *s.LastReload)
			}
			conn, err := tls.Dial("tcp", strings.TrimPrefix(address, "https://"), &tls.Config{InsecureSkipVerify: true})
			p.Check(err)
			defer conn.Close()
			if serial := conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); serial != 2 {
				t.Errorf("certificate %d is served after the reload, want 2", serial)
			}
			o, err = p.Upgrade(client.ReloadRequest{Binary: binary})
			if err != nil || o.Forwarded < 1 {
				t.Fatalf("reload = %+v, %v; want 1 forwarded", o, err)
			}
			p.Wait("the drain to end", func() bool {
				s, err := p.Peek()
				return err == nil && s.LastReload.Closed >= 1 // nothing is sent on conn, so no answer asks to close it
			})
			p.Wait("the old generation to go", func() bool { return len(p.Processes()) == 2 })
			p.Reloads(binary)
		})
	}
}

// TestForwardedRequestsComeBack: clients count up on pinned connections of the
// old generation. The new one serves them, becomes unhealthy and hands everything
// back. No request fails, and none is counted twice.
func TestForwardedRequestsComeBack(t *testing.T) {
	t.Parallel()
	p, binary, address := e2etest.TLS(t, "drain: 500ms", "drain: 20s", "probation: 300ms", "probation: 10s")
	before, err := p.Peek()
	p.Check(err)
	var clients sync.WaitGroup
	var answered atomic.Int64
	stop := make(chan struct{})
	for range 8 {
		c, dialled := e2etest.HTTPSClient(true)
		defer c.CloseIdleConnections()
		_, err := e2etest.Ask(c, http.MethodPost, address+"/counter/", "") // now it is connected
		p.Check(err)
		answered.Add(1)
		clients.Go(func() {
			for {
				select {
				case <-stop:
					if n := dialled.Load(); n != 1 {
						t.Errorf("a client made %d connections, want 1", n)
					}
					return
				default:
				}
				if _, err := e2etest.Ask(c, http.MethodPost, address+"/counter/", ""); err != nil {
					t.Error(err)
					return
				}
				answered.Add(1)
			}
		})
	}
	for range 3 {
		mark := answered.Load()
		p.Wait("clients to be answered", func() bool { return answered.Load() > mark+100 || t.Failed() })
		o, err := p.Upgrade(client.ReloadRequest{Binary: binary})
		if err != nil || o.Probation != client.ProbationPending || o.Forwarded != 8 {
			t.Fatalf("reload = %+v, %v; want 8 forwarded, on probation", o, err)
		}
		mark = answered.Load()
		p.Wait("clients to be answered", func() bool { return answered.Load() > mark+100 || t.Failed() })
		p.Write("failing", "")
		p.Wait("the old generation to be back", func() bool {
			s, err := p.Peek()
			return err == nil && s.PID == before.PID && s.LastReload.Verdict == client.RolledBack && len(p.Processes()) == 2
		})
		p.Check(os.Remove(p.Path("failing")))
	}
	close(stop)
	clients.Wait()
	c, _ := e2etest.HTTPSClient(true)
	defer c.CloseIdleConnections()
	if got, err := e2etest.Ask(c, http.MethodGet, address+"/counter/", ""); err != nil || got != fmt.Sprint(answered.Load()) {
		t.Errorf("the counter is %s, %v; answered %d", got, err, answered.Load())
	}
	t.Logf("%d requests", answered.Load())
}

// TestUpgradesOverTLS: a connection that can neither move nor be forwarded gets
// an error that says so, and does not delay a reload.
func TestUpgradesOverTLS(t *testing.T) {
	t.Parallel()
	p, binary, address := e2etest.TLS(t, "drain: 500ms", "drain: 20s")
	dial := func() (*tls.Conn, *bufio.Reader) {
		c, err := tls.Dial("tcp", strings.TrimPrefix(address, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		p.Check(err)
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(e2etest.Patience))
		return c, bufio.NewReader(c)
	}
	const upgrade = "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

	c, in := dial()
	fmt.Fprintf(c, upgrade, "/zoo/ws")
	if resp, err := http.ReadResponse(in, nil); err == nil && resp.StatusCode == http.StatusSwitchingProtocols {
		t.Error("modules.Hijack took a connection of TLS, which cannot move")
	}

	raw, rawIn := dial() // hijacked by net/http: lasts until the reload
	fmt.Fprintf(raw, upgrade, "/zoo/raw")
	if resp, err := http.ReadResponse(rawIn, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("an ordinary hijacker got %v, %v", resp, err)
	}
	late, lateIn := dial() // kept through the reload, and upgraded after it
	fmt.Fprint(late, "GET /zoo/echo HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(lateIn, nil)
	p.Check(err)
	_, err = io.Copy(io.Discard, resp.Body)
	p.Check(err)

	o, err := p.Upgrade(client.ReloadRequest{Binary: binary})
	if err != nil || o.Verdict != client.Reloaded || o.Cancelled != 1 {
		t.Errorf("reload = %+v, %v; want reloaded, 1 cancelled", o, err)
	}
	if line, err := rawIn.ReadString('\n'); err != nil || !strings.Contains(line, "cancelled by a reload") {
		t.Errorf("the hijacked connection ended with %q, %v; want the cause", line, err)
	}
	fmt.Fprintf(late, upgrade, "/zoo/raw")
	if resp, err := http.ReadResponse(lateIn, nil); err != nil || resp.StatusCode != http.StatusBadGateway {
		t.Errorf("an upgrade that would have to be forwarded got %v, %v; want 502", resp, err)
	}
}

// TestABadCertificate: check, run and reload refuse it, and name the file.
func TestABadCertificate(t *testing.T) {
	t.Parallel()
	p, binary, _ := e2etest.TLS(t)
	before, err := p.Peek()
	p.Check(err)
	p.Write("cert.pem", "nonsense")
	o, err := p.Upgrade(client.ReloadRequest{Binary: binary})
	p.Check(err)
	if o.Verdict != client.Rejected || o.Stage != "config" || !strings.Contains(o.Error, "app.tls") {
		t.Errorf("reload = %+v, want rejected because of app.tls", *o)
	}
	if s, err := p.Peek(); err != nil || s.PID != before.PID {
		t.Errorf("process %d serves, %v; want %d", s.PID, err, before.PID)
	}
	if _, errs, code := p.Command("check"); code != 2 || !strings.Contains(errs, "app.tls") {
		t.Errorf("check: exit %d, %q; want 2 and the key", code, errs)
	}
}
