package serve_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/serve"
)

// selfSigned is a certificate for nobody in particular.
func selfSigned(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}}
}

// newSecure serves h over TLS.
func newSecure(t *testing.T, h http.HandlerFunc) (*serve.Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opts := options
	opts.TLS = selfSigned(t)
	s, held := serve.New(h, opts)
	held.Release()
	s.Listen("", ln)
	t.Cleanup(s.Close)
	return s, "https://" + ln.Addr().String()
}

func newClient(t *testing.T) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	c := &http.Client{Transport: &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func get(c *http.Client, url string) (string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return fmt.Sprint(resp.StatusCode, " ", string(text)), err
}

// TestHeldRequestsWaitInTheKernel sends many requests during a hold: none is
// read, and all are answered after it.
func TestHeldRequestsWaitInTheKernel(t *testing.T) {
	const requests = 3000
	var handled, sent atomic.Int64
	s, address := newSecure(t, func(http.ResponseWriter, *http.Request) { handled.Add(1) })
	clients := make([]*http.Client, 30) // of 100 streams at once
	for i := range clients {
		clients[i] = newClient(t)
		if _, err := get(clients[i], address); err != nil {
			t.Fatal(err)
		}
	}
	h := held(t, s)
	var all sync.WaitGroup
	for i := range requests {
		all.Go(func() {
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { sent.Add(1) }})
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := clients[i%len(clients)].Do(req)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("request %d: %v, %v", i, resp, err)
				return
			}
			resp.Body.Close()
		})
	}
	for end := time.Now().Add(20 * time.Second); sent.Load() < requests; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d requests were sent", sent.Load())
		}
	}
	if queued, n := s.Queued(), handled.Load()-int64(len(clients)); queued != 0 || n != 0 {
		t.Errorf("during the hold %d requests are queued and %d were handled, want none", queued, n)
	}
	h.Release()
	all.Wait()
	if n := handled.Load(); n != requests+int64(len(clients)) {
		t.Errorf("%d requests were handled, want %d", n, requests+len(clients))
	}
}

// TestForwardedAndBack forwards requests to another server after the
// connections were handed over, and serves them itself again when they are
// taken back.
func TestForwardedAndBack(t *testing.T) {
	old, address := newSecure(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "old ", r.TLS != nil) })
	next, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "next ", r.TLS != nil, r.ProtoMajor) })
	c := newClient(t)
	expect := func(want string) {
		t.Helper()
		if got, err := get(c, address); err != nil || got != want {
			t.Fatalf("answer %q, %v; want %q", got, err, want)
		}
	}
	expect("200 old true")
	for range 3 {
		handed, _, _ := held(t, old).HandOver()
		near, far, err := serve.Pair()
		if err != nil {
			t.Fatal(err)
		}
		next.Adopt([]serve.Detached{{Conn: far, Kind: serve.KindForward}})
		answered := make(chan struct{})
		go func() { defer close(answered); expect("200 next true 2") }() // queued until then
		h, err := serve.NewForwarder(near)
		if err != nil {
			t.Fatal(err)
		}
		handed.Forward(h, nil)
		<-answered
		handed.Stop()
		near.Close()
		handed.Resume(nil)
		expect("200 old true")
	}
	if old.Pinned() != 1 {
		t.Errorf("there are %d connections, want the first one", old.Pinned())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	handed, _, _ := held(t, old).HandOver()
	handed.Forward(http.NotFoundHandler(), nil)
	if closed := handed.Drain(ctx, 0); closed != 0 {
		t.Errorf("%d connections were closed, want none: the client follows GOAWAY", closed)
	}
}

