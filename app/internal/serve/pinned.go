package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxQueued bounds the requests that are queued in this process during a
	// hold. Beyond it nothing more is read at all: the kernel queues.
	maxQueued = 1024

	handshakeTimeout = 10 * time.Second
)

// pinned keeps the connections that cannot move: those with TLS, carrying
// HTTP/1.1 or HTTP/2, and those that another process has no room for. During a
// hold nothing is read from connections with no request in flight, and new
// requests on the others are queued. Afterwards requests are served here again,
// or forwarded to the process that has taken over, until the clients are gone.
type pinned struct {
	server    *Server
	local     http.Handler
	tls       *tls.Config // nil without TLS
	h1        *http.Server
	h2        *http.Server
	forwarded *http.Server // serves what another process forwards
	queues    map[*http.Server]chan net.Conn
	holding   atomic.Bool // released is not nil
	full      atomic.Bool // no more requests may be queued

	mu       sync.Mutex // guards the fields below
	conns    map[*pinnedConn]struct{}
	requests map[*pinnedRequest]struct{}
	queued   int
	released chan struct{} // not nil during a hold; closed at its end
	forward  http.Handler  // nil: requests are served here
	gone     chan struct{} // has room for one; receives when a connection has gone
}

// pinnedRequest is a request on a pinned connection, or one that was forwarded.
type pinnedRequest struct {
	*flight
	group   *pinned
	conn    *pinnedConn // nil if another process forwarded the request
	writer  http.ResponseWriter
	major   int
	in, out transfer
}

func newPinned(s *Server, h http.Handler, config *tls.Config) *pinned {
	k := &pinned{
		server:   s,
		local:    h,
		conns:    map[*pinnedConn]struct{}{},
		requests: map[*pinnedRequest]struct{}{},
		released: make(chan struct{}), // a new server is held
		gone:     make(chan struct{}, 1),
		queues:   map[*http.Server]chan net.Conn{},
	}
	log := slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)
	k.holding.Store(true)
	limits := s.opts.Limits
	k.h1 = &http.Server{
		Handler: k, ConnContext: k.connContext, ConnState: k.connState, ErrorLog: log,
		ReadHeaderTimeout: limits.Head, IdleTimeout: limits.Idle, MaxHeaderBytes: limits.HeadBytes,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	k.h2 = &http.Server{
		Handler: k, ConnContext: k.connContext, ConnState: k.connState, ErrorLog: log,
		IdleTimeout: limits.Idle, MaxHeaderBytes: limits.HeadBytes,
		TLSConfig: &tls.Config{NextProtos: []string{"h2"}},
	}
	k.forwarded = newForwarded(k, log)
	if config != nil {
		k.tls = config.Clone()
		k.tls.NextProtos = []string{"h2", "http/1.1"}
	}
	for _, srv := range []*http.Server{k.h1, k.h2, k.forwarded} {
		queue := make(chan net.Conn)
		k.queues[srv] = queue
		s.tasks.Go(func() { srv.Serve(newQueueListener(queue, s.closed)) })
	}
	return k
}

// pinnedConn is the socket under a pinned connection.
type pinnedConn struct {
	net.Conn
	group  *pinned
	unread []byte
	closed chan struct{}
	once   sync.Once
	active atomic.Int64 // requests in flight

	idle     atomic.Int64 // since when it has no request, in nanoseconds; 0 if it has
	deadline atomic.Int64 // of reads, in nanoseconds; 0 for none
	upgraded atomic.Bool  // hijacked: its handler waits for the connection, not for a context
}

func (k *pinned) add(nc net.Conn, unread []byte) *pinnedConn {
	c := &pinnedConn{Conn: nc, group: k, unread: unread, closed: make(chan struct{})}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conns[c] = struct{}{}
	return c
}

// pass gives a connection to one of the servers.
func (k *pinned) pass(srv *http.Server, c net.Conn) {
	select {
	case k.queues[srv] <- c:
	case <-k.server.closed:
		c.Close()
	}
}

// secure serves a connection that begins with a TLS handshake.
func (k *pinned) secure(nc net.Conn) {
	t := tls.Server(k.add(nc, nil), k.tls)
	k.server.handlers.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
		defer cancel()
		if err := t.HandshakeContext(ctx); err != nil {
			k.server.log.Debug("TLS handshake failed", "remote", nc.RemoteAddr(), "err", err)
			t.Close()
			return
		}
		srv := k.h1
		if t.ConnectionState().NegotiatedProtocol == "h2" {
			srv = k.h2
		}
		k.pass(srv, t)
	})
}

