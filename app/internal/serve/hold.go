package serve

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// BusyError names what is still in flight when the context of a hold ends.
type BusyError struct{ Routes []string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("serve: still busy: %v", e.Routes)
}

// Hold stops accepting and waits until every connection that can move is detached
// or gone, and no request is in flight on a pinned one: HTTP connections first,
// streams last, because the handler of a stream may be in the middle of a call to
// an HTTP handler. If ctx ends first, everything goes on as
// before and the error is a [*BusyError].
//
// Event streams and hijacked connections that are not streams never end by
// themselves: once nothing else is in flight, their requests are cancelled.
//
// There is one hold at a time; a second one panics.
func (s *Server) Hold(ctx context.Context) (*Held, error) {
	held := s.beginHold()
	if err := s.wait(ctx); err != nil {
		held.Release()
		return nil, err
	}
	return held, nil
}

// ForceHold is a Hold that does not give up: after patience it cancels what is in
// flight, with Options.Reloading as the cause, and waits for at most last. The
// server is held in any case, and the caller has to end that, even if there is an
// error. A [*BusyError] names what is still in flight. If ctx ends first, the
// error comes at once, and nothing is cancelled that was not by then.
func (s *Server) ForceHold(ctx context.Context, patience, last time.Duration) (*Held, error) {
	held := s.beginHold()
	err := s.waitFor(ctx, patience)
	if err == nil || ctx.Err() != nil {
		return held, err
	}
	s.log.Warn("cancelling what is in flight", "routes", s.busy())
	for _, k := range slices.Concat(s.rounds()...) {
		k.cancel(true)
	}
	return held, s.waitFor(ctx, last)
}

func (s *Server) waitFor(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return s.wait(ctx)
}

func (s *Server) beginHold() *Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holding {
		panic("serve: Hold called during a hold")
	}
	s.holding = true
	for _, l := range s.listeners {
		l.paused = true
		l.setDeadline(time.Unix(1, 0))
	}
	return &Held{server: s}
}

// wait pauses one round after the other and waits until all are idle.
func (s *Server) wait(ctx context.Context) error {
	rounds := s.rounds()
	paused := 0
	for {
		idle, endless := s.stopped(), true
		for _, k := range slices.Concat(rounds[:paused]...) {
			i, e := k.idleness()
			idle, endless = idle && i, endless && (i || e)
		}
		switch {
		case paused == 0 || idle && paused < len(rounds): // later connections notice the hold themselves
			for _, k := range rounds[paused] {
				k.pause()
			}
			paused++
			continue
		case idle:
			return nil
		case endless && s.stopped():
			for _, k := range slices.Concat(rounds[:paused]...) {
				if idle, _ := k.idleness(); !idle {
					k.cancel(false)
				}
			}
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			return &BusyError{Routes: s.busy()}
		}
	}
}

// stopped reports whether nothing is accepted any more.
func (s *Server) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(s.listeners, func(l *listener) bool { return !l.stopped })
}

func (s *Server) busy() []string {
	routes := []string{}
	for _, k := range slices.Concat(s.rounds()...) {
		routes = append(routes, k.busy()...)
	}
	return routes
}

// Held is a server that serves nobody: connections that can move are detached,
// requests on pinned ones are queued, and new connections wait in the kernel.
// Exactly one of [Held.Release], [Held.Resume] and [Held.HandOver] ends it, unless
// the server is closed; a second one panics.
type Held struct {
	server *Server
	over   atomic.Bool
}

// end panics unless this is the first call.
func (h *Held) end() {
	if h.over.Swap(true) {
		panic("serve: a hold was ended twice")
	}
}

// Waiting counts the connections that wait for the end of the hold.
func (h *Held) Waiting() (n int) {
	for _, k := range slices.Concat(h.server.rounds()...) {
		n += k.waiting()
	}
	return n
}

// Release lets the server go on as before the hold.
func (h *Held) Release() {
	h.end()
	h.server.resume(nil)
}

// Resume lets the server go on after its handlers were replaced, perhaps with
// connections from elsewhere, which fill passes to adopt. No stream is read
// before fill has returned and every stream has a handler that reads, or
// openLimit is over: when a message from one client makes a handler write to the
// others, they are there to get it.
func (h *Held) Resume(fill func(adopt func([]Detached))) {
	h.end()
	h.server.resume(fill)
}

// HandOver returns all connections that can move. closed counts those that
// could not go on elsewhere and were closed. Pinned connections stay and wait;
// see [HandedOver.Forward].
func (h *Held) HandOver() (handed *HandedOver, conns []Detached, closed int) {
	h.end()
	for _, k := range slices.Concat(h.server.rounds()...) {
		more, n := k.detachAll()
		conns, closed = append(conns, more...), closed+n
	}
	return &HandedOver{server: h.server}, conns, closed
}

// resume ends the hold.
func (s *Server) resume(fill func(adopt func([]Detached))) {
	for _, round := range slices.Backward(s.rounds()) {
		for _, k := range round {
			k.resume()
		}
	}
	s.mu.Lock()
	s.holding = false
	for _, l := range s.listeners {
		if l.paused {
			l.paused = false
			l.setDeadline(time.Time{})
			close(l.resume)
			l.resume = make(chan struct{})
		}
	}
	s.mu.Unlock()
	if fill != nil {
		fill(s.Adopt)
	}
	s.streams.open()
}

// HandedOver is a server whose connections are elsewhere. It does not accept;
// requests on pinned connections are queued, or forwarded.
type HandedOver struct {
	server *Server
	over   atomic.Bool
}

// Forward passes all further requests on pinned connections to the handler. The
// connections in stay become pinned too; the server takes responsibility for
// them.
func (h *HandedOver) Forward(to http.Handler, stay []Detached) {
	h.server.pinned.forwardTo(to)
	for _, d := range stay {
		h.server.pinned.stay(d)
	}
}

// Stop ends the forwarding: new requests are queued again.
func (h *HandedOver) Stop() { h.server.pinned.pause() }

// Recall ends the forwarding and waits until what was forwarded is answered. It
// does not wait for requests that never end by themselves, nor longer than ctx.
func (h *HandedOver) Recall(ctx context.Context) {
	h.Stop()
	p := h.server.pinned
	for {
		if idle, endless := p.idleness(); idle || endless {
			return
		}
		select {
		case <-h.server.changed:
		case <-ctx.Done():
			return
		}
	}
}

// Resume lets the server accept and serve again; see [Held.Resume]. Nothing is
// forwarded any more. It ends the handover; a second call panics.
func (h *HandedOver) Resume(fill func(adopt func([]Detached))) {
	if h.over.Swap(true) {
		panic("serve: Resume called twice")
	}
	h.Stop()
	h.server.resume(fill)
}

// Drain waits until ctx ends for the clients of pinned connections to
// disconnect. It closes the connections that are left, as soon as requests in
// flight on them are answered, at the latest after drainGrace, and returns how
// many there were. HTTP/1.1 clients are
// asked to disconnect with each forwarded answer, HTTP/2 clients after notice.
func (h *HandedOver) Drain(ctx context.Context, notice time.Duration) (closed int) {
	return h.server.pinned.drain(ctx, notice)
}
