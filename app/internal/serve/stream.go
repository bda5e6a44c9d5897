package serve

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// Limits of what moves with a stream.
const (
	maxUnread = 1 << 20  // bytes read and not marked
	maxUnsent = 1 << 20  // bytes written that the client has not received
	maxKept   = 64 << 10 // bytes for [Stream.Keep]
	maxLine   = 64 << 10 // bytes of a line for [Stream.ReadLine]

	// flushTimeout is how long a client may take to receive what is queued when
	// its connection is closed.
	flushTimeout = time.Second
)

var (
	errLineTooLong = fmt.Errorf("serve: a line of more than %d bytes", maxLine)
	errKeptTooMuch = fmt.Errorf("serve: more than %d bytes to keep", maxKept)
	errUnmarked    = fmt.Errorf("serve: more than %d bytes were read without a Mark", maxUnread)
	errTooSlow     = fmt.Errorf("serve: the client has not received more than %d bytes", maxUnsent)
)

// Stream is a connection that is not HTTP, or no longer. It belongs to an
// owner, whose handler reads and writes it. When it moves, reads return
// Options.Moving and writes are queued. What was read and not marked as handled
// moves along, and so does what the client has not received.
//
//	       move (a hold)                the handler returns Moving
//	open ───────────────▶ moving ────────────────────────────────▶ detach: closed
//	 ▲ │                     │                                     here, goes on elsewhere
//	 │ │                     │ the hold ends here: reset,
//	 │ └─────────┐           │ and a new handler
//	 └───────────┼───────────┘
//	             │ the handler returns anything else
//	             ▼
//	           ending ──── what is queued is sent, within flushTimeout ──▶ closed
//
// After open no handler reads until the handlers of all streams want to, or
// openLimit is over; see streams.open.
type Stream struct {
	socket
	group *streams
	owner string

	reads  sync.Mutex // held by a reader
	writes sync.Mutex // held by a writer; locked before mu

	mu         sync.Mutex    // guards the fields below
	moving     bool          // the handler has been told to let go
	moveBegan  chan struct{} // closed when moving is set
	movedAt    time.Time     // when it was set
	readBegan  chan struct{} // closed by a handler's first read, or its end
	reading    bool          // readBegan is closed
	ending     bool          // the handler has returned for good
	closed     bool          // the socket is closed, or a Detached's
	unread     []byte        // bytes read and not marked as handled
	delivered  int           // bytes of unread that the handler has
	overflowed bool          // more than maxUnread was read without a Mark, so unread is incomplete
	unsent     []byte        // bytes written that wait for the end of the move
	kept       []byte        // bytes that the owner keeps for its next handler
}

func newStream(k *streams, sock socket, d Detached) *Stream {
	st := &Stream{socket: sock, group: k, owner: d.Owner, unread: d.Unread, unsent: d.Unsent, kept: d.Kept}
	st.reset()
	return st
}

// reset prepares a stream for a handler that is about to begin.
func (st *Stream) reset() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.moving, st.reading, st.delivered = false, false, 0
	st.moveBegan, st.readBegan = make(chan struct{}), make(chan struct{})
	st.socket.SetDeadline(time.Time{})
}

// move tells the handler that the stream is about to move.
func (st *Stream) move() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.moving && !st.ending {
		st.moving, st.movedAt = true, time.Now()
		close(st.moveBegan)
		st.socket.SetDeadline(time.Unix(1, 0))
	}
}

// inFlight implements pending: the handler has been told to let go.
func (st *Stream) inFlight(now time.Time, patience time.Duration) InFlight {
	st.mu.Lock()
	defer st.mu.Unlock()
	is := InFlight{Route: "a connection of module " + st.owner, Owner: st.owner, State: Ending}
	if st.moving {
		is.Age = now.Sub(st.movedAt)
	}
	if is.Left = patience - is.Age; is.Left < 0 {
		is.State, is.Left = Late, 0
	}
	return is
}

// cancel implements pending: the handler has been told already.
func (st *Stream) cancel() {}

