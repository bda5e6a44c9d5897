package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// errDetached ends the server's read of a connection that is being detached.
// It is a timeout because net/http answers other errors with a 400.
var errDetached net.Error = detachedError{}

type detachedError struct{}

func (detachedError) Error() string   { return "serve: connection detached" }
func (detachedError) Timeout() bool   { return true }
func (detachedError) Temporary() bool { return true }

// socket is a connection that the framework can accept, move and interrupt.
type socket interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// conn stands between the HTTP server and a socket. It gives the server the
// bytes of one request at a time, so that it knows which request every byte
// belongs to and whether a handler has begun with that request. Until the
// server has a complete head the conn can be detached: the server's read
// returns an error, the server drops the conn, and nothing that it writes or
// calls has an effect. The socket stays open, with the bytes that the server
// has read of the head and those that the client sends.
//
// The phases, and what moves a conn from one to the next:
//
//	       readHead finds the end of the head
//	Head ─────────────────────────────────────▶ HeadRead
//	 ▲ │                                            │ begin: a handler runs
//	 │ │ a hold, by interrupt                       ▼
//	 │ ▼                               Length (body known) or Chunks
//	 │ detached: the end                            │ │
//	 │                                              │ │ the last chunk: Length, nothing left
//	 └──────────────────────────────────────────────┘ │
//	   idle, with the whole body read                 │ the server reads on, or idle with
//	                                                  ▼ a body unread, or hijack
//	                                               Unknown: the end
//
// Only in Head can a conn be detached. In Length and Chunks Read ends at the end
// of the body; what has come of the next request stays in buffered, or in ahead if
// the server has it already. In Unknown a hold waits until the connection closes,
// which it does when the server asks for the next request.
type conn struct {
	socket
	group *http1

	mu       sync.Mutex // guards the fields below; released while the socket is read
	phase    phase
	head     head   // position in the head that is being read
	headRead []byte // bytes of that head that the server has
	buffered []byte // bytes read from the socket that the server does not have
	ahead    []byte // bytes that the server has, beyond the present request
	lenient  int    // line ends that are skipped before the next head, as after a POST
	bodyLeft int64  // bytes left of a body of known length
	chunks   chunks // position in a chunked body

	due          time.Time     // when a client that sends no request, or no whole head, is disconnected; zero for never
	evicted      bool          // it was closed to make room, and the server has not noticed yet
	headTimed    bool          // due is that of a head
	between      bool          // the server is between two requests
	post         bool          // the last request was a POST
	waiting      bool          // readHead reads the socket
	interrupted  bool          // that read is being ended by interrupt
	blocked      chan struct{} // closed to end a backgroundRead; nil if there is none
	expired      bool          // the read deadline is in the past
	detached     bool          // the server has let go, or is about to; the socket is a Detached's
	hadCancelled bool          // a hold has cancelled a request, and so the parent context of all later ones

	hijacked bool
	owner    string  // owner of the stream that a hijacked conn may become
	stream   *Stream // the stream that the conn has become; nil for none

	flight   *flight                 // the request of the running handler; nil if none runs
	stop     context.CancelCauseFunc // cancels its context
	answered bool                    // the first bytes of its answer were written
	replaced bool                    // the server's own answer was written instead: nothing more may be
	route    string                  // of the last request, "" before the first
	ended    time.Time               // when its handler returned; before that when the conn was made

	in, out transfer // of the present request
}

// phase is what the next bytes from the client are.
type phase int

const (
	phaseHead     phase = iota // a head, or the rest of one
	phaseHeadRead              // a body: the server has the head and no handler has begun
	phaseLength                // a body of known length, perhaps none
	phaseChunks                // a chunked body
	phaseUnknown               // unknown: the server may have buffered some of the next request
)

