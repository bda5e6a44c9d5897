package serve_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/serve"
)

// limited serves h with limits.
func limited(t *testing.T, limits serve.Limits, h http.HandlerFunc) (*serve.Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opts := options
	opts.Limits = limits
	s, held := serve.New(h, opts)
	s.Listen("", ln)
	held.Release()
	t.Cleanup(s.Close)
	return s, ln.Addr().String()
}

// ends reads until the connection ends, and returns what it has read and after
// which time.
func (c *client) ends() (text string, after time.Duration) {
	c.t.Helper()
	began := time.Now()
	data, err := io.ReadAll(c.in)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		c.t.Errorf("the connection does not end: %v", err)
	}
	return string(data), time.Since(began)
}

func TestSlowClientsAreDisconnected(t *testing.T) {
	const limit = 200 * time.Millisecond
	goOn := make(chan struct{})
	t.Cleanup(func() { close(goOn) })
	h := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/upload":
			io.Copy(io.Discard, r.Body)
		case "/download":
			w.Write(make([]byte, 64<<20))
		case "/silent":
			time.Sleep(3 * limit) // its client waits for it, not it for its client
			fmt.Fprint(w, "said")
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
			select {
			case <-goOn:
			case <-r.Context().Done():
			}
		}
	}
	all := serve.Limits{Head: limit, Transfer: limit, Idle: limit}
	for _, tt := range []struct{ name, send, want string }{
		{"nothing", "", ""},
		{"half a head", "GET / HTTP/1.1\r\nHos", ""},
		{"nothing after a request", request, "HTTP/1.1 200 OK"},
		{"half a body", "PUT /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", "HTTP/1.1 408 Request Timeout"},
		{"half a chunk", "PUT /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12", "HTTP/1.1 408 Request Timeout"},
		{"a body that nobody reads", "PUT /other HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, address := limited(t, all, h)
			c := dial(t, address)
			began := time.Now()
			c.send(tt.send)
			text, _ := c.ends()
			if took := time.Since(began); !strings.HasPrefix(text, tt.want) || (tt.want == "") != (text == "") || took < limit {
				t.Errorf("after %v it was answered %q, want %q", took, text, tt.want)
			}
		})
	}
	t.Run("a reader that reads nothing", func(t *testing.T) {
		t.Parallel()
		s, address := limited(t, all, h)
		c := dial(t, address)
		c.send("GET /download HTTP/1.1\r\nHost: x\r\n\r\n")
		in(t, s, "GET /download stalled")
		until(t, "the request to be gone", func() bool { return len(s.InFlight(patience)) == 0 })
	})
	t.Run("who waits for a silent handler", func(t *testing.T) {
		t.Parallel()
		_, address := limited(t, all, h)
		c := dial(t, address)
		c.send("GET /silent HTTP/1.1\r\nHost: x\r\n\r\n")
		if got := c.answer(); got != "200 said" {
			t.Errorf("answer = %q", got)
		}
	})
	t.Run("an event stream", func(t *testing.T) {
		t.Parallel()
		s, address := limited(t, all, h)
		c := dial(t, address)
		c.send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
		in(t, s, "GET /events endless")
		time.Sleep(3 * limit) // far beyond every limit
		in(t, s, "GET /events endless")
	})
	t.Run("a slow reader that reads", func(t *testing.T) {
		t.Parallel()
		_, address := limited(t, all, h)
		c := dial(t, address)
		c.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		c.send("GET /download HTTP/1.1\r\nHost: x\r\n\r\n")
		got := 0
		for end := time.Now().Add(6 * limit); time.Now().Before(end); time.Sleep(limit / 10) { // its pace
			n, err := c.Conn.Read(make([]byte, 2<<10))
			if got += n; err != nil {
				t.Fatalf("after %d bytes: %v", got, err)
			}
		}
	})
}

