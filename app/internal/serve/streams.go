package serve

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// streams keeps the connections that an owner handles.
type streams struct {
	server *Server

	mu       sync.Mutex // guards the fields below
	paused   bool
	running  map[*Stream]struct{} // streams with a running handler
	detached []*Stream            // streams whose handler has returned
	gate     chan struct{}        // closed when streams may be read
}

func newStreams(s *Server) *streams {
	return &streams{server: s, paused: true, running: map[*Stream]struct{}{}, gate: make(chan struct{})}
}

func (k *streams) adopt(d Detached) {
	if sock, ok := k.server.socketOf(d); ok {
		k.begin(newStream(k, sock, d))
	}
}

// begin serves a stream that came from elsewhere, or from HTTP.
func (k *streams) begin(st *Stream) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.server.isClosed() {
		st.abort()
		return
	}
	k.startLocked(st)
}

// startLocked begins the handler of a stream. k.mu is held.
func (k *streams) startLocked(st *Stream) {
	k.running[st] = struct{}{}
	k.server.handlers.Go(func() { k.run(st) })
}

// resumeLocked begins another handler for a stream whose last one has returned
// in this process. k.mu is held.
func (k *streams) resumeLocked(st *Stream) {
	if st.tooMuchUnmarked() {
		k.server.log.Warn("a connection cannot go on", "module", st.owner, "remote", st.RemoteAddr(), "err", errUnmarked)
		st.abort()
		return
	}
	st.reset()
	k.startLocked(st)
}

// run runs one handler of a stream, and decides afterwards what becomes of the
// stream.
func (k *streams) run(st *Stream) {
	s := k.server
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	st.mu.Lock()
	moved := st.moveBegan
	st.mu.Unlock()
	flushed := make(chan struct{})
	st.writes.Lock() // before the handler can
	go func() {      // waited for below
		defer close(flushed)
		defer st.writes.Unlock()
		st.flushLocked()
	}()
	done := make(chan struct{})
	go func() { // ends with done
		select {
		case <-moved:
			cancel(s.opts.Moving)
		case <-done:
		}
	}()
	err := s.opts.Stream(ctx, st.owner, st)
	close(done)
	if !errors.Is(err, s.opts.Moving) || !st.Moving() {
		st.finish(flushed)
	}
	<-flushed
	st.Ready()
	if err != nil && !errors.Is(err, s.opts.Moving) && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		s.log.Warn("connection ended", "module", st.owner, "remote", st.RemoteAddr(), "err", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.running, st)
	switch {
	case st.isClosed():
	case s.isClosed():
		st.abort()
	case k.paused:
		k.detached = append(k.detached, st)
	default: // the hold has failed and is over
		k.resumeLocked(st)
	}
	s.notify()
}

// pause tells every handler that its stream is about to move.
func (k *streams) pause() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.paused = true
	k.gate = make(chan struct{})
	for st := range k.running {
		st.move()
	}
}

// pending returns the streams whose handler has not let go: during a hold all that
// are running, otherwise those that an earlier hold has told to move. Other
// streams are in nobody's way.
func (k *streams) pending() []pending {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []pending
	for st := range k.running {
		if k.paused || st.Moving() {
			list = append(list, st)
		}
	}
	return list
}

func (k *streams) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.running) + len(k.detached)
}

// leave lets the handler of a stream run on, and ends the stream.
func (k *streams) leave(st *Stream) {
	st.abort()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.running, st)
	k.server.notify()
}

func (k *streams) waiting() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.detached)
}

func (k *streams) resume() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.paused = false
	for _, st := range k.detached {
		k.resumeLocked(st)
	}
	k.detached = nil
}

func (k *streams) detachAll() (conns []Detached, closed int) {
	k.mu.Lock()
	detached := k.detached
	k.detached = nil
	k.mu.Unlock()
	for _, st := range detached {
		d, err := st.detach()
		if err != nil {
			k.server.log.Warn("a connection cannot move", "module", st.owner, "remote", st.RemoteAddr(), "err", err)
			closed++
			continue
		}
		conns = append(conns, d)
	}
	return conns, closed
}

func (k *streams) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, st := range k.detached {
		st.abort()
	}
	for st := range k.running {
		st.abort()
	}
	k.detached = nil
}

// openLimit is how long the handlers of some streams may keep others from being
// read.
const openLimit = time.Second

// open lets streams be read as soon as the handlers of all of them are reading,
// or openLimit is over.
func (k *streams) open() {
	k.mu.Lock()
	defer k.mu.Unlock()
	gate := k.gate
	begun := make([]chan struct{}, 0, len(k.running))
	for st := range k.running {
		begun = append(begun, st.readBegan)
	}
	if len(begun) == 0 {
		closeOnce(gate)
		return
	}
	k.server.handlers.Go(func() {
		limit := time.After(openLimit)
		for _, b := range begun {
			select {
			case <-b:
				continue
			case <-limit:
				k.server.log.Warn("not every connection that has moved is being read", "after", openLimit)
			case <-k.server.closed:
			}
			break
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		closeOnce(gate)
	})
}

func closeOnce(gate chan struct{}) {
	select {
	case <-gate:
	default:
		close(gate)
	}
}

// opened returns a channel that is closed when streams may be read.
func (k *streams) opened() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gate
}