// Read implements net.Conn. A case that does not return goes on below the switch:
// the server wants more than the request has.
func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.detached {
		return 0, errDetached
	}
	if c.phase == phaseUnknown && !c.hijacked && c.between {
		return 0, io.EOF // nobody could tell where the next request begins
	}
	switch c.phase {
	case phaseHead:
		return c.readHead(p)
	case phaseHeadRead:
		if len(p) == 1 { // may begin before the handler does
			return c.backgroundRead(p)
		}
	case phaseLength:
		if c.bodyLeft == 0 && len(p) == 1 {
			return c.backgroundRead(p)
		}
		if c.bodyLeft > 0 {
			n, err := c.receiveLocked(p[:min(int64(len(p)), c.bodyLeft)])
			c.bodyLeft -= int64(n)
			return n, err
		}
	case phaseChunks:
		n, err := c.receiveLocked(p)
		if end := c.chunks.end(p[:n]); end >= 0 {
			c.unreceive(p[end:n])
			n = end
			c.phase, c.bodyLeft, c.ahead = phaseLength, 0, c.chunks.ahead
		}
		return n, err
	}
	// The server reads beyond what we take for the end of the request.
	c.phase = phaseUnknown
	return c.receiveLocked(p)
}

// receiveLocked returns buffered bytes, or else reads the socket. c.mu is held, and
// released while the socket is read.
func (c *conn) receiveLocked(p []byte) (int, error) {
	if len(c.buffered) > 0 {
		n := copy(p, c.buffered)
		c.buffered = c.buffered[:copy(c.buffered, c.buffered[n:])]
		return n, nil
	}
	body := c.phase == phaseLength && c.bodyLeft > 0 || c.phase == phaseChunks
	c.mu.Unlock()
	defer c.mu.Lock()
	if !body {
		return c.socket.Read(p)
	}
	c.in.begin()
	n, err := c.socket.Read(p)
	c.in.end(n)
	return n, err
}

// unreceive puts back bytes that belong to the next request.
func (c *conn) unreceive(p []byte) {
	if len(p) > 0 {
		c.buffered = append(bytes.Clone(p), c.buffered...)
	}
}

