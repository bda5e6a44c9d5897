package serve

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxParked is about how many requests wait in this process during a
	// hold. Beyond it nothing more is read at all: the kernel queues.
	maxParked = 1024

	handshakeTimeout = 10 * time.Second
)

// fixed is the connections that cannot move: those of TLS, with HTTP/1.1 or
// HTTP/2 in them, and those for which another process has no room. During a
// hold nothing more is read from those with no request in flight, and new
// requests on the others are parked. Afterwards they are served here again,
// or forwarded to whoever has taken over, until the clients are gone.
type fixed struct {
	server    *Server
	local     http.Handler
	tls       *tls.Config // nil without TLS
	h1        *http.Server
	h2        *http.Server
	forwarded *http.Server // serves what another process forwards
	queues    map[*http.Server]chan net.Conn
	holding   atomic.Bool // resume is not nil
	full      atomic.Bool // no more requests may be parked

	mu       sync.Mutex // guards the fields below
	conns    map[*fixedConn]struct{}
	requests map[*fixedRequest]struct{}
	parked   int
	resume   chan struct{} // not nil during a hold; closed at its end
	forward  http.Handler  // nil: requests are served here
	gone     chan struct{} // has room for one; receives when a connection has gone
}

type fixedRequest struct {
	route   string
	endless bool
	cancel  context.CancelCauseFunc
	conn    *fixedConn // nil if it was forwarded here
	fixed   *fixed

	cancelled bool
}

func newFixed(s *Server, h http.Handler, config *tls.Config) *fixed {
	f := &fixed{
		server:   s,
		local:    h,
		conns:    map[*fixedConn]struct{}{},
		requests: map[*fixedRequest]struct{}{},
		resume:   make(chan struct{}), // a server begins with a hold
		gone:     make(chan struct{}, 1),
		queues:   map[*http.Server]chan net.Conn{},
	}
	log := slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)
	f.holding.Store(true)
	f.h1 = &http.Server{Handler: f, ConnContext: f.connContext, ErrorLog: log, TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}}
	f.h2 = &http.Server{Handler: f, ConnContext: f.connContext, ErrorLog: log, TLSConfig: &tls.Config{NextProtos: []string{"h2"}}}
	f.forwarded = newForwarded(f, log)
	if config != nil {
		f.tls = config.Clone()
		f.tls.NextProtos = []string{"h2", "http/1.1"}
	}
	for _, srv := range []*http.Server{f.h1, f.h2, f.forwarded} {
		queue := make(chan net.Conn)
		f.queues[srv] = queue
		s.tasks.Go(func() { srv.Serve(s.newQueueListener(queue)) })
	}
	return f
}

// fixedConn is the socket below a fixed connection.
type fixedConn struct {
	net.Conn
	fixed  *fixed
	unread []byte
	closed chan struct{}
	once   sync.Once
	active atomic.Int64 // requests in flight

	upgraded atomic.Bool // hijacked: its handler waits for it, not for a context
}

func (f *fixed) add(nc net.Conn, unread []byte) *fixedConn {
	c := &fixedConn{Conn: nc, fixed: f, unread: unread, closed: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns[c] = struct{}{}
	return c
}

// give passes a connection to one of the servers.
func (f *fixed) give(srv *http.Server, c net.Conn) {
	select {
	case f.queues[srv] <- c:
	case <-f.server.closed:
		c.Close()
	}
}

// secure serves a connection that begins with a TLS handshake.
func (f *fixed) secure(nc net.Conn) {
	t := tls.Server(f.add(nc, nil), f.tls)
	f.server.running.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
		defer cancel()
		if err := t.HandshakeContext(ctx); err != nil {
			f.server.log.Debug("TLS handshake failed", "remote", nc.RemoteAddr(), "err", err)
			t.Close()
			return
		}
		srv := f.h1
		if t.ConnectionState().NegotiatedProtocol == "h2" {
			srv = f.h2
		}
		f.give(srv, t)
	})
}

// stay serves a connection of plain HTTP/1.1 that does not move.
func (f *fixed) stay(d Detached) { f.give(f.h1, f.add(d.Conn, d.Unread)) }

// Read implements net.Conn. During a hold it waits if no request is in flight
// here or too many are parked, also with what it has read meanwhile.
func (c *fixedConn) Read(p []byte) (int, error) {
	if err := c.await(); err != nil {
		return 0, err
	}
	if len(c.unread) > 0 {
		n := copy(p, c.unread)
		c.unread = c.unread[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.await() // or else it is closed, which shows in a moment
	}
	return n, err
}

func (c *fixedConn) await() error {
	for c.fixed.holding.Load() && (c.active.Load() == 0 || c.fixed.full.Load()) {
		c.fixed.mu.Lock()
		resume := c.fixed.resume
		c.fixed.mu.Unlock()
		if resume == nil {
			return nil
		}
		select {
		case <-resume:
		case <-c.closed:
			return net.ErrClosed
		}
	}
	return nil
}

// connContext lets a request find its connection.
func (f *fixed) connContext(ctx context.Context, nc net.Conn) context.Context {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, nc)
}

func (c *fixedConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		f := c.fixed
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.conns, c)
		select {
		case f.gone <- struct{}{}:
		default:
		}
	})
	return c.Conn.Close()
}

var errClientGone = errors.New("serve: the client went away while its request waited")

// ServeHTTP handles a request on a fixed connection, or one that was forwarded.
func (f *fixed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	req := &fixedRequest{fixed: f, route: r.Method + " " + r.URL.Path, cancel: cancel}
	req.conn, _ = r.Context().Value(connKey{}).(*fixedConn)
	h, err := f.enter(ctx, req)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer f.leave(req)
	h.ServeHTTP(&fixedWriter{ResponseWriter: w, req: req}, r.WithContext(ctx))
}