// TestSlowSecureClientsAreDisconnected, too.
func TestSlowSecureClientsAreDisconnected(t *testing.T) {
	const limit = 200 * time.Millisecond
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opts := options
	opts.TLS = selfSigned(t)
	opts.Limits = serve.Limits{Head: limit, Transfer: limit, Idle: limit}
	s, held := serve.New(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }), opts)
	held.Release()
	s.Listen("", ln)
	t.Cleanup(s.Close)
	read, write := io.Pipe()
	defer write.Close()
	resp, err := newClient(t).Post("https://"+ln.Addr().String()+"/upload", "", read)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestTimeout {
		t.Errorf("a stalled upload was answered %s, want 408", resp.Status)
	}
	until(t, "the idle connection to be closed", func() bool { return s.Pinned() == 0 })
}

// TestClocksTravel: a client that is slow does not get its time anew whenever its
// connection moves, and a hold does not use it up.
func TestClocksTravel(t *testing.T) {
	const limit = time.Second
	limits := serve.Limits{Head: limit, Idle: limit}
	now, address := limited(t, limits, echo)
	next, _ := limited(t, limits, echo)
	half := dial(t, address)
	half.send("GET /half HT")
	until(t, "the head to be read", func() bool { return now.Read() == len("GET /half HT") })
	began := time.Now()
	gone := make(chan time.Duration, 1)
	go func() {
		half.in.ReadByte()
		gone <- time.Since(began)
	}()
	moves := 0
	for {
		select {
		case after := <-gone:
			if after > 3*limit || moves < 2 {
				t.Errorf("it was disconnected after %v and %d moves, want about %v", after, moves, limit)
			}
			return
		case <-time.After(limit / 4):
		}
		handed, conns, _ := held(t, now).HandOver()
		if len(conns) == 0 { // it has just ended
			handed.Resume(nil)
			continue
		}
		moves++
		handed.Resume(nil)
		next.Adopt(conns)
		now, next = next, now
	}
}

