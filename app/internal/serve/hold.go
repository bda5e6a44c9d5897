package serve

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// BusyError says what kept a hold from coming about.
type BusyError struct{ Routes []string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("serve: still busy: %v", e.Routes)
}

// Hold stops accepting and waits until every connection is detached or gone:
// first those of HTTP, then, because their owners may be in the middle of a
// call to one of those, the streams. When ctx ends first everything goes on as
// before, and the error is a [*BusyError].
//
// Event streams and hijacked connections that are not streams would keep it
// waiting for ever: once nothing else is in flight, their requests are
// cancelled.
//
// There is one hold at a time; another one panics.
func (s *Server) Hold(ctx context.Context) (*Held, error) {
	held := s.beginHold()
	if err := s.wait(ctx); err != nil {
		held.Release()
		return nil, err
	}
	return held, nil
}

// ForceHold is a Hold that always comes about: when ctx ends it cancels what is
// in flight, with the Reloading error as the cause, and waits for at most last.
// A [*BusyError] says what is in flight all the same.
func (s *Server) ForceHold(ctx context.Context, last time.Duration) (*Held, error) {
	held := s.beginHold()
	if s.wait(ctx) == nil {
		return held, nil
	}
	for _, k := range slices.Concat(s.rounds()...) {
		k.cancel()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), last)
	defer cancel()
	return held, s.wait(ctx)
}

func (s *Server) beginHold() *Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holding {
		panic("serve: a hold began while there was one")
	}
	s.holding = true
	for _, l := range s.listeners {
		l.paused = true
		l.setDeadline(time.Unix(1, 0))
	}
	return &Held{server: s}
}

// wait pauses one round after the other, and waits until all are idle.
func (s *Server) wait(ctx context.Context) error {
	rounds := s.rounds()
	paused := 0
	for {
		idle, endless := s.stopped(), true
		for _, k := range slices.Concat(rounds[:paused]...) {
			i, e := k.state()
			idle, endless = idle && i, endless && (i || e)
		}
		switch {
		case paused == 0 || idle && paused < len(rounds): // those that come later see for themselves
			for _, k := range rounds[paused] {
				k.pause()
			}
			paused++
			continue
		case idle:
			return nil
		case endless && s.stopped():
			for _, k := range slices.Concat(rounds[:paused]...) {
				if idle, _ := k.state(); !idle {
					k.cancel()
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

// Held is a server that serves nobody: every connection is detached, and new
// ones wait in the kernel. It ends with exactly one of [Held.Release],
// [Held.Resume] and [Held.HandOver], or with the server; a second one panics.
type Held struct {
	server *Server
	over   atomic.Bool
}

// end panics unless it is called for the first time.
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

// Release has the server go on as before the hold.
func (h *Held) Release() {
	h.end()
	h.server.resume(nil)
}

// Resume has the server go on after its handlers were replaced, perhaps with
// connections from elsewhere, which fill adopts. No stream is read before fill
// has returned and every stream has a handler that reads: whatever a client's
// message makes a handler tell the others, none of them misses it.
func (h *Held) Resume(fill func(adopt func([]Detached))) {
	h.end()
	h.server.resume(fill)
}

// HandOver gives all connections that can move away. closed counts those that
// could not go on elsewhere and were closed. What cannot move stays and waits,
// see [HandedOver.Forward].
func (h *Held) HandOver() (handed *HandedOver, conns []Detached, closed int) {
	h.end()
	for _, k := range slices.Concat(h.server.rounds()...) {
		more, n := k.give()
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

// HandedOver is a server whose connections are somewhere else. It does not
// accept; requests on connections that cannot move wait, or are forwarded.
type HandedOver struct {
	server *Server
	over   atomic.Bool
}

// Forward passes all further requests on connections that cannot move to the
// handler, those of stay included, which the server takes responsibility for.
func (h *HandedOver) Forward(to http.Handler, stay []Detached) {
	h.server.pinned.forwardTo(to)
	for _, d := range stay {
		h.server.pinned.stay(d)
	}
}

// Stop ends the forwarding: new requests wait again.
func (h *HandedOver) Stop() { h.server.pinned.pause() }

// Recall is a Stop that waits until what was forwarded is answered, unless that
// never ends by itself, or until ctx ends.
func (h *HandedOver) Recall(ctx context.Context) {
	h.Stop()
	p := h.server.pinned
	for {
		if idle, endless := p.state(); idle || endless {
			return
		}
		select {
		case <-h.server.changed:
		case <-ctx.Done():
			return
		}
	}
}

// Resume has the server accept and serve again: see [Held.Resume]. Nothing is
// forwarded any more. It ends the handover; a second one panics.
func (h *HandedOver) Resume(fill func(adopt func([]Detached))) {
	if h.over.Swap(true) {
		panic("serve: a handover was taken back twice")
	}
	h.Stop()
	h.server.resume(fill)
}

// Drain waits for the clients of connections that cannot move to go, until ctx
// ends, and returns how many had not: those are closed, once what is being
// answered on them is. Clients of HTTP/1.1 are told to go with each answer that
// is forwarded; those of HTTP/2 after notice.
func (h *HandedOver) Drain(ctx context.Context, notice time.Duration) (closed int) {
	return h.server.pinned.drain(ctx, notice)
}
