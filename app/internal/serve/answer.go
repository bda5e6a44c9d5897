package serve

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
)

// answer is the http.ResponseWriter of every handler. It knows what the handler
// has begun, so that a hold can end the request in a way that its client
// understands.
type answer struct {
	http.ResponseWriter
	flight   *flight
	header   bool   // the final header was looked at
	hijacked func() // called when the handler takes the connection; nil for nothing to do

	// out follows the writes, in pieces of writePiece bytes; nil if the
	// connection follows them itself.
	out *transfer
}

// writePiece is so small that a client that reads at the slowest allowed pace
// is seen to get something.
const writePiece = 4 << 10

// Unwrap is called by http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// Endless marks the answer as one that never ends by itself. complete says that
// it is whole from here on. [modules.Endless] finds it by type assertion.
func (a *answer) Endless() (complete func()) {
	a.flight.neverEnds(false)
	return func() {
		a.flight.mu.Lock()
		defer a.flight.mu.Unlock()
		a.flight.finished = true
	}
}

// look notices an event stream by its header.
func (a *answer) look() {
	a.flight.mark()
	if a.header {
		return
	}
	a.header = true
	kind, _, _ := strings.Cut(a.Header().Get("Content-Type"), ";")
	if strings.EqualFold(strings.TrimSpace(kind), "text/event-stream") {
		a.flight.neverEnds(true)
	}
}

func (a *answer) WriteHeader(status int) {
	if status >= http.StatusOK || status == http.StatusSwitchingProtocols {
		a.look()
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (n int, err error) {
	a.look()
	if a.out == nil {
		return a.ResponseWriter.Write(p)
	}
	for piece := range slices.Chunk(p, writePiece) {
		a.out.begin()
		m, err := a.ResponseWriter.Write(piece)
		a.out.end(m)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// WriteString lets io.WriteString avoid a copy.
func (a *answer) WriteString(s string) (int, error) {
	if a.out != nil {
		return a.Write([]byte(s))
	}
	a.look()
	return io.WriteString(a.ResponseWriter, s)
}

// ReadFrom lets the kernel send files directly.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	if from, ok := a.ResponseWriter.(io.ReaderFrom); ok && a.out == nil {
		a.look()
		return from.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{a}, r)
}

func (a *answer) Flush() { a.FlushError() }

// FlushError is what http.ResponseController calls.
func (a *answer) FlushError() error {
	a.look()
	if a.out != nil {
		a.out.begin()
		defer a.out.end(0)
	}
	return http.NewResponseController(a.ResponseWriter).Flush()
}

// Hijack takes an HTTP/1.1 connection from the server.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err == nil && a.hijacked != nil {
		a.hijacked()
	}
	return c, rw, err
}

// refuse writes an answer of the server's own in place of one that a hold has
// prevented.
func (a *answer) refuse(status int) {
	header := a.ResponseWriter.Header()
	clear(header)
	header.Set("Connection", "close")
	if status == http.StatusServiceUnavailable {
		header.Set("Retry-After", "0")
	}
	http.Error(a.ResponseWriter, http.StatusText(status), status)
}

// body follows the reads of a request's body.
type body struct {
	io.ReadCloser
	in *transfer
}

func (b *body) Read(p []byte) (int, error) {
	b.in.begin()
	n, err := b.ReadCloser.Read(p)
	b.in.end(n)
	return n, err
}