// readHead reads up to the end of a head, unless the server holds.
func (c *conn) readHead(p []byte) (int, error) {
	for {
		if c.group.holding.Load() {
			c.detached = true
			return 0, errDetached
		}
		c.waiting = true
		n, err := c.receiveLocked(p)
		c.waiting = false
		if c.interrupted {
			c.interrupted = false
			c.socket.SetReadDeadline(time.Time{})
			if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
		}
		n = copy(p, c.skip(p[:n]))
		if end := c.head.end(p[:n]); end >= 0 {
			c.unreceive(p[end:n])
			c.phase, c.headRead = phaseHeadRead, nil
			return end, err
		}
		if !c.headTimed && n > 0 {
			c.headTimed = true
			if c.due = (time.Time{}); c.group.server.opts.Limits.Head > 0 {
				c.due = time.Now().Add(c.group.server.opts.Limits.Head)
			}
		}
		c.headRead = append(c.headRead, p[:n]...)
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// maxLenient is how many bytes of empty lines net/http skips after a POST.
const maxLenient = 4

// skip removes line ends before a head that the server would have skipped, had the
// connection not moved.
func (c *conn) skip(p []byte) []byte {
	for c.lenient > 0 && len(p) > 0 {
		if p[0] != '\r' && p[0] != '\n' {
			c.lenient = 0
			break
		}
		p = p[1:]
		c.lenient--
	}
	return p
}

// backgroundRead is the server's read of one byte that notices when a client goes away
// while its request is handled. A byte that arrives belongs to the next
// request: it is kept, and the read blocks until the server ends it.
func (c *conn) backgroundRead(p []byte) (int, error) {
	if len(c.buffered) == 0 {
		n, err := c.receiveLocked(p)
		if n == 0 {
			return 0, err
		}
		c.unreceive(p[:n])
	}
	if !c.expired {
		wait := make(chan struct{})
		c.blocked = wait
		c.mu.Unlock()
		<-wait
		c.mu.Lock()
	}
	return 0, os.ErrDeadlineExceeded
}

// unblockLocked ends the wait of backgroundRead. c.mu is held.
func (c *conn) unblockLocked() {
	if c.blocked != nil {
		close(c.blocked)
		c.blocked = nil
	}
}

// interrupt ends the outstanding read of a head.
func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting {
		c.interrupted = true
		c.socket.SetReadDeadline(time.Unix(1, 0))
	}
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.expired = !t.IsZero() && time.Until(t) <= 0; c.expired {
		c.unblockLocked()
	}
	return c.socket.SetReadDeadline(t)
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// idle is called when the server is about to read the next request.
func (c *conn) idle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.between = true
	c.head, c.headRead, c.lenient = head{}, nil, 0
	c.expect(0)
	if c.phase != phaseLength || c.bodyLeft > 0 {
		c.phase = phaseUnknown
		return
	}
	c.phase = phaseHead
	ahead := c.ahead
	c.ahead = nil
	if end := c.head.end(ahead); end >= 0 {
		c.phase, c.ahead = phaseHeadRead, ahead[end:]
	} else {
		c.headRead = ahead
	}
}

// begin is called when a handler begins with a request. It returns nil if the conn
// has been detached: the server then took an incomplete head for a complete one.
func (c *conn) begin(r *http.Request) *flight {
	f := c.group.server.newFlight(r, c, nil, &c.in, &c.out)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.detached {
		return nil
	}
	switch {
	case c.phase != phaseHeadRead:
		c.phase = phaseUnknown
	case r.ContentLength >= 0:
		had := min(int64(len(c.ahead)), r.ContentLength)
		c.phase, c.bodyLeft, c.ahead = phaseLength, r.ContentLength-had, c.ahead[had:]
	default:
		c.phase, c.chunks = phaseChunks, chunks{}
		if end := c.chunks.end(c.ahead); end >= 0 {
			c.phase, c.bodyLeft, c.ahead = phaseLength, 0, append(c.chunks.ahead, c.ahead[end:]...)
		} else {
			c.ahead = nil
		}
	}
	c.due = time.Time{}
	c.between, c.post = false, r.Method == http.MethodPost
	c.in.reset()
	c.out.reset()
	c.flight, c.route, c.answered = f, f.route, false
	f.stop = c.stop
	return f
}

// end is called when the handler has returned. It reports whether the conn was
// hijacked, and returns the stream that it has become, or nil.
func (c *conn) end() (hijacked bool, st *Stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flight, c.ended = nil, time.Now()
	return c.hijacked, c.stream
}

// hijack is called when a handler takes the conn from the server.
func (c *conn) hijack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hijacked, c.phase = true, phaseUnknown
}

// setOwner records who owns the stream that the conn may become.
func (c *conn) setOwner(owner string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owner = owner
}

// Movable makes a hijacked conn a stream of its owner. It returns nil if there
// is no owner, or a stream already. unread is what the server has read ahead.
func (c *conn) Movable(unread []byte) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.hijacked || c.owner == "" || c.stream != nil {
		return nil
	}
	all := append(bytes.Clone(unread), c.buffered...)
	c.stream = newStream(c.group.server.streams, c.socket, Detached{Kind: KindStream, Owner: c.owner, Unread: all})
	c.buffered = nil
	return c.stream
}

// waitsForHead reports whether the conn is between two requests, or in the middle
// of a head: then it can be detached.
func (c *conn) waitsForHead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.evicted && c.phase == phaseHead && c.flight == nil && !c.hijacked
}

// inFlight implements pending.
func (c *conn) inFlight(now time.Time, patience time.Duration) InFlight {
	c.mu.Lock()
	f, route, ended, hijacked := c.flight, c.route, c.ended, c.hijacked
	begins := c.phase == phaseHead || c.phase == phaseHeadRead
	c.mu.Unlock()
	if f != nil {
		is := f.inFlight(now, patience)
		if hijacked && is.State != Endless { // and not yet a stream: its handler has the connection
			is.State = Endless
		}
		return is
	}
	is := InFlight{Route: "the end of " + route, State: Ending, Age: now.Sub(ended)}
	if begins {
		is.Route, is.Age = "a new request", 0
	}
	switch is.Left = patience - is.Age; {
	case c.in.stalled(now, patience) || c.out.stalled(now, patience):
		is.State, is.Left = Stalled, 0
	case is.Left < 0:
		is.State, is.Left = Late, 0
	}
	return is
}

