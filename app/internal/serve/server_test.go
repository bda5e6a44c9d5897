package serve_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"slices"
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

// newServer serves h on a free port.
func newServer(t *testing.T, h http.HandlerFunc) (*serve.Server, string) {
	t.Helper()
	s, held, address := newHeld(t, h)
	held.Release()
	return s, address
}

// newHeld returns a server that has not served yet.
func newHeld(t *testing.T, h http.HandlerFunc) (*serve.Server, *serve.Held, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, held := serve.New(h, options)
	s.Listen("", ln)
	t.Cleanup(s.Close)
	return s, held, ln.Addr().String()
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

// patience is what a request that nothing is known about is expected to take.
const patience = 50 * time.Millisecond

func hold(t *testing.T, s *serve.Server, limit time.Duration) (*serve.Held, error) {
	h, err := s.Hold(t.Context(), serve.Terms{Within: limit, Patience: patience})
	if err == nil {
		h.EndEndless()
	}
	return h, err
}

// held returns a hold that must succeed.
func held(t *testing.T, s *serve.Server) *serve.Held {
	t.Helper()
	h, err := hold(t, s, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestHoldDetachesAndReleaseGoesOn holds many times on the same connections:
// one that has never sent a byte and one that is idle between requests. If
// net/http asked for less than a full buffer, they would count as busy and this
// would fail.
func TestHoldDetachesAndReleaseGoesOn(t *testing.T) {
	s, address := newServer(t, echo)
	fresh, used := dial(t, address), dial(t, address)
	used.send(request)
	if got := used.answer(); got != "200 /path" {
		t.Fatalf("answer = %q", got)
	}
	for i := range 20 {
		h := held(t, s)
		used.send(request) // waits in the socket
		h.Release()
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
	c := dial(t, address)
	c.send(request)
	c.answer()
	h := held(t, old)
	next, _ := newServer(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "next") })
	c.send(request)
	_, moved, _ := h.HandOver()
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
	c := dial(t, address)
	c.send(request)
	<-begun
	_, err := hold(t, s, 50*time.Millisecond)
	var busy *serve.BusyError
	if !errors.As(err, &busy) || !slices.Equal(busy.Routes(), []string{"GET /path"}) {
		t.Fatalf("Hold = %v, want a BusyError that names GET /path", err)
	}
	close(finish)
	held(t, s)
	if got := c.answer(); got != "200 /path" {
		t.Errorf("answer = %q", got)
	}
}

func TestNothingIsAcceptedDuringAHold(t *testing.T) {
	s, address := newServer(t, echo)
	h := held(t, s)
	c := dial(t, address) // the kernel queues it
	c.send(request)
	handed, conns, _ := h.HandOver()
	if len(conns) != 0 {
		t.Errorf("%d connections were accepted during the hold", len(conns))
	}
	handed.Resume(nil)
	if got := c.answer(); got != "200 /path" {
		t.Errorf("answer = %q", got)
	}
}

// TestNothingIsAcceptedBeforeTheFirstRelease: a new server is held.
func TestNothingIsAcceptedBeforeTheFirstRelease(t *testing.T) {
	_, h, address := newHeld(t, echo)
	c := dial(t, address)
	c.send(request)
	handed, conns, _ := h.HandOver()
	if len(conns) != 0 {
		t.Errorf("%d connections were accepted before the first release", len(conns))
	}
	handed.Resume(nil)
	if got := c.answer(); got != "200 /path" {
		t.Errorf("answer = %q", got)
	}
}

// TestAHoldThatFailsLosesNobody, whenever it fails: connections may be half
// detached then.
func TestAHoldThatFailsLosesNobody(t *testing.T) {
	const idle = 20
	begun, finish := make(chan struct{}), make(chan struct{})
	s, address := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			close(begun)
			<-finish
		}
		echo(w, r)
	})
	busy := dial(t, address)
	busy.send("GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
	<-begun
	var clients []*client
	for range idle {
		clients = append(clients, dial(t, address))
	}
	for i := range 800 {
		for _, c := range clients {
			c.send(request)
			if got := c.answer(); got != "200 /path" {
				t.Fatalf("answer after hold %d = %q", i, got)
			}
		}
		if _, err := hold(t, s, time.Duration(i%20)*50*time.Microsecond); err == nil {
			t.Fatal("the hold came about beside a request")
		}
	}
	close(finish)
	held(t, s).Release()
	if got := busy.answer(); got != "200 /long" {
		t.Errorf("answer = %q", got)
	}
}

// TestAHoldEndsOnce: calls in the wrong order panic at once.
func TestAHoldEndsOnce(t *testing.T) {
	nothing := func(adopt func([]serve.Detached)) {}
	for name, wrong := range map[string]func(s *serve.Server, h *serve.Held){
		"released twice":          func(_ *serve.Server, h *serve.Held) { h.Release(); h.Release() },
		"resumed after a release": func(_ *serve.Server, h *serve.Held) { h.Release(); h.Resume(nothing) },
		"given after a release":   func(_ *serve.Server, h *serve.Held) { h.Release(); h.HandOver() },
		"released after it was given": func(_ *serve.Server, h *serve.Held) {
			h.HandOver()
			h.Release()
		},
		"Resume called twice": func(_ *serve.Server, h *serve.Held) {
			handed, _, _ := h.HandOver()
			handed.Resume(nothing)
			handed.Resume(nothing)
		},
		"held twice": func(s *serve.Server, _ *serve.Held) { s.Hold(t.Context(), serve.Terms{}) },
	} {
		t.Run(name, func(t *testing.T) {
			s, h, _ := newHeld(t, echo)
			defer func() {
				if recover() == nil {
					t.Error("nothing panics")
				}
			}()
			wrong(s, h)
		})
	}
}

// quietLog is a log for what net/http says.
func quietLog() *log.Logger { return slog.NewLogLogger(quiet.Handler(), slog.LevelDebug) }