// expire implements pending: reads and writes have ended already.
func (st *Stream) expire(int) {}

// leave implements pending.
func (st *Stream) leave() { st.group.leave(st) }

func (st *Stream) tooMuchUnmarked() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.overflowed
}

// finish closes a stream after its handler has ended, once the client has
// received what is queued or has had flushTimeout to do so.
func (st *Stream) finish(flushed <-chan struct{}) {
	st.mu.Lock()
	st.ending = true
	if !st.closed {
		st.socket.SetWriteDeadline(time.Now().Add(flushTimeout))
	}
	st.mu.Unlock()
	<-flushed
	st.Close()
}

// sendQueuedLocked writes what is queued before the stream is closed. st.writes is
// held.
func (st *Stream) sendQueuedLocked() {
	st.mu.Lock()
	unsent := st.unsent
	st.unsent = nil
	if len(unsent) == 0 || st.closed {
		st.mu.Unlock()
		return
	}
	st.socket.SetWriteDeadline(time.Now().Add(flushTimeout))
	st.mu.Unlock()
	st.socket.Write(unsent)
}

// isClosed reports whether the stream was closed or detached.
func (st *Stream) isClosed() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.closed
}

// Moving reports whether the stream is about to move.
func (st *Stream) Moving() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.moving
}

// detach returns a stream whose handler has ended, to be adopted elsewhere.
// After an error it is closed.
func (st *Stream) detach() (Detached, error) {
	st.writes.Lock()
	defer st.writes.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return Detached{}, net.ErrClosed
	}
	st.closed = true
	if st.overflowed {
		st.socket.Close()
		return Detached{}, errUnmarked
	}
	return Detached{Conn: st.socket, Kind: KindStream, Owner: st.owner, Unread: st.unread, Unsent: st.unsent, Kept: st.kept}, nil
}

// Ready counts the handler as reading, for a handler that does not read itself.
func (st *Stream) Ready() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.reading {
		st.reading = true
		close(st.readBegan)
	}
}

// await waits until the stream may be read.
func (st *Stream) await() error {
	st.Ready()
	st.mu.Lock()
	moved := st.moveBegan
	moving := st.moving
	st.mu.Unlock()
	if moving {
		return st.group.server.opts.Moving
	}
	select {
	case <-st.group.opened():
		return nil
	case <-moved:
		return st.group.server.opts.Moving
	}
}

// Read implements net.Conn. What it returns counts as handled after
// [Stream.Mark].
func (st *Stream) Read(p []byte) (int, error) {
	st.reads.Lock()
	defer st.reads.Unlock()
	if err := st.await(); err != nil {
		return 0, err
	}
	st.mu.Lock()
	if n := copy(p, st.unread[st.delivered:]); n > 0 {
		st.delivered += n
		st.mu.Unlock()
		return n, nil
	}
	st.mu.Unlock()
	n, err := st.socket.Read(p)
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.overflowed = st.overflowed || len(st.unread)+n > maxUnread; st.overflowed {
		st.unread = nil
	} else {
		st.unread = append(st.unread, p[:n]...)
	}
	st.delivered = len(st.unread)
	if n == 0 && st.moving && errors.Is(err, os.ErrDeadlineExceeded) {
		err = st.group.server.opts.Moving
	}
	return n, err
}

// ReadLine returns the next line without its end, and marks it as handled. At
// the end of the stream it returns what is left, with io.EOF.
func (st *Stream) ReadLine() (string, error) {
	st.reads.Lock()
	defer st.reads.Unlock()
	for {
		if err := st.await(); err != nil {
			return "", err
		}
		st.mu.Lock()
		rest := st.unread[st.delivered:]
		if end := bytes.IndexByte(rest, '\n'); end >= 0 {
			line := string(bytes.TrimSuffix(rest[:end], []byte("\r")))
			st.unread, st.delivered, st.overflowed = st.unread[st.delivered+end+1:], 0, false
			st.mu.Unlock()
			return line, nil
		}
		st.mu.Unlock()
		if len(rest) > maxLine {
			return "", errLineTooLong
		}
		var chunk [4096]byte
		n, err := st.socket.Read(chunk[:])
		st.mu.Lock()
		st.unread = append(st.unread, chunk[:n]...)
		moving := st.moving
		rest = st.unread[st.delivered:]
		st.mu.Unlock()
		switch {
		case n > 0 || err == nil:
		case moving && errors.Is(err, os.ErrDeadlineExceeded):
			return "", st.group.server.opts.Moving
		default:
			return string(rest), err
		}
	}
}

