// Package serve owns the sockets of a generation: its listeners, its
// connections and the HTTP server behind them.
//
// A [Server] can hold: it stops accepting (the kernel queues), lets requests
// in flight finish, and detaches each connection in the moment it waits for a
// new request with nothing of it read. After a hold no request is anywhere
// but in the kernel, so modules can be replaced; [Server.Release] puts the
// detached connections back, and [Server.Detached] gives them away.
//
// The package knows nothing of generations or modules: it has one handler.
package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrReloading is the cause of a request's cancelled context when a reload
// would wait for it no longer.
var ErrReloading = errors.New("serve: the request was cancelled by a reload")

// BusyError tells what kept a hold from completing.
type BusyError struct{ Routes []string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("serve: still busy: %v", e.Routes)
}

// Server accepts connections and serves HTTP on them.
type Server struct {
	http    *http.Server
	queue   chan net.Conn // accepted connections on their way to the HTTP server
	closed  chan struct{}
	holding atomic.Bool
	tasks   sync.WaitGroup
	log     *slog.Logger

	mu        sync.Mutex // guards the fields below
	listeners []*listener
	conns     map[*conn]struct{}
	detached  []net.Conn
	requests  map[*request]struct{}
	changed   chan struct{} // closed and replaced when conns or requests shrink
}

type request struct {
	route  string
	cancel context.CancelCauseFunc
}

// listener is an accepting socket and its goroutine's gate.
type listener struct {
	net.Listener
	paused bool          // what is wanted
	parked bool          // what is: the goroutine does not accept
	resume chan struct{} // closed and replaced when paused ends
}

// setDeadline ends or allows a blocking Accept.
func (l *listener) setDeadline(t time.Time) {
	l.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(t)
}

// New returns a server for h that does not accept yet: see [Server.Release].
func New(h http.Handler, log *slog.Logger) *Server {
	s := &Server{
		queue:    make(chan net.Conn),
		closed:   make(chan struct{}),
		log:      log,
		conns:    map[*conn]struct{}{},
		requests: map[*request]struct{}{},
		changed:  make(chan struct{}),
	}
	s.holding.Store(true)
	s.http = &http.Server{
		Handler:  s.track(h),
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnState: func(c net.Conn, state http.ConnState) {
			if c, ok := c.(*conn); ok {
				c.state(state)
				if state == http.StateHijacked {
					s.forget(c, false)
				}
			}
		},
	}
	s.tasks.Go(func() { s.http.Serve(queueListener{s}) })
	return s
}

// queueListener hands the accepted connections to the HTTP server.
type queueListener struct{ s *Server }

func (q queueListener) Accept() (net.Conn, error) {
	select {
	case c := <-q.s.queue:
		return c, nil
	case <-q.s.closed:
		return nil, net.ErrClosed
	}
}
func (q queueListener) Close() error   { return nil }
func (q queueListener) Addr() net.Addr { return &net.TCPAddr{} }

// Listen takes responsibility for ln, which must be a TCP or Unix listener.
// It is accepted on as soon as, and whenever, the server does not hold.
func (s *Server) Listen(ln net.Listener) {
	l := &listener{Listener: ln, resume: make(chan struct{})}
	s.mu.Lock()
	l.paused = s.holding.Load()
	s.listeners = append(s.listeners, l)
	s.mu.Unlock()
	s.tasks.Go(func() { s.accept(l) })
}

