// Package serve owns the sockets of a generation: its listeners, its
// connections and the HTTP server behind them.
//
// A [Server] can hold: it stops accepting (the kernel queues), lets requests
// in flight finish, and detaches each connection in the moment it waits for a
// new request with nothing of it handled. After a hold no request is anywhere
// but in the kernel, so modules can be replaced; [Server.Release] puts the
// detached connections back, and [Server.Detached] gives them away.
//
// Besides HTTP it serves streams: connections that belong to an owner, who
// handles their bytes. They move as well, see [Stream].
//
// The package knows nothing of generations or modules: it has one handler.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Detached is a connection that a hold has taken from the server, with what
// has to go with it.
type Detached struct {
	net.Conn
	Owner  string // of a stream; "" is HTTP
	Unread []byte // what the client has sent and no handler has begun with
	Unsent []byte // what the client has yet to get; streams only
	Kept   []byte // by the owner; streams only
}

// Options are what a server needs to know.
type Options struct {
	Log *slog.Logger

	// Stream serves a stream of an owner until its error, which says whether
	// the stream shall move. It may be called again with the same one.
	Stream func(ctx context.Context, owner string, st *Stream) error

	// TLS, if not nil, is what HTTP is spoken through on the listeners.
	TLS *tls.Config

	Moving    error // ends the reads of a stream that shall move, and is Stream's result then
	Reloading error // is the cause when a hold cancels a request
}

// Server accepts connections and serves HTTP on them.
type Server struct {
	opts      Options
	log       *slog.Logger
	http      *http.Server
	fixed     *fixed
	queue     chan net.Conn // accepted connections on their way to the HTTP server
	closed    chan struct{}
	holding   atomic.Bool
	cancelled atomic.Int64  // requests
	changed   chan struct{} // has room for one; receives when a hold may have got further
	tasks     sync.WaitGroup
	running   sync.WaitGroup // handlers of streams

	mu        sync.Mutex // guards the fields below
	listeners []*listener
	conns     map[*conn]struct{}
	detached  []Detached
	streams   map[*Stream]struct{} // whose handlers run
	parted    []*Stream            // whose handlers have let them go
	gate      chan struct{}        // closed when streams may be read
	expecting bool                 // more streams are to come before that
}

// listener is an accepting socket and its goroutine's gate.
type listener struct {
	net.Listener
	owner  string        // of its streams, "" for HTTP
	paused bool          // what is wanted
	parked bool          // what is: the goroutine does not accept
	resume chan struct{} // closed and replaced when paused ends
}

// setDeadline ends or allows a blocking Accept.
func (l *listener) setDeadline(t time.Time) {
	l.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(t)
}

// New returns a server for h that does not accept yet: see [Server.Release].
func New(h http.Handler, opts Options) *Server {
	s := &Server{
		opts:    opts,
		log:     opts.Log,
		queue:   make(chan net.Conn),
		closed:  make(chan struct{}),
		changed: make(chan struct{}, 1),
		conns:   map[*conn]struct{}{},
		streams: map[*Stream]struct{}{},
		gate:    make(chan struct{}),
	}
	s.holding.Store(true)
	s.http = &http.Server{
		Handler:                      s.track(h),
		ErrorLog:                     slog.NewLogLogger(opts.Log.Handler(), slog.LevelWarn),
		ConnState:                    connState,
		ConnContext:                  connContext,
		DisableGeneralOptionsHandler: true, // see track
	}
	s.tasks.Go(func() { s.http.Serve(s.newQueueListener(s.queue)) })
	s.fixed = newFixed(s, h, opts.TLS)
	return s
}

func connState(nc net.Conn, state http.ConnState) {
	switch c, ok := nc.(*conn); {
	case ok && state == http.StateIdle:
		c.idle()
	case ok && state == http.StateHijacked:
		c.hijack()
	}
}

type connKey struct{}

// connContext lets a conn cancel its requests, and a handler find its conn.
func connContext(ctx context.Context, nc net.Conn) context.Context {
	c, ok := nc.(*conn)
	if !ok {
		return ctx
	}
	ctx, c.cancel = context.WithCancelCause(ctx)
	return context.WithValue(ctx, connKey{}, c)
}

// Own says whose the connection of r is, should it be hijacked and move.
func Own(r *http.Request, owner string) {
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		c.own(owner)
	}
}

// queueListener hands accepted connections to an HTTP server.
type queueListener struct {
	queue  <-chan net.Conn
	ctx    context.Context // ends with Close, or with the server
	cancel context.CancelFunc
}

