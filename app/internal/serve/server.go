// Package serve owns the sockets of a generation: its listeners, its
// connections and the HTTP server behind them.
//
// A [Server] can hold: [Server.Hold] stops accepting (the kernel queues), lets
// requests in flight finish, and detaches each connection once it waits for a
// new request that no handler has begun with. During a hold no handler runs, so
// modules can be replaced. The hold is a value, [Held], which ends in one of
// three ways: everything goes on here as before, here with other modules, or
// elsewhere.
//
// There are several kinds of connections, each in a file: HTTP/1.1 (http1.go),
// streams, which an owner handles (streams.go), and pinned connections, which
// cannot move (pinned.go). Each is a [group].
//
// One connection through one hold, in the middle of a request's head:
//
//  1. [Server.Hold] has each group pause (hold.go:wait). http1.pause interrupts
//     every conn (conn.interrupt).
//  2. The read that net/http waits for ends: conn.readHead marks the conn as
//     detached and returns errDetached. net/http gives up and closes the conn;
//     conn.Close leaves the socket open, and http1.forget keeps the conn.
//  3. When all groups are idle the hold has come about. With [Held.Release] or
//     [Held.Resume] http1.resume adopts the socket again, with the bytes of the
//     head. With [Held.HandOver] http1.detachAll returns it as a [Detached],
//     which another process passes to [Server.Adopt].
//
// A conn whose handler runs is left alone until the handler has returned: then
// its next readHead detaches it. A stream is told to move (Stream.move): its
// handler returns, and Stream.detach has what moves along. A pinned connection
// stays; its requests wait until the hold ends (pinnedConn).
//
// The package knows nothing of generations or modules: it has one handler.
//
// Locks, in the order in which they may be taken: Stream.reads, Stream.writes,
// the mutex of a group, Stream.mu or conn.mu, Server.mu. None is held while a
// handler runs, with two exceptions: a handler's own calls take those of its
// connection, and Stream.writes is held beside a new handler until what was
// queued is written.
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
	"syscall"
	"time"
)

// Kind is how a connection is served.
type Kind int

// The kinds that a connection can be adopted as.
const (
	KindHTTP    Kind = iota // HTTP/1.1
	KindStream              // an owner handles the bytes
	KindForward             // carries requests that another process forwards
)

// Detached is a connection that a hold has taken from the server, with what
// moves with it.
type Detached struct {
	net.Conn
	Kind   Kind
	Owner  string // owner of a stream
	Unread []byte // bytes the client has sent that have not been handled
	Unsent []byte // bytes the client has yet to receive; streams only
	Kept   []byte // bytes the owner has kept; streams only

	Left    time.Duration // of the time that the client has for its next request, 0 for all of it; HTTP only
	Lenient int           // bytes of empty lines that are skipped before the next request; HTTP only
}

// Options are what a server needs to know.
type Options struct {
	Log *slog.Logger

	// Stream handles a stream of an owner until it returns; its error says
	// whether the stream is to move. It may be called again with the same
	// stream.
	Stream func(ctx context.Context, owner string, st *Stream) error

	// TLS, if not nil, is used for HTTP on the listeners.
	TLS *tls.Config

	Moving    error // returned by reads of a stream that is about to move, and then by Stream
	Reloading error // cause of a request's context that a hold cancels

	Limits Limits

	// Owner names the owner of the code that handles a request: requests of
	// different owners are expected to take different times. It may be nil.
	Owner func(*http.Request) string
}

// Limits keep clients from using up the program. A zero limit is none.
type Limits struct {
	// Head is how long a client may take to send the head of a request, from its
	// first byte, and HeadBytes how long the head may be.
	Head      time.Duration
	HeadBytes int
	// Transfer is how long a read of a body or a write of an answer may be blocked
	// without a byte. After slowAfter it also has to make minRate on average.
	Transfer time.Duration
	// Idle is how long a connection may wait for a request.
	Idle time.Duration
	// Conns is how many connections there may be. Beyond it the one that has been
	// idle for longest is closed; if none is idle, nothing is accepted.
	Conns int
}

const (
	slowAfter = 10 * time.Second // blocked
	minRate   = 240              // bytes per second
)

func (o *Options) owner(r *http.Request) string {
	if o.Owner == nil {
		return ""
	}
	return o.Owner(r)
}