// stay serves a plain HTTP/1.1 connection that does not move.
func (k *pinned) stay(d Detached) { k.pass(k.h1, k.add(d.Conn, d.Unread)) }

// Read implements net.Conn. During a hold it waits if no request is in flight
// on the connection or too many are queued, even if it has already read
// something.
func (c *pinnedConn) Read(p []byte) (int, error) {
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
		c.await() // an error means that it is closed, which the next read reports
	}
	return n, err
}

func (c *pinnedConn) await() error {
	for c.group.holding.Load() && (c.active.Load() == 0 || c.group.full.Load()) {
		c.group.mu.Lock()
		released := c.group.released
		c.group.mu.Unlock()
		if released == nil {
			return nil
		}
		began := time.Now()
		select {
		case <-released:
			c.postpone(time.Since(began))
		case <-c.closed:
			return net.ErrClosed
		}
	}
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *pinnedConn) SetReadDeadline(t time.Time) error {
	at := int64(0)
	if !t.IsZero() {
		at = t.UnixNano()
	}
	c.deadline.Store(at)
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline implements net.Conn.
func (c *pinnedConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.Conn.SetWriteDeadline(t))
}

// postpone moves the deadline of reads by the time of a hold.
func (c *pinnedConn) postpone(held time.Duration) {
	if at := c.deadline.Load(); at > int64(time.Hour) { // one in 1970 ends a read on purpose
		c.SetReadDeadline(time.Unix(0, at).Add(held))
	}
}

// connState knows which connections are idle.
func (k *pinned) connState(nc net.Conn, state http.ConnState) {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	c, ok := nc.(*pinnedConn)
	if !ok {
		return
	}
	idle := int64(0)
	if state == http.StateIdle {
		idle = time.Now().UnixNano()
	}
	c.idle.Store(idle)
}

func (k *pinned) longestIdle() (since time.Time, evict func() bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.conns {
		at := c.idle.Load()
		if t := time.Unix(0, at); at != 0 && (evict == nil || t.Before(since)) {
			since, evict = t, func() bool { return c.idle.CompareAndSwap(at, 0) && c.Close() == nil }
		}
	}
	return since, evict
}

func (k *pinned) sweep(now time.Time) {
	limit := k.server.opts.Limits.Transfer
	if limit == 0 {
		return
	}
	k.mu.Lock()
	requests := slices.Collect(maps.Keys(k.requests))
	k.mu.Unlock()
	for _, req := range requests {
		if !req.isEndless() && (req.in.tooSlow(now, limit) || req.out.tooSlow(now, limit)) {
			req.timeOut()
		}
	}
}

// connContext lets a request find its connection.
func (k *pinned) connContext(ctx context.Context, nc net.Conn) context.Context {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, nc)
}

func (c *pinnedConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		k := c.group
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.conns, c)
		select {
		case k.gone <- struct{}{}:
		default:
		}
	})
	return c.Conn.Close()
}

var errClientGone = errors.New("serve: the client went away while its request waited")

// ServeHTTP handles a request on a pinned connection, or one that was forwarded.
func (k *pinned) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	req := &pinnedRequest{group: k, writer: w, major: r.ProtoMajor}
	if req.conn, _ = r.Context().Value(connKey{}).(*pinnedConn); req.conn != nil && req.major < 2 {
		req.out.probe = func() (uint64, bool) { return received(req.conn.Conn) }
	}
	h, err := k.enter(ctx, req, func() {
		req.flight = k.server.newFlight(r, req, cancel, &req.in, &req.out)
	})
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer k.leave(req)
	r = r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &body{r.Body, &req.in}
	}
	a := &answer{ResponseWriter: w, flight: req.flight, hijacked: req.hijacked, out: &req.out}
	h.ServeHTTP(a, r)
	switch req.end(true) {
	case fateNone:
		a.refuse(req.status())
	case fateReplaced, fateBroken:
		panic(http.ErrAbortHandler)
	case fateStands:
	}
}

// hijacked is called when a handler takes an HTTP/1.1 connection from the
// server. It cannot move.
func (r *pinnedRequest) hijacked() {
	r.neverEnds(true)
	if r.conn != nil {
		r.conn.upgraded.Store(true)
	}
}

