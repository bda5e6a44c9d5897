package serve_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/serve"
)

// relay is two servers between which a client's connection moves back and
// forth.
type relay struct {
	t         *testing.T
	now, next *serve.Server
	address   string
}

// newRelay makes servers that answer with everything they understood of a
// request.
func newRelay(t *testing.T) *relay {
	h := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintln(w, r.Method, r.URL.Path, string(body), r.Trailer.Get("T"), err)
	}
	a, address := newServer(t, h)
	b, _ := newServer(t, h)
	return &relay{t, a, b, address}
}

// move hands the only connection over as soon as that is possible.
func (r *relay) move() {
	h, err := hold(r.t, r.now, 10*time.Second)
	if err != nil {
		r.t.Error(err)
		return
	}
	handed, conns, _ := h.HandOver()
	if len(conns) != 1 {
		r.t.Errorf("%d connections were detached, want 1", len(conns))
	}
	handed.Resume(nil)
	r.next.Adopt(conns)
	r.now, r.next = r.next, r.now
}

// connect has the first server accept a client.
func (r *relay) connect() *client {
	c := dial(r.t, r.address)
	c.send(request)
	c.answer()
	return c
}

// requests are what one client may send, and the answers.
var requests = []struct{ name, text, answers string }{
	{"get", "GET /a HTTP/1.1\r\nHost: x\r\n\r\n", "200 GET /a   <nil>"},
	{"bare line ends", "GET /a HTTP/1.1\nHost: x\n\n", "200 GET /a   <nil>"},
	{"length", "POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", "200 POST /b hello  <nil>"},
	{"chunks", "POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", "200 POST /c abc0123456789  <nil>"},
	{"trailer", "POST /c HTTP/1.1\r\nHost: x\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nT: t\r\n\r\n", "200 POST /c x t <nil>"},
	{"pipelined gets", "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n", "200 GET /1   <nil>,200 GET /2   <nil>"},
	{"pipelined posts", "POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\noneGET /2 HTTP/1.1\r\nHost: x\r\n\r\n", "200 POST /1 one  <nil>,200 GET /2   <nil>"},
	{"pipelined after chunks", "POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n", "200 POST /1 one  <nil>,200 GET /2   <nil>"},
	{"empty lines after a post", "POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n", "200 POST /1 1  <nil>,200 GET /2   <nil>"},
	{"expect", "POST /e HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi", "100,200 POST /e hi  <nil>"},
	{"head", "HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n", "200 "},
	{"options", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n", "200 ,200 GET /2   <nil>"},
}

// TestARequestMovesAtEveryByte sends requests of all kinds on one connection,
// each in two pieces, for every place to split it, with a move in between:
// every request is answered once and in order, whichever server has got which
// bytes.
func TestARequestMovesAtEveryByte(t *testing.T) {
	for _, kind := range requests {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			r := newRelay(t)
			c := r.connect()
			for cut := range len(kind.text) + 1 {
				c.send(kind.text[:cut])
				if cut%2 == 0 { // otherwise the bytes may still be in the socket
					c.readBy(r.now, kind.text[:cut])
				}
				moved := make(chan struct{})
				go func() {
					defer close(moved)
					r.move() // waits if a handler has begun
				}()
				if headIsWhole := strings.Contains(kind.text[:cut], "\r\n\r\n") || strings.Contains(kind.text[:cut], "\n\n"); !headIsWhole {
					<-moved // before the rest is sent
				}
				c.send(kind.text[cut:])
				var got []string
				for want := strings.Split(kind.answers, ","); len(got) < len(want); {
					got = append(got, c.answerTo(strings.Fields(kind.text)[0]))
				}
				<-moved
				if strings.Join(got, ",") != kind.answers {
					t.Fatalf("cut after %d bytes: answers %q, want %q", cut, got, kind.answers)
				}
			}
		})
	}
}

// readBy waits until the server has read what was sent, unless a handler has
// begun with it.
func (c *client) readBy(s *serve.Server, sent string) {
	head, _, whole := strings.Cut(sent, "\r\n\r\n")
	if strings.Contains(sent, "\n\n") || whole && head != "" {
		return
	}
	for end := time.Now().Add(10 * time.Second); s.Read() < len(sent); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("the server has read %d of %d bytes", s.Read(), len(sent))
		}
	}
}

// TestBytesOneByOne sends each byte of each kind of request alone, while the
// connection keeps moving.
func TestBytesOneByOne(t *testing.T) {
	for _, kind := range requests {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			r := newRelay(t)
			c := r.connect()
			stop, stopped := make(chan struct{}), make(chan struct{})
			end := sync.OnceFunc(func() { close(stop); <-stopped })
			defer end()
			var moves atomic.Int64
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
						r.move()
						moves.Add(1)
					}
				}
			}()
			begin := time.Now()
			for round := 0; round < 2 || moves.Load() < 2 && time.Since(begin) < 20*time.Second; round++ {
				for i := range len(kind.text) {
					c.send(kind.text[i : i+1])
					if i%16 == 0 {
						time.Sleep(time.Millisecond) // the client's pace
					}
				}
				for _, want := range strings.Split(kind.answers, ",") {
					if got := c.answerTo(strings.Fields(kind.text)[0]); got != want {
						t.Fatalf("answer %q, want %q", got, want)
					}
				}
			}
			end()
			if moves.Load() < 2 {
				t.Errorf("the connection has moved %d times only", moves.Load())
			}
		})
	}
}