// group is one way in which connections are served. A hold treats all groups
// alike.
type group interface {
	// pause begins a hold: idle connections are detached, others as soon as
	// they are idle, and nothing new begins.
	pause()
	// pending returns what is in flight. During a hold it includes connections
	// that are being detached.
	pending() []pending
	// waiting counts the connections that wait for the end of the hold.
	waiting() int
	// resume ends the hold: detached connections are served again.
	resume()
	// detachAll returns the detached connections. Those that cannot go on elsewhere
	// are closed and counted.
	detachAll() (conns []Detached, closed int)
	// adopt serves a connection. It takes responsibility for it.
	adopt(Detached)
	// close closes all connections.
	close()
}

// Server accepts connections and serves HTTP on them.
type Server struct {
	opts      Options
	log       *slog.Logger
	http1     *http1
	streams   *streams
	pinned    *pinned
	durations *durations
	closed    chan struct{}
	cuts      cuts           // what holds have cancelled
	changed   chan struct{}  // has room for one; receives when something in flight has ended
	leftSome  atomic.Bool    // a hold has left a handler behind
	saidFull  atomic.Int64   // when that was told last, in seconds
	expected  atomic.Int64   // connections that are about to come from elsewhere
	evicted   atomic.Int64   // idle connections closed to make room
	came      chan struct{}  // has room for one; receives when a connection has come
	tasks     sync.WaitGroup // goroutines that end with the server
	handlers  sync.WaitGroup // goroutines that end when a handler does

	mu        sync.Mutex // guards the fields below
	listeners []*listener
	holding   bool
}

// rounds returns all groups, in the order in which a hold pauses them: a handler
// of a later round may be in the middle of a call to a handler of an earlier
// one.
func (s *Server) rounds() [][]group {
	return [][]group{{s.http1, s.pinned}, {s.streams}}
}

// listener is an accepting socket and its goroutine's state.
type listener struct {
	net.Listener
	kind    Kind
	owner   string        // owner of its streams
	paused  bool          // it should not accept
	stopped bool          // its goroutine does not accept
	resume  chan struct{} // closed and replaced when paused ends
}

// setDeadline interrupts Accept, or lets it block.
func (l *listener) setDeadline(t time.Time) {
	l.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(t)
}

// New returns a server for h that does not accept yet: it is held.
func New(h http.Handler, opts Options) (*Server, *Held) {
	s := &Server{
		opts:    opts,
		log:     opts.Log,
		closed:  make(chan struct{}),
		changed: make(chan struct{}, 1),
		holding: true,

		durations: newDurations(),
		came:      make(chan struct{}, 1),
	}
	s.streams = newStreams(s)
	s.http1 = newHTTP1(s, h)
	s.pinned = newPinned(s, h, opts.TLS)
	s.tasks.Go(s.sweep)
	return s, &Held{server: s}
}

// Listen accepts connections on ln whenever the server is not held. ln must be
// a TCP or Unix listener; the server takes responsibility for it. Its
// connections are streams of owner, or HTTP if owner is "".
func (s *Server) Listen(owner string, ln net.Listener) {
	l := &listener{Listener: ln, owner: owner, resume: make(chan struct{})}
	if owner != "" {
		l.kind = KindStream
	}
	s.mu.Lock()
	l.paused = s.holding
	s.listeners = append(s.listeners, l)
	s.mu.Unlock()
	s.tasks.Go(func() {
		s.accept(l)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.listeners = slices.DeleteFunc(s.listeners, func(other *listener) bool { return other == l })
		s.notify() // a hold does not wait for it
	})
}

const (
	// fullTime is how long to wait before the next look when there are as many
	// connections as may be and none is idle.
	fullTime = 10 * time.Millisecond

	// goneTime is how long a connection may take to go that was closed.
	goneTime = 200 * time.Microsecond

	// After an error accept waits for longer and longer.
	firstBackoff, lastBackoff = 5 * time.Millisecond, time.Second
)

// accept is the goroutine of one listener.
func (s *Server) accept(l *listener) {
	backoff := time.Duration(0)
	for s.mayAccept(l) {
		c, err := l.Accept()
		if err == nil && !s.awaitRoom(l) { // the kernel queues what comes after it
			c.Close()
			return
		}
		switch {
		case err == nil && l.kind == KindHTTP && s.opts.TLS != nil:
			s.pinned.secure(c)
			s.notifySweep()
		case err == nil:
			s.adopt(Detached{Conn: c, Kind: l.kind, Owner: l.owner})
		case errors.Is(err, os.ErrDeadlineExceeded): // paused
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, syscall.ECONNABORTED): // a client that has gone already
		case noDescriptors(err) && s.evict():
		default:
			if backoff == 0 {
				s.log.Warn("accept failed, trying again", "listen", l.Addr(), "err", err)
			}
			backoff = min(max(2*backoff, firstBackoff), lastBackoff)
			if !s.rest(l, backoff) {
				return
			}
			continue
		}
		backoff = 0
	}
}