// cancel implements pending.
func (c *conn) cancel() {
	if f := c.current(); f != nil {
		f.cancel()
	}
}

// expire implements pending.
func (c *conn) expire(status int) {
	if f := c.current(); f != nil {
		f.expire(status)
		return
	}
	c.mu.Lock()
	route := "the end of " + c.route
	if c.phase == phaseHead || c.phase == phaseHeadRead {
		route = "a new request"
	}
	c.mu.Unlock()
	c.group.server.cuts.add(route)
	c.fail(nil, 0)
}

// leave implements pending.
func (c *conn) leave() { c.drop(c.current()) }

// current returns the request of the running handler, nil if none runs.
func (c *conn) current() *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flight
}

// cancelContext implements flightLink. It also wakes the handler of a hijacked
// conn, which waits for the connection and not for a context.
func (c *conn) cancelContext(f *flight, cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flight != f {
		return
	}
	c.hadCancelled = true
	f.stop(cause)
	if c.hijacked && c.stream == nil {
		c.socket.SetReadDeadline(time.Unix(1, 0))
	}
}

// fail implements flightLink. f is nil for what the server does after a handler.
func (c *conn) fail(f *flight, status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flight != f || c.detached || c.stream != nil || c.phase == phaseHead {
		return
	}
	if status != 0 && !c.answered && !c.hijacked {
		c.answerLocked(status)
	}
	c.socket.SetDeadline(time.Unix(1, 0))
}

// drop implements flightLink: the connection ends, whatever its handler does.
func (c *conn) drop(f *flight) {
	c.mu.Lock()
	st, gone := c.stream, c.detached || c.flight != f
	c.unblockLocked()
	c.mu.Unlock()
	if gone {
		return
	}
	c.group.forget(c, false)
	if st != nil {
		st.abort()
		return
	}
	c.socket.Close()
}

// answerLocked answers in place of the handler, and ends the connection.
func (c *conn) answerLocked(status int) {
	c.answered, c.replaced = true, true
	retry := ""
	if status == http.StatusServiceUnavailable {
		retry = "Retry-After: 0\r\n"
	}
	text := http.StatusText(status)
	c.socket.SetWriteDeadline(time.Now().Add(answerTime))
	fmt.Fprintf(c.socket, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n%s\n",
		status, text, retry, len(text)+1, text)
	c.socket.CloseWrite()
}

// answerTime bounds the write of a short answer to a client that may not read.
const answerTime = 50 * time.Millisecond

// errReplaced is returned by writes of a handler that is too late.
var errReplaced = errors.New("serve: the request was cut and has been answered")

func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	detached, replaced := c.detached, c.replaced
	if c.flight != nil && !c.answered {
		c.answered = !bytes.HasPrefix(p, []byte("HTTP/1.1 1"))
	}
	c.mu.Unlock()
	switch {
	case detached:
		return len(p), nil // the server's answer to an interrupted head
	case replaced:
		return 0, errReplaced
	}
	c.out.begin()
	n, err := c.socket.Write(p)
	c.out.end(n)
	return n, err
}

// ReadFrom lets the kernel send files directly.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	c.mu.Lock()
	replaced := c.replaced
	c.answered = true
	c.mu.Unlock()
	if replaced {
		return 0, errReplaced
	}
	if from, ok := c.socket.(io.ReaderFrom); ok {
		c.out.begin()
		n, err := from.ReadFrom(r)
		c.out.end(int(n))
		return n, err
	}
	return io.Copy(struct{ io.Writer }{c.socket}, r)
}

