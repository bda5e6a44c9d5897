package serve

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// run is the life of a stream in this process, from one handler's beginning
// to its end.
func (s *Server) run(st *Stream) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	st.mu.Lock()
	moved := st.moved
	st.mu.Unlock()
	flushed := make(chan struct{})
	st.writes.Lock() // before the handler can
	go func() {
		defer close(flushed)
		defer st.writes.Unlock()
		st.flush()
	}()
	done := make(chan struct{})
	go func() {
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
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	st.mu.Lock()
	closed := st.closed
	st.mu.Unlock()
	switch {
	case closed:
	case s.isClosed():
		st.abort()
	case s.holding.Load():
		s.parted = append(s.parted, st)
	default: // the hold is over, and has failed
		s.resume(st)
	}
	s.notify()
}

// resume begins the next handler of a stream that has parted from one in this
// process. s.mu is held.
func (s *Server) resume(st *Stream) {
	if st.tooMuchUnmarked() {
		s.log.Warn("a connection cannot go on", "module", st.owner, "remote", st.RemoteAddr(), "err", errUnmarked)
		st.abort()
		return
	}
	st.settle()
	s.start(st)
}

// start begins the handler of a stream. s.mu is held.
func (s *Server) start(st *Stream) {
	s.streams[st] = struct{}{}
	s.running.Go(func() { s.run(st) })
}

func (s *Server) adoptStream(st *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		st.abort()
		return
	}
	s.start(st)
}

// moveStreams tells every handler of a stream that it shall move.
func (s *Server) moveStreams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gate = make(chan struct{})
	for st := range s.streams {
		st.move()
	}
}

// streamsHeld tells whether no handler of a stream runs.
func (s *Server) streamsHeld() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams) == 0
}

// Expect keeps streams from being read after the next Release, until
// [Server.Open]: more are to be adopted.
func (s *Server) Expect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expecting = true
}

// openLimit is how long the handlers of some streams may keep those of others
// from reading.
const openLimit = time.Second

// Open lets streams be read, as soon as the handlers of all those that were
// adopted wait for it: whatever a client's message makes a handler tell the
// others, none is missed.
func (s *Server) Open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expecting = false
	gate := s.gate
	begun := make([]chan struct{}, 0, len(s.streams))
	for st := range s.streams {
		begun = append(begun, st.begun)
	}
	if len(begun) == 0 {
		closeOnce(gate)
		return
	}
	s.running.Go(func() {
		limit := time.After(openLimit)
		for _, b := range begun {
			select {
			case <-b:
				continue
			case <-limit:
				s.log.Warn("not every connection that has moved is being read", "after", openLimit)
			case <-s.closed:
			}
			break
		}
		s.mu.Lock()
		defer s.mu.Unlock()
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

// gateOpen is closed when streams may be read.
func (s *Server) gateOpen() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gate
}