// TestLongHeadsAreRefused, wherever they are when the connection moves.
func TestLongHeadsAreRefused(t *testing.T) {
	_, address := limited(t, serve.Limits{HeadBytes: 8 << 10}, echo)
	c := dial(t, address)
	c.send("GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 20<<10))
	if text, _ := c.ends(); !strings.HasPrefix(text, "HTTP/1.1 431 ") {
		t.Errorf("answer = %q, want 431", text)
	}
}

// TestTheLongestIdleMakesRoom for others; whoever has sent a byte does not.
func TestTheLongestIdleMakesRoom(t *testing.T) {
	s, address := limited(t, serve.Limits{Conns: 3}, echo)
	half := dial(t, address)
	half.send("GET /half HT")
	until(t, "the head to be read", func() bool { return s.Read() == len("GET /half HT") })
	var idle []*client
	for range 2 {
		c := dial(t, address)
		c.send(request)
		c.answer()
		idle = append(idle, c)
	}
	c := dial(t, address)
	c.send(request)
	if got := c.answer(); got != "200 /path" {
		t.Errorf("answer = %q", got)
	}
	if text, _ := idle[0].ends(); text != "" {
		t.Errorf("the longest idle got %q", text)
	}
	idle[1].send(request)
	if got := idle[1].answer(); got != "200 /path" {
		t.Errorf("the other idle one: %q", got)
	}
	half.send("TP/1.1\r\nHost: x\r\n\r\n")
	if got := half.answer(); got != "200 /half" {
		t.Errorf("the one in the middle of a head: %q", got)
	}
	if n := s.Evicted(); n != 1 {
		t.Errorf("%d were evicted, want 1", n)
	}
	held(t, s).Release() // accept waits for nothing
}

// TestFullOfBusyClients: nothing is accepted until one has gone, and a hold is not
// delayed.
func TestFullOfBusyClients(t *testing.T) {
	s, address := limited(t, serve.Limits{Conns: 2}, echo)
	busy := []*client{dial(t, address), dial(t, address)}
	for _, c := range busy {
		c.send("GET /half HT")
	}
	until(t, "the heads to be read", func() bool { return s.Read() == 2*len("GET /half HT") })
	waiting := dial(t, address)
	waiting.send(request)
	held(t, s).Release()
	busy[0].Close()
	if got := waiting.answer(); got != "200 /path" {
		t.Errorf("answer = %q", got)
	}
}

// framings are what RFC 9112 says about where a request ends, and what clients make
// of it. Whatever net/http alone answers is right.
var framings = []struct{ name, text string }{
	{"bare LF in the head", "GET /a HTTP/1.1\nHost: x\n\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"obs-fold", "GET /a HTTP/1.1\r\nHost: x\r\nX: 1\r\n 2\r\n\r\n"},
	{"a space before the colon", "GET /a HTTP/1.1\r\nHost: x\r\nX : 1\r\n\r\n"},
	{"chunk extensions", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b;c=\"d\"\r\nabc\r\n0;e\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"bare LF in chunks", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"trailers", "POST /a HTTP/1.1\r\nHost: x\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nT: t\r\nU: u\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"a trailer that ends with a bare LF", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\nGET /b HTTP/1.1\r\nHost: x\r\n\r\nGET /c HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"a trailer with bare LFs, and a body in its shadow", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nT: t\n\nPOST /b HTTP/1.1\nHost: x\nContent-Length: 6\n\n\r\n\r\nhiGET /c HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"chunks in the shadow of a trailer", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\nPOST /b HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n2\nhi\n0\r\n\r\nGET /c HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"a body of line ends after a bare LF", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\nPOST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 4096\r\n\r\n" + strings.Repeat("\r\n", 2048) + "GET /c HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"a trailer that is no header", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nnonsense\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"TE and CL", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"two different lengths", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"},
	{"the same length twice", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"a signed length", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc"},
	{"an absurd length", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nabc"},
	{"an absurd chunk", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc"},
	{"leading zeros", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0000000003\r\nabc\r\n000\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"a chunk without a size", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n"},
	{"TE in 1.0", "POST /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"},
	{"an unknown TE", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
	{"empty lines before a first request", "\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"empty lines after a GET", "GET /a HTTP/1.1\r\nHost: x\r\n\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"two empty lines after a POST", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"three empty lines after a POST", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx\r\n\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"no host", "GET /a HTTP/1.1\r\n\r\n"},
	{"HTTP/1.0, kept alive", "GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\n"},
	{"connection close", "GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"a NUL", "GET /a\x00 HTTP/1.1\r\nHost: x\r\n\r\n"},
	{"no HTTP", "hello\r\n\r\n"},
	{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
	{"a body that is not read", "POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: x\r\n\r\n"},
}

func repeat(w http.ResponseWriter, r *http.Request) {
	w.Header()["Date"] = nil
	if r.URL.Path != "/unread" {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %q %v %v", r.Method, r.URL.Path, body, r.Trailer, err)
	}
}

// exchange sends text, in two pieces with between called in the middle, and returns
// everything that comes back.
func exchange(t *testing.T, address, text string, cut int, between func()) string {
	t.Helper()
	c := dial(t, address)
	c.send(text[:cut])
	between()
	io.WriteString(c.Conn, text[cut:]) // it may be closed already
	c.Conn.(*net.TCPConn).CloseWrite()
	var all bytes.Buffer
	io.Copy(&all, c.in) // a reset ends it too
	return all.String()
}

// TestFraming compares every byte with what net/http alone answers, also when the
// connection moves in the middle.
func TestFraming(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	alone := &http.Server{Handler: http.HandlerFunc(repeat), ErrorLog: quietLog(), DisableGeneralOptionsHandler: true}
	go alone.Serve(ln)
	t.Cleanup(func() { alone.Close() })
	for _, tt := range framings {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want := exchange(t, ln.Addr().String(), tt.text, len(tt.text), func() {})
			a, address := newServer(t, repeat)
			b, _ := newServer(t, repeat)
			step := 1
			if len(tt.text) > 1000 {
				step = 97
			}
			for cut := 0; cut <= len(tt.text); cut += step {
				got := exchange(t, address, tt.text, cut, func() {
					if cut%2 == 0 { // otherwise the bytes may still be in the socket
						time.Sleep(time.Millisecond)
					}
					h, err := hold(t, a, 20*time.Millisecond)
					if err != nil {
						return // it is in the middle of a request
					}
					handed, conns, _ := h.HandOver()
					handed.Resume(nil)
					b.Adopt(conns)
				})
				if got != want {
					t.Fatalf("cut after %d bytes of %q:\n%q\nnet/http alone:\n%q", cut, tt.text, got, want)
				}
			}
		})
	}
}
