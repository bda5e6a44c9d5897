package serve

import (
	"context"
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

// http1 keeps the HTTP/1.1 connections that can move; see conn.go for how one
// is detached.
type http1 struct {
	server  *Server
	http    *http.Server
	queue   chan net.Conn // accepted connections on their way to the HTTP server
	holding atomic.Bool   // the same as paused, for readers that need not be exact

	mu       sync.Mutex // guards the fields below
	paused   bool
	conns    map[*conn]struct{} // connections that are not detached
	detached []Detached
}

func newHTTP1(s *Server, h http.Handler) *http1 {
	k := &http1{server: s, queue: make(chan net.Conn), paused: true, conns: map[*conn]struct{}{}}
	k.holding.Store(true)
	k.http = &http.Server{
		MaxHeaderBytes:               s.opts.Limits.HeadBytes,
		Handler:                      k.track(h),
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ConnState:                    connState,
		ConnContext:                  connContext,
		DisableGeneralOptionsHandler: true, // see track
	}
	s.tasks.Go(func() { k.http.Serve(newQueueListener(k.queue, s.closed)) })
	return k
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
	ctx, c.stop = context.WithCancelCause(ctx)
	return context.WithValue(ctx, connKey{}, c)
}

// Own records the owner of r's connection, in case a handler hijacks it.
func Own(r *http.Request, owner string) {
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		c.setOwner(owner)
	}
}

// queueListener hands accepted connections to an HTTP server.
type queueListener struct {
	queue  <-chan net.Conn
	server <-chan struct{} // closed when the server is
	closed chan struct{}
	once   sync.Once
}

func newQueueListener(queue <-chan net.Conn, server <-chan struct{}) *queueListener {
	return &queueListener{queue: queue, server: server, closed: make(chan struct{})}
}

func (q *queueListener) Accept() (net.Conn, error) {
	select {
	case c := <-q.queue:
		return c, nil
	case <-q.server:
	case <-q.closed:
	}
	return nil, net.ErrClosed
}

func (q *queueListener) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

func (q *queueListener) Addr() net.Addr { return &net.TCPAddr{} }

// track follows the requests in flight.
func (k *http1) track(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := r.Context().Value(connKey{}).(*conn)
		f := c.begin(r)
		if f == nil {
			panic(http.ErrAbortHandler) // closes the conn; a detached one writes nothing
		}
		returned := false
		defer func() { k.end(c, returned) }()
		if c.wasCancelled() { // and with it the context of all later requests
			ctx, cancel := c.renew(r.Context(), f)
			defer cancel(nil)
			r = r.WithContext(ctx)
		}
		if r.RequestURI == "*" && r.Method == http.MethodOptions {
			w.Header().Set("Content-Length", "0")
		} else {
			a := &answer{ResponseWriter: w, flight: f}
			h.ServeHTTP(a, r)
			c.finish(f, a)
		}
		returned = true
	})
}

// end is called when the handler of a request has returned or panicked.
func (k *http1) end(c *conn, returned bool) {
	hijacked, st := c.end()
	if !hijacked {
		return
	}
	switch {
	case st == nil:
	case returned:
		k.server.streams.begin(st) // before it is forgotten here, or a hold could miss it
	default:
		st.abort()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, c)
	k.server.notify()
}

func (k *http1) newConn(sock socket, d Detached) *conn {
	c := &conn{socket: sock, group: k, buffered: d.Unread, between: true, lenient: d.Lenient, ended: time.Now()}
	c.buffered = c.skip(c.buffered)
	c.expect(d.Left)
	c.out.probe = func() (uint64, bool) { return received(sock) }
	return c
}

func (k *http1) adopt(d Detached) {
	sock, ok := k.server.socketOf(d)
	if !ok {
		return
	}
	c := k.newConn(sock, d)
	k.mu.Lock()
	k.conns[c] = struct{}{}
	k.mu.Unlock()
	k.serve(c)
}

// serve passes c, which is in k.conns, to the HTTP server.
func (k *http1) serve(c *conn) {
	select {
	case k.queue <- c:
	case <-k.server.closed:
		c.Close()
	}
}

// forget removes c, and keeps its socket if it was detached. It reports whether
// c was still there.
func (k *http1) forget(c *conn, detached bool) bool {
	k.mu.Lock()
	_, ok := k.conns[c]
	delete(k.conns, c)
	var late *conn
	switch {
	case !ok || !detached:
	case k.paused:
		k.detached = append(k.detached, c.detach())
	default: // the hold ended before the HTTP server had dropped c; a new one must see the socket
		late = k.newConn(c.socket, c.detach())
		k.conns[late] = struct{}{}
	}
	k.mu.Unlock()
	if ok {
		k.server.notify()
	}
	if late != nil {
		k.server.handlers.Go(func() { k.serve(late) })
	}
	return ok
}

func (k *http1) connections() []*conn {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Keys(k.conns))
}

func (k *http1) pause() {
	k.mu.Lock()
	k.paused = true
	k.holding.Store(true)
	k.mu.Unlock()
	for _, c := range k.connections() { // later connections notice the hold themselves
		c.interrupt()
	}
}

func (k *http1) pending() []pending {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := make([]pending, 0, len(k.conns))
	for c := range k.conns {
		if k.paused || !c.waitsForHead() {
			list = append(list, c)
		}
	}
	return list
}

func (k *http1) waiting() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.detached)
}

func (k *http1) resume() {
	k.mu.Lock()
	k.paused = false
	k.holding.Store(false)
	detached := k.detached
	k.detached = nil
	k.mu.Unlock()
	for _, d := range detached {
		k.adopt(d)
	}
}

func (k *http1) detachAll() (conns []Detached, closed int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	conns, k.detached = k.detached, nil
	return conns, 0
}

func (k *http1) close() {
	k.mu.Lock()
	for _, d := range k.detached {
		d.Close()
	}
	k.detached = nil
	k.mu.Unlock()
	if err := k.http.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		k.server.log.Debug("closing the HTTP server", "err", err)
	}
}

func (k *http1) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.conns) + len(k.detached)
}

func (k *http1) sweep(now time.Time) {
	for _, c := range k.connections() {
		c.overdue(now)
	}
}

func (k *http1) longestIdle() (since time.Time, evict func() bool) {
	for _, c := range k.connections() {
		if t, ok := c.idleSince(); ok && (evict == nil || t.Before(since)) {
			since, evict = t, c.evict
		}
	}
	return since, evict
}