// Mark says that everything read so far has been handled.
func (st *Stream) Mark() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.delivered == len(st.unread) {
		st.unread = st.unread[:0]
	} else {
		st.unread = st.unread[st.delivered:]
	}
	st.delivered, st.overflowed = 0, false
}

// Keep replaces the bytes that move with the stream for its next handler.
func (st *Stream) Keep(b []byte) error {
	if len(b) > maxKept {
		return errKeptTooMuch
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.kept = bytes.Clone(b)
	return nil
}

// Kept returns what was kept last.
func (st *Stream) Kept() []byte {
	st.mu.Lock()
	defer st.mu.Unlock()
	return bytes.Clone(st.kept)
}

// Write implements net.Conn. While the stream moves, what the client has not
// received is queued and moves along.
func (st *Stream) Write(p []byte) (int, error) {
	st.writes.Lock()
	defer st.writes.Unlock()
	st.flushLocked() // or this would overtake what was queued
	if queued, err := st.queueLocked(p); queued || err != nil {
		return len(p), err
	}
	n, err := st.socket.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if queued, err := st.queueLocked(p[n:]); queued || err != nil {
			return len(p), err
		}
	}
	return n, err
}

// queueLocked keeps p for later if it cannot be written now. st.writes is held.
func (st *Stream) queueLocked(p []byte) (bool, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return false, net.ErrClosed
	}
	if !st.moving {
		return false, nil
	}
	if len(st.unsent)+len(p) > maxUnsent {
		st.closed = true
		st.socket.Close()
		return false, errTooSlow
	}
	st.unsent = append(st.unsent, p...)
	return true, nil
}

// flushLocked writes what was queued before the stream moved. st.writes is held.
func (st *Stream) flushLocked() {
	st.mu.Lock()
	unsent, moving := st.unsent, st.moving || st.closed
	st.mu.Unlock()
	if len(unsent) == 0 || moving {
		return
	}
	n, err := st.socket.Write(unsent)
	st.mu.Lock()
	defer st.mu.Unlock()
	st.unsent = unsent[n:]
	if err != nil && !st.moving {
		st.closed = true
		st.socket.Close()
	}
}

// SetReadDeadline implements net.Conn.
func (st *Stream) SetReadDeadline(t time.Time) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.moving {
		return nil
	}
	return st.socket.SetReadDeadline(t)
}

// SetWriteDeadline implements net.Conn.
func (st *Stream) SetWriteDeadline(t time.Time) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.moving {
		return nil
	}
	return st.socket.SetWriteDeadline(t)
}

// SetDeadline implements net.Conn.
func (st *Stream) SetDeadline(t time.Time) error {
	return errors.Join(st.SetReadDeadline(t), st.SetWriteDeadline(t))
}

// CloseWrite tells the client, after what is queued, that no more follows.
func (st *Stream) CloseWrite() error {
	st.writes.Lock()
	defer st.writes.Unlock()
	st.sendQueuedLocked()
	return st.socket.CloseWrite()
}

// Close implements net.Conn. What is queued is sent first, unless a write is
// under way.
func (st *Stream) Close() error {
	if st.writes.TryLock() {
		st.sendQueuedLocked()
		st.writes.Unlock()
	}
	return st.abort()
}

// abort closes the socket at once.
func (st *Stream) abort() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return net.ErrClosed
	}
	st.closed = true
	return st.socket.Close()
}