// cancelContext implements flightLink. It also wakes the handler of an upgraded
// connection, which waits for the connection and not for a context.
func (r *pinnedRequest) cancelContext(f *flight, cause error) {
	f.stop(cause)
	if r.conn != nil && r.conn.upgraded.Load() {
		r.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// fail implements flightLink. Its status is written when the handler returns.
func (r *pinnedRequest) fail(f *flight, _ int) {
	if r.conn != nil && r.conn.upgraded.Load() {
		r.conn.SetDeadline(time.Unix(1, 0))
		return
	}
	past := time.Unix(1, 0)
	rc := http.NewResponseController(r.writer)
	rc.SetReadDeadline(past)
	f.mu.Lock()
	wrote := f.wrote
	f.mu.Unlock()
	if wrote {
		rc.SetWriteDeadline(past)
	}
}

// drop implements flightLink. A connection of HTTP/2 has other requests.
func (r *pinnedRequest) drop(*flight) {
	r.group.leave(r)
	if r.conn != nil && r.major < 2 {
		r.conn.Close()
	}
}

// enter queues a request until the hold ends, and returns its handler. It calls
// begin when the request begins.
func (k *pinned) enter(ctx context.Context, req *pinnedRequest, begin func()) (http.Handler, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for k.released != nil {
		released := k.released
		k.queued++
		k.full.Store(k.queued >= maxQueued)
		k.mu.Unlock()
		var err error
		select {
		case <-released:
		case <-ctx.Done():
			err = errClientGone
		}
		k.mu.Lock()
		k.queued--
		k.full.Store(k.queued >= maxQueued)
		if err != nil {
			return nil, err
		}
	}
	begin()
	k.requests[req] = struct{}{}
	if req.conn != nil {
		req.conn.active.Add(1)
	}
	if k.forward != nil {
		return k.forward, nil
	}
	return k.local, nil
}

func (k *pinned) leave(req *pinnedRequest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.requests[req]; !ok {
		return // it was left behind
	}
	delete(k.requests, req)
	if req.conn != nil {
		req.conn.active.Add(-1)
	}
	k.server.notify()
}

// pause begins a hold: new requests are queued, and are served here afterwards
// unless forwardTo is called.
func (k *pinned) pause() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forward = nil
	if k.released == nil {
		k.released = make(chan struct{})
		k.holding.Store(true)
	}
}

// resume ends a hold: requests are served here.
func (k *pinned) resume() { k.forwardTo(nil) }

// forwardTo ends a hold: requests are forwarded, or served here if to is nil.
func (k *pinned) forwardTo(to http.Handler) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forward = to
	if k.released != nil {
		close(k.released)
		k.released = nil
		k.holding.Store(false)
	}
}

func (k *pinned) pending() []pending {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := make([]pending, 0, len(k.requests))
	for req := range k.requests {
		list = append(list, req)
	}
	return list
}

// adopt serves the requests that another process forwards.
func (k *pinned) adopt(d Detached) { k.pass(k.forwarded, d.Conn) }

// waiting returns 0: pinned connections do not move.
func (k *pinned) waiting() int { return 0 }

func (k *pinned) detachAll() (conns []Detached, closed int) { return nil, 0 }

func (k *pinned) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.conns)
}

func (k *pinned) close() {
	for srv := range k.queues {
		srv.Close()
	}
	k.mu.Lock()
	conns := make([]*pinnedConn, 0, len(k.conns))
	for c := range k.conns { // including those in a TLS handshake
		conns = append(conns, c)
	}
	k.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// drainGrace is how long requests in flight at the end of a drain may still
// take.
const drainGrace = time.Second

// drain implements [HandedOver.Drain].
func (k *pinned) drain(ctx context.Context, notice time.Duration) (closed int) {
	last, cancel := context.WithCancel(context.Background())
	defer cancel()
	told := time.After(notice)
	for closed = k.count(); closed > 0; closed = k.count() {
		select {
		case <-k.gone:
			continue
		case <-told:
			k.server.handlers.Go(func() { k.h2.Shutdown(last) })
			continue
		case <-k.server.closed:
			return closed
		case <-ctx.Done():
		}
		time.AfterFunc(drainGrace, cancel)
		var ends sync.WaitGroup
		for _, srv := range []*http.Server{k.h1, k.h2} {
			ends.Go(func() { srv.Shutdown(last) })
		}
		ends.Wait()
		return closed
	}
	return 0
}