// awaitRoom waits until there is room for one more connection, but not while l is
// paused. It closes the one that has been idle for longest. It reports false if the
// server is closed.
func (s *Server) awaitRoom(l *listener) bool {
	for s.isFull() {
		wait := goneTime
		if !s.evict() {
			s.sayFull(l)
			wait = fullTime
		}
		if s.isPaused(l) {
			return true
		}
		if !s.rest(l, wait) {
			return false
		}
	}
	return true
}

func (s *Server) isPaused(l *listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.paused
}

// sayFull tells, once in a while, that nothing is accepted.
func (s *Server) sayFull(l *listener) {
	now := time.Now().Unix()
	if last := s.saidFull.Load(); now-last >= 60 && s.saidFull.CompareAndSwap(last, now) {
		s.log.Warn("new connections wait: there are as many as may be, and none is idle", "listen", l.Addr(), "connections", s.opts.Limits.Conns)
	}
}

// noDescriptors reports whether err means that there are no more descriptors.
func noDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// rest waits for d, but not while l is paused. It reports false if the server is
// closed.
func (s *Server) rest(l *listener, d time.Duration) bool {
	over := time.After(d)
	for {
		if s.isPaused(l) {
			return true
		}
		select {
		case <-over:
			return true
		case <-s.closed:
			return false
		case <-time.After(min(d, fullTime)):
		}
	}
}

// mayAccept waits while l is paused. It reports false when the server is
// closed.
func (s *Server) mayAccept(l *listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l.paused {
		l.stopped = true
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
	l.stopped = false
	return true
}

// Adopt serves connections that came from elsewhere. It takes responsibility
// for them.
func (s *Server) Adopt(conns []Detached) {
	for _, c := range conns {
		s.adopt(c)
		if s.expected.Load() > 0 {
			s.expected.Add(-1)
		}
	}
}

// notifySweep tells the sweeper that there are clients.
func (s *Server) notifySweep() {
	select {
	case s.came <- struct{}{}:
	default:
	}
}

func (s *Server) adopt(d Detached) {
	defer s.notifySweep()
	switch d.Kind {
	case KindForward:
		s.pinned.adopt(d)
	case KindStream:
		s.streams.adopt(d)
	default:
		s.http1.adopt(d)
	}
}

// socketOf returns the socket of a connection that can move. Others are closed.
func (s *Server) socketOf(d Detached) (socket, bool) {
	sock, ok := d.Conn.(socket)
	if !ok {
		s.log.Error("cannot serve this kind of connection", "type", fmt.Sprintf("%T", d.Conn))
		d.Close()
	}
	return sock, ok
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

// cuts counts what holds have cancelled.
type cuts struct {
	mu     sync.Mutex // guards the fields below
	n      int
	routes map[string]int
}

// maxCutRoutes bounds how many routes of cancelled requests are named.
const maxCutRoutes = 10

func (c *cuts) add(route string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	if _, known := c.routes[route]; known || len(c.routes) < maxCutRoutes {
		if c.routes == nil {
			c.routes = map[string]int{}
		}
		c.routes[route]++
	}
}

// Cancelled returns how many requests and connections were cancelled by holds
// since the last call, and some of their routes.
func (s *Server) Cancelled() (n int, routes []string) {
	c := &s.cuts
	c.mu.Lock()
	defer c.mu.Unlock()
	n, routes = c.n, slices.Sorted(maps.Keys(c.routes))
	c.n, c.routes = 0, nil
	return n, routes
}

// Pinned returns the number of pinned connections.
func (s *Server) Pinned() int { return s.pinned.count() }

// closeTime is how long Close waits for handlers.
const closeTime = time.Second

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
	s.mu.Unlock()
	for _, round := range s.rounds() {
		for _, k := range round {
			k.close()
		}
	}
	s.tasks.Wait()
	if s.leftSome.Load() {
		return
	}
	ended := make(chan struct{})
	go func() { // ends with the last handler, which may be never
		s.handlers.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closeTime):
	}
}
