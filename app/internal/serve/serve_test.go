package serve_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"example.org/orchestrator/app/internal/serve"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	quiet   = slog.New(slog.NewTextHandler(io.Discard, nil))
	options = serve.Options{Log: quiet, Moving: errors.New("moving"), Reloading: errors.New("reloading")}
)

// newServer serves h, held, on a free port.
func newServer(t *testing.T, h http.HandlerFunc) (*serve.Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := serve.New(h, options)
	s.Listen("", ln)
	t.Cleanup(s.Close)
	return s, ln.Addr().String()
}

// client is a connection that sends raw requests and never retries.
type client struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, address string) *client {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return &client{t, c, bufio.NewReader(c)}
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, text); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) answer() string { c.t.Helper(); return c.answerTo(http.MethodGet) }

func (c *client) answerTo(method string) string {
	c.t.Helper()
	resp, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if resp.StatusCode == http.StatusContinue {
		return "100"
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, strings.TrimSpace(string(body)))
}

const request = "GET /path HTTP/1.1\r\nHost: x\r\n\r\n"

func echo(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.URL.Path) }

func hold(t *testing.T, s *serve.Server, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return s.Hold(ctx)
}

// TestHoldDetachesAndReleaseGoesOn holds many times on the same connections:
// one that has never sent a byte and one that is idle between requests.
// If net/http asked for less than a full buffer they would count as busy, and
// this would fail.
func TestHoldDetachesAndReleaseGoesOn(t *testing.T) {
	s, address := newServer(t, echo)
	s.Release()
	fresh, used := dial(t, address), dial(t, address)
	used.send(request)
	if got := used.answer(); got != "200 /path" {
		t.Fatalf("answer = %q", got)
	}
	for i := range 20 {
		if err := hold(t, s, 10*time.Second); err != nil {
			t.Fatalf("hold %d: %v", i, err)
		}
		used.send(request) // waits in the socket
		s.Release()
		if got := used.answer(); got != "200 /path" {
			t.Fatalf("answer after hold %d = %q", i, got)
		}
	}
	fresh.send(request)
	if got := fresh.answer(); got != "200 /path" {
		t.Errorf("answer to the connection that had sent nothing = %q", got)
	}
}

// TestDetachedConnectionsMove gives the connections of a held server to
// another one, as a handoff does.
func TestDetachedConnectionsMove(t *testing.T) {
	old, address := newServer(t, echo)
	old.Release()
	c := dial(t, address)
	c.send(request)
	c.answer()
	if err := hold(t, old, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	next, _ := newServer(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "next") })
	next.Release()
	c.send(request)
	moved, _ := old.Detached()
	if len(moved) != 1 {
		t.Fatalf("%d connections were detached, want 1", len(moved))
	}
	next.Adopt(moved)
	if got := c.answer(); got != "200 next" {
		t.Errorf("answer = %q, want the next server's", got)
	}
}

func TestHoldWaitsForRequestsInFlight(t *testing.T) {
	begun, finish := make(chan struct{}), make(chan struct{})
	s, address := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-finish
		echo(w, r)
	})
	s.Release()
	c := dial(t, address)
	c.send(request)
	<-begun
	err := hold(t, s, 50*time.Millisecond)
	var busy *serve.BusyError
	if !errors.As(err, &busy) || len(busy.Routes) != 1 || busy.Routes[0] != "GET /path" {
		t.Fatalf("Hold = %v, want a BusyError that names GET /path", err)
	}
	close(finish)
	if err := hold(t, s, 10*time.Second); err != nil {
		t.Errorf("Hold after the request = %v", err)
	}
	if got := c.answer(); got != "200 /path" {
		t.Errorf("answer = %q", got)
	}
}

func TestCutCancelsWithACause(t *testing.T) {
	begun, cause := make(chan struct{}), make(chan error, 1)
	s, address := newServer(t, func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		cause <- context.Cause(r.Context())
	})
	s.Release()
	c := dial(t, address)
	c.send(request)
	<-begun
	s.Cut()
	if err := <-cause; !errors.Is(err, options.Reloading) {
		t.Errorf("cause = %v, want ErrReloading", err)
	}
	if err := hold(t, s, 10*time.Second); err != nil {
		t.Errorf("Hold after Cut = %v", err)
	}
}

func TestNothingIsAcceptedDuringAHold(t *testing.T) {
	s, address := newServer(t, echo) // held from the start
	c := dial(t, address)            // the kernel queues it
	c.send(request)
	if err := hold(t, s, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if conns, _ := s.Detached(); len(conns) != 0 {
		t.Errorf("%d connections were accepted during the hold", len(conns))
	}
	s.Release()
	if got := c.answer(); got != "200 /path" {
		t.Errorf("answer = %q", got)
	}
}