// TestEndlessAnswersOnPinnedConnections: a hold cancels an event stream,
// whatever its request has said, but not a request that would also accept one.
func TestEndlessAnswersOnPinnedConnections(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	s, address := newSecure(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			fmt.Fprint(w, context.Cause(r.Context()))
			return
		}
		close(begun)
		select {
		case <-goOn:
			fmt.Fprint(w, "finished")
		case <-r.Context().Done():
		}
	})
	c := newClient(t)
	resp, err := c.Get(address + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer := make(chan string, 1)
	go func() {
		req, _ := http.NewRequest(http.MethodGet, address+"/long", nil)
		req.Header.Set("Accept", "application/json, text/event-stream")
		resp, err := c.Do(req)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		answer <- string(text)
	}()
	<-begun
	if _, err := hold(t, s, 100*time.Millisecond); err == nil {
		t.Error("the hold does not wait for a request that ends")
	}
	close(goOn)
	if got := <-answer; got != "finished" {
		t.Errorf("the request was answered %q", got)
	}
	held(t, s)
	n, routes := s.Cancelled()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != "reloading" || n != 1 {
		t.Errorf("the event stream ended with %q, %v; %d cancelled: %q", text, err, n, routes)
	}
}

// TestForwardedAsSent: a module sees the same request whether it was forwarded or not.
func TestForwardedAsSent(t *testing.T) {
	show := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %q %s ", r.Method, r.Proto, r.Host, r.RequestURI)
		r.Header.WriteSubset(w, map[string]bool{"Accept-Encoding": true, "User-Agent": true})
	}
	_, url := newSecure(t, show)
	next, _ := newServer(t, show)
	ask := func(request string) string {
		t.Helper()
		c, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	requests := []string{
		"GET /a HTTP/1.0\r\n\r\n",
		"GET /b?x=1;y HTTP/1.1\r\nHost: x\r\nConnection: X-Own, close\r\nX-Own: 1\r\nX-Other: 2\r\n\r\n",
		"GET /c HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic eA==\r\nProxy-Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nConnection: close\r\n\r\n",
	}
	var want []string
	for _, r := range requests {
		want = append(want, ask(r))
	}
	near, far, err := serve.Pair()
	if err != nil {
		t.Fatal(err)
	}
	next.Adopt([]serve.Detached{{Conn: far, Kind: serve.KindForward}})
	h, err := serve.NewForwarder(near)
	if err != nil {
		t.Fatal(err)
	}
	forwarding := httptest.NewUnstartedServer(h)
	forwarding.TLS = selfSigned(t)
	forwarding.StartTLS()
	defer forwarding.Close()
	url = forwarding.URL
	for i, r := range requests {
		if got := ask(r); got != want[i] {
			t.Errorf("%q arrives as\n%swant\n%s", r, got, want[i])
		}
	}
	near.Close()
}

// TestStalledUploadsAreForwardedBesideOthers: uploads that nobody reads do not take the
// place of all others.
func TestStalledUploadsAreForwardedBesideOthers(t *testing.T) {
	const uploads = 60
	var stalled sync.WaitGroup
	stalled.Add(uploads)
	next, _ := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stalls" {
			stalled.Done()
			<-r.Context().Done()
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	near, far, err := serve.Pair()
	if err != nil {
		t.Fatal(err)
	}
	next.Adopt([]serve.Detached{{Conn: far, Kind: serve.KindForward}})
	h, err := serve.NewForwarder(near)
	if err != nil {
		t.Fatal(err)
	}
	forwarding := httptest.NewServer(h)
	defer forwarding.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body := bytes.Repeat([]byte("x"), 1<<20)
	var all sync.WaitGroup
	defer all.Wait()
	post := func(ctx context.Context, path string) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, forwarding.URL+path, bytes.NewReader(body))
		if err != nil {
			return "", err
		}
		resp, err := forwarding.Client().Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return string(text), err
	}
	for range uploads {
		all.Go(func() { post(ctx, "/stalls") })
	}
	stalled.Wait()
	soon, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	if got, err := post(soon, "/reads"); err != nil || got != fmt.Sprint(len(body), nil) {
		t.Errorf("one more upload = %q, %v", got, err)
	}
	cancel()
	all.Wait()
	near.Close()
}