// fixedWriter notices answers that never end.
type fixedWriter struct {
	http.ResponseWriter
	req  *fixedRequest
	said bool
}

// Unwrap is for http.ResponseController.
func (w *fixedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *fixedWriter) look() {
	if !w.said {
		w.said = true
		if strings.HasPrefix(w.Header().Get("Content-Type"), string(eventStream)) {
			w.req.neverEnds()
		}
	}
}

func (w *fixedWriter) WriteHeader(status int) {
	if status >= http.StatusOK {
		w.look()
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *fixedWriter) Write(p []byte) (int, error) {
	w.look()
	return w.ResponseWriter.Write(p)
}

func (w *fixedWriter) Flush() {
	w.look()
	http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack takes a connection of HTTP/1.1 from the server. It cannot move.
func (w *fixedWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.req.neverEnds()
		if w.req.conn != nil {
			w.req.conn.upgraded.Store(true)
		}
	}
	return c, rw, err
}

// neverEnds marks a request that a hold need not wait for.
func (r *fixedRequest) neverEnds() {
	r.fixed.mu.Lock()
	defer r.fixed.mu.Unlock()
	r.endless = true
	r.fixed.server.notify()
}

// enter waits for the end of a hold and returns who handles the request.
func (f *fixed) enter(ctx context.Context, req *fixedRequest) (http.Handler, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.resume != nil {
		resume := f.resume
		f.parked++
		f.full.Store(f.parked >= maxParked)
		f.mu.Unlock()
		var err error
		select {
		case <-resume:
		case <-ctx.Done():
			err = errClientGone
		}
		f.mu.Lock()
		f.parked--
		f.full.Store(f.parked >= maxParked)
		if err != nil {
			return nil, err
		}
	}
	f.requests[req] = struct{}{}
	if req.conn != nil {
		req.conn.active.Add(1)
	}
	if f.forward != nil {
		return f.forward, nil
	}
	return f.local, nil
}

func (f *fixed) leave(req *fixedRequest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.requests, req)
	if req.conn != nil {
		req.conn.active.Add(-1)
	}
	f.server.notify()
}

// park begins a hold: new requests wait, and are to be served here afterwards.
func (f *fixed) park() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forward = nil
	if f.resume == nil {
		f.resume = make(chan struct{})
		f.holding.Store(true)
	}
}

// unpark ends a hold; requests are forwarded, if to is not nil.
func (f *fixed) unpark(to http.Handler) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forward = to
	if f.resume != nil {
		close(f.resume)
		f.resume = nil
		f.holding.Store(false)
	}
}

// held tells whether no request is handled, or none that ever ends.
func (f *fixed) held() (idle, endless bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for req := range f.requests {
		if !req.endless {
			return false, false
		}
	}
	return len(f.requests) == 0, true
}

func (f *fixed) busy() (routes []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for req := range f.requests {
		routes = append(routes, req.route)
	}
	return routes
}

func (f *fixed) cancelRequests() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for req := range f.requests {
		if !req.cancelled {
			req.cancelled = true
			req.cancel(f.server.opts.Reloading)
			if req.endless && req.conn != nil && req.conn.upgraded.Load() {
				req.conn.SetReadDeadline(time.Unix(1, 0))
			}
			f.server.cancelled.Add(1)
		}
	}
}

func (f *fixed) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.conns)
}

func (f *fixed) close() {
	for srv := range f.queues {
		srv.Close()
	}
	f.mu.Lock()
	conns := make([]*fixedConn, 0, len(f.conns))
	for c := range f.conns { // also those in a handshake
		conns = append(conns, c)
	}
	f.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// Fixed counts the connections that cannot move.
func (s *Server) Fixed() int { return s.fixed.count() }

// Stay serves connections of HTTP that cannot move for a reason of the caller's.
func (s *Server) Stay(conns []Detached) {
	for _, d := range conns {
		s.fixed.stay(d)
	}
}

// Park has new requests on connections that cannot move wait for the next
// [Server.Release] or [Server.Forward].
func (s *Server) Park() { s.fixed.park() }

// Unforward parks as [Server.Park] does, and waits until what was forwarded is
// answered, but for what never ends, or until ctx ends.
func (s *Server) Unforward(ctx context.Context) {
	s.fixed.park()
	for idle, endless := s.fixed.held(); !idle && !endless; idle, endless = s.fixed.held() {
		select {
		case <-s.changed:
		case <-ctx.Done():
			return
		}
	}
}

// Forward passes all further requests on connections that cannot move to h.
func (s *Server) Forward(h http.Handler) { s.fixed.unpark(h) }

// lastWords is how long requests that are being answered at the end of a
// drain have left.
const lastWords = time.Second

// Drain waits for the clients of connections that cannot move to go, until ctx
// ends, and returns how many had not: those are closed, once what is being
// answered on them is. Clients of HTTP/1.1 hear from whoever forwards their
// requests that they should go; those of HTTP/2 are told after notice.
func (s *Server) Drain(ctx context.Context, notice time.Duration) (cut int) {
	f := s.fixed
	last, cancel := context.WithCancel(context.Background())
	defer cancel()
	told := time.After(notice)
	for cut = f.count(); cut > 0; cut = f.count() {
		select {
		case <-f.gone:
			continue
		case <-told:
			s.running.Go(func() { f.h2.Shutdown(last) })
			continue
		case <-s.closed:
			return cut
		case <-ctx.Done():
		}
		time.AfterFunc(lastWords, cancel)
		var ends sync.WaitGroup
		for _, srv := range []*http.Server{f.h1, f.h2} {
			ends.Go(func() { srv.Shutdown(last) })
		}
		ends.Wait()
		return cut
	}
	return 0
}