// CloseWrite is the last thing the server does to a connection before it waits
// for the client and closes it.
func (c *conn) CloseWrite() error {
	c.mu.Lock()
	detached := c.detached
	c.mu.Unlock()
	if detached {
		return nil
	}
	c.group.forget(c, false)
	return c.socket.CloseWrite()
}

// Close closes the socket, unless the conn was detached: then the server has
// let go of the conn, and the socket stays open.
func (c *conn) Close() error {
	c.mu.Lock()
	detached := c.detached
	c.unblockLocked()
	c.mu.Unlock()
	if c.group.forget(c, detached) && detached {
		return nil
	}
	return c.socket.Close()
}

// unread returns every byte from the client that no handler has begun with.
func (c *conn) unread() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append(c.headRead, c.buffered...)
}

// detach returns the socket with everything that moves with it.
func (c *conn) detach() Detached {
	d := Detached{Conn: c.socket, Kind: KindHTTP, Unread: c.unread()}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.Lenient = c.lenient; c.post { // the next server does not know that
		d.Lenient = maxLenient
	}
	if !c.due.IsZero() {
		d.Left = max(time.Until(c.due), time.Millisecond)
	}
	return d
}

// expect begins the time that the client has for its next request: left, or all of
// it if left is 0.
func (c *conn) expect(left time.Duration) {
	limits := c.group.server.opts.Limits
	c.headTimed = len(c.buffered) > 0
	if left == 0 {
		if left = limits.Idle; c.headTimed {
			left = limits.Head
		}
	}
	if c.due = (time.Time{}); left > 0 {
		c.due = time.Now().Add(left)
	}
}

// wasCancelled reports whether a hold has cancelled an earlier request.
func (c *conn) wasCancelled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hadCancelled
}

// renew makes a context for a request that follows a cancelled one.
func (c *conn) renew(cancelled context.Context, f *flight) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(cancelled))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop, f.stop = cancel, cancel
	return ctx, cancel
}

// finish is called when the handler has returned. If a hold has cancelled its
// request, the answer ends as the client needs it.
func (c *conn) finish(f *flight, a *answer) {
	c.mu.Lock()
	answered, hijacked := c.answered, c.hijacked
	c.mu.Unlock()
	if hijacked {
		return
	}
	switch f.end(answered) {
	case fateNone:
		a.refuse(f.status())
	case fateReplaced:
		c.fail(f, f.status())
		panic(http.ErrAbortHandler)
	case fateBroken:
		panic(http.ErrAbortHandler)
	case fateStands:
	}
}

// overdue closes the connection if its client has taken too long.
func (c *conn) overdue(now time.Time) {
	limit := c.group.server.opts.Limits.Transfer
	c.mu.Lock()
	f := c.flight
	switch {
	case c.detached || c.hijacked:
		c.mu.Unlock()
		return
	case c.phase == phaseHead && f == nil:
		if !c.due.IsZero() && now.After(c.due) {
			c.socket.Close() // as net/http does: whoever is too slow gets no answer
		}
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	if limit == 0 || f != nil && f.isEndless() || !c.in.tooSlow(now, limit) && !c.out.tooSlow(now, limit) {
		return
	}
	if f != nil {
		f.timeOut()
	} else {
		c.fail(nil, 0)
	}
}

// idleSince returns since when the connection has been waiting for a request; ok is
// false if it does not, or has got some of one.
func (c *conn) idleSince() (since time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended, c.isIdleLocked()
}

// isIdleLocked reports whether no byte of a request has come. c.mu is held.
func (c *conn) isIdleLocked() bool {
	return !c.evicted && c.phase == phaseHead && c.flight == nil && !c.hijacked && !c.detached && c.head == (head{}) && len(c.headRead)+len(c.buffered) == 0
}

// evict closes the connection if it is still idle.
func (c *conn) evict() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.isIdleLocked() {
		return false
	}
	c.evicted = true
	c.socket.Close()
	return true
}