func (s *Server) newQueueListener(queue <-chan net.Conn) *queueListener {
	q := &queueListener{queue: queue}
	q.ctx, q.cancel = context.WithCancel(context.Background())
	s.tasks.Go(func() {
		select {
		case <-s.closed:
			q.cancel()
		case <-q.ctx.Done():
		}
	})
	return q
}

func (q *queueListener) Accept() (net.Conn, error) {
	select {
	case c := <-q.queue:
		return c, nil
	case <-q.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (q *queueListener) Close() error {
	q.cancel()
	return nil
}

func (q *queueListener) Addr() net.Addr { return &net.TCPAddr{} }

// Listen takes responsibility for ln, which must be a TCP or Unix listener.
// It is accepted on as soon as, and whenever, the server does not hold. Its
// connections are streams of owner, or HTTP's if that is "".
func (s *Server) Listen(owner string, ln net.Listener) {
	l := &listener{Listener: ln, owner: owner, resume: make(chan struct{})}
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
			if l.owner == "" && s.opts.TLS != nil {
				s.fixed.secure(c)
			} else {
				s.adopt(Detached{Conn: c, Owner: l.owner})
			}
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
		if s.isClosed() {
			return false
		}
	}
	l.parked = false
	return true
}

// adopt gives d to the HTTP server, or to its owner.
func (s *Server) adopt(d Detached) {
	if d.Owner == ForwardOwner {
		s.fixed.give(s.fixed.forwarded, d.Conn)
		return
	}
	sock, ok := d.Conn.(socket)
	if !ok {
		s.log.Error("cannot serve this kind of connection", "type", fmt.Sprintf("%T", d.Conn))
		d.Close()
		return
	}
	if d.Owner != "" {
		s.adoptStream(newStream(s, sock, d))
		return
	}
	wrapped := &conn{socket: sock, server: s, pending: d.Unread}
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
		s.detached = append(s.detached, Detached{Conn: c.socket, Unread: c.unread()})
	}
	s.notify()
	return true
}

// notify wakes the hold.
func (s *Server) notify() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *Server) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// track notes which requests are in flight.
func (s *Server) track(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := r.Context().Value(connKey{}).(*conn)
		if !c.begin(r) {
			panic(http.ErrAbortHandler) // closes the conn, which says nothing to a detached one
		}
		returned := false
		defer func() { s.end(c, returned) }()
		if c.wasCut() { // the context of all that comes on this conn
			ctx, cancel := c.renew(r.Context())
			defer cancel(nil)
			r = r.WithContext(ctx)
		}
		if r.RequestURI == "*" && r.Method == http.MethodOptions {
			w.Header().Set("Content-Length", "0")
		} else {
			h.ServeHTTP(w, r)
		}
		returned = true
	})
}

// end is called when the handler of a request has returned or panicked.
func (s *Server) end(c *conn, returned bool) {
	hijacked, st := c.end()
	if !hijacked {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	switch {
	case st == nil:
	case returned && !s.isClosed():
		s.start(st)
	default:
		st.abort()
	}
	s.notify()
}

// connections are those of HTTP that are not detached.
func (s *Server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.conns))
}

// Adopt serves connections that came from elsewhere. It takes responsibility
// for them.
func (s *Server) Adopt(conns []Detached) {
	for _, c := range conns {
		s.adopt(c)
	}
}

// Detached gives away the connections that the hold detached. Those that
// cannot go on elsewhere are closed, and counted.
func (s *Server) Detached() (conns []Detached, closed int) {
	s.mu.Lock()
	conns, parted := s.detached, s.parted
	s.detached, s.parted = nil, nil
	s.mu.Unlock()
	for _, st := range parted {
		d, err := st.take()
		if err != nil {
			s.log.Warn("a connection cannot move", "module", st.owner, "remote", st.RemoteAddr(), "err", err)
			closed++
			continue
		}
		conns = append(conns, d)
	}
	return conns, closed
}

// Close closes everything that is left and waits for the server's goroutines.
// Handlers that ignore their context are not waited for.
func (s *Server) Close() {
	s.mu.Lock()
	if s.isClosed() {
		s.mu.Unlock()
		return
	}
	close(s.closed)
	for _, l := range s.listeners {
		l.Close()
	}
	for _, c := range s.detached {
		c.Close()
	}
	for _, st := range s.parted {
		st.abort()
	}
	for st := range s.streams {
		st.abort()
	}
	s.detached, s.parted = nil, nil
	s.mu.Unlock()
	s.http.Close()
	s.fixed.close()
	s.tasks.Wait()
	ended := make(chan struct{})
	go func() {
		s.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(time.Second):
	}
}