// accept is the goroutine of one listener.
func (s *Server) accept(l *listener) {
	for {
		if !s.park(l) {
			return
		}
		c, err := l.Accept()
		switch {
		case err == nil:
			s.adopt(c)
		case errors.Is(err, os.ErrDeadlineExceeded): // paused
		case errors.Is(err, net.ErrClosed):
			return
		default: // out of descriptors, or a client that has gone already
			s.log.Warn("accept failed", "listen", l.Addr(), "err", err)
			select {
			case <-s.closed:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// park waits as long as l is paused. It reports false when the server is closed.
func (s *Server) park(l *listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l.paused {
		l.parked = true
		s.notify()
		resume := l.resume
		s.mu.Unlock()
		select {
		case <-resume:
		case <-s.closed:
		}
		s.mu.Lock()
		select {
		case <-s.closed:
			return false
		default:
		}
	}
	l.parked = false
	return true
}

// adopt gives c to the HTTP server.
func (s *Server) adopt(c net.Conn) {
	sock, ok := c.(socket)
	if !ok {
		s.log.Error("cannot serve this kind of connection", "type", fmt.Sprintf("%T", c))
		c.Close()
		return
	}
	wrapped := &conn{socket: sock, server: s, fresh: true}
	s.mu.Lock()
	s.conns[wrapped] = struct{}{}
	s.mu.Unlock()
	select {
	case s.queue <- wrapped:
	case <-s.closed:
		wrapped.Close()
	}
}

// forget drops c from the books and keeps its socket if it was detached. It
// reports whether it did anything.
func (s *Server) forget(c *conn, detached bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.conns[c]; !ok {
		return false
	}
	delete(s.conns, c)
	if detached {
		s.detached = append(s.detached, c.socket)
	}
	s.notify()
	return true
}

// notify wakes whoever waits for the books to change. s.mu is held.
func (s *Server) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// track keeps the list of requests in flight.
func (s *Server) track(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		entry := &request{route: r.Method + " " + r.URL.Path, cancel: cancel}
		s.mu.Lock()
		s.requests[entry] = struct{}{}
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			delete(s.requests, entry)
			s.notify()
			s.mu.Unlock()
		}()
		h.ServeHTTP(w, r.WithContext(ctx))
	})
}

// Hold stops accepting and waits until every connection is detached or gone.
// When ctx ends first it returns a [*BusyError]; the caller then either
// cancels the rest with [Server.Cut] and holds again, or releases. Nothing is
// lost in either case.
func (s *Server) Hold(ctx context.Context) error {
	s.mu.Lock()
	s.holding.Store(true)
	for _, l := range s.listeners {
		if !l.paused {
			l.paused = true
			l.setDeadline(time.Unix(1, 0))
		}
	}
	s.mu.Unlock()
	for {
		s.mu.Lock()
		changed, done := s.changed, len(s.conns) == 0
		for _, l := range s.listeners {
			done = done && l.parked
		}
		for c := range s.conns {
			c.interrupt()
		}
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return &BusyError{Routes: s.Busy()}
		}
	}
}

// Busy names the requests in flight, and how many connections are in the
// middle of sending one.
func (s *Server) Busy() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	routes := []string{}
	for r := range s.requests {
		routes = append(routes, r.route)
	}
	slices.Sort(routes)
	if n := len(s.conns) - len(s.requests); n > 0 {
		routes = append(routes, fmt.Sprintf("%d connection(s) in the middle of sending a request", n))
	}
	return routes
}

// Cut cancels the requests in flight with [ErrReloading] as the cause, and
// closes the connections that are in the middle of sending one.
func (s *Server) Cut() {
	s.mu.Lock()
	var half []*conn
	for r := range s.requests {
		r.cancel(ErrReloading)
	}
	if len(s.requests) == 0 {
		for c := range s.conns {
			half = append(half, c)
		}
	}
	s.mu.Unlock()
	for _, c := range half {
		c.cut()
	}
}

// Release ends a hold, or the time before the first one: the detached
// connections are served again and accepting goes on.
func (s *Server) Release() {
	s.mu.Lock()
	s.holding.Store(false)
	detached := s.detached
	s.detached = nil
	for _, l := range s.listeners {
		if l.paused {
			l.paused = false
			l.setDeadline(time.Time{})
			close(l.resume)
			l.resume = make(chan struct{})
		}
	}
	s.mu.Unlock()
	s.Adopt(detached)
}

// Adopt serves connections that came from elsewhere. It takes responsibility
// for them.
func (s *Server) Adopt(conns []net.Conn) {
	for _, c := range conns {
		s.adopt(c)
	}
}

// Detached gives away the connections that the hold detached.
func (s *Server) Detached() []net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	detached := s.detached
	s.detached = nil
	return detached
}

// Close closes everything that is left and waits for the server's goroutines.
// Handlers that ignore their context are not waited for.
func (s *Server) Close() {
	s.mu.Lock()
	select {
	case <-s.closed:
		s.mu.Unlock()
		return
	default:
	}
	close(s.closed)
	for _, l := range s.listeners {
		l.Close()
	}
	for _, c := range s.detached {
		c.Close()
	}
	s.detached = nil
	s.mu.Unlock()
	s.http.Close()
	s.tasks.Wait()
}
