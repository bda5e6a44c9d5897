package serve

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// BusyError names what is still in flight when the time of a hold is over.
type BusyError struct{ InFlight []InFlight }

func (e *BusyError) Error() string {
	return fmt.Sprintf("serve: still in flight: %q", e.Routes())
}

// maxRoutesNamed bounds how many routes a message names.
const maxRoutesNamed = 10

// Routes names what is in flight, each route once, with its number if there are
// several.
func (e *BusyError) Routes() []string {
	count := map[string]int{}
	for _, is := range e.InFlight {
		count[is.Route]++
	}
	routes := []string{}
	for _, route := range slices.Sorted(maps.Keys(count)) {
		if len(routes) == maxRoutesNamed {
			return append(routes, fmt.Sprintf("and %d more", len(count)-maxRoutesNamed))
		}
		if n := count[route]; n > 1 {
			route = fmt.Sprintf("%s (%d times)", route, n)
		}
		routes = append(routes, route)
	}
	return routes
}

// Cut is what a hold may cut.
type Cut int

// What a hold may cut.
const (
	CutNothing Cut = iota
	CutStalled     // what waits for its client
	CutAll         // what is late or stalled, and when the time is over everything
	CutAtLast      // everything, but nothing before the time is over
)

// always reports whether such a hold comes about whatever is in flight.
func (c Cut) always() bool { return c == CutAll || c == CutAtLast }

// Terms are the terms of a hold.
type Terms struct {
	// Within is how long the hold waits for what is in flight.
	Within time.Duration
	// Patience is how long a request that nothing is known about is expected to
	// take, and after how long without a byte its client counts as stalled.
	Patience time.Duration
	Cut      Cut
}

// InFlight describes everything in flight that a hold would have to wait for.
func (s *Server) InFlight(patience time.Duration) []InFlight {
	now := time.Now()
	var list []InFlight
	for _, p := range s.pending(s.rounds()...) {
		list = append(list, p.inFlight(now, patience))
	}
	return list
}

// Changed returns a channel that receives when something in flight has ended.
// Nobody may receive from it during a hold.
func (s *Server) Changed() <-chan struct{} { return s.changed }

func (s *Server) pending(rounds ...[]group) (list []pending) {
	for _, k := range slices.Concat(rounds...) {
		list = append(list, k.pending()...)
	}
	return list
}

// Hold stops accepting and waits until every connection that can move is detached
// or gone, and nothing is in flight except what is Endless: HTTP connections
// first, streams last, because the handler of a stream may be in the middle of a
// call to an HTTP handler. If t.Within passes first, everything goes on as before
// and the error is a [*BusyError]; likewise if ctx ends, with its cause.
//
// With t.Cut the hold cuts what its client stalls, or everything; then it always
// comes about, unless ctx ends: what does not end even when it is cut is left
// behind, see [Held.Left]. [Held.EndEndless] must follow before the handlers are
// replaced.
//
// There is one hold at a time; a second one panics.
func (s *Server) Hold(ctx context.Context, t Terms) (*Held, error) {
	held := s.beginHold()
	c := cutter{server: s, terms: t, deadline: time.Now().Add(t.Within), cuts: map[pending]*cutting{}, left: &held.left}
	rounds := s.rounds()
	for i, round := range rounds {
		for _, k := range round { // later connections notice the hold themselves
			k.pause()
		}
		if err := s.await(ctx, &c, rounds[:i+1]); err != nil {
			held.Release()
			return nil, err
		}
	}
	return held, nil
}

// pollTime is how often a hold looks at what does not change by itself: a thing in
// flight becomes late or stalled while nothing happens.
const pollTime = 10 * time.Millisecond

// While more than crowd things are in flight, a hold looks no more often than every
// crowdTime.
const (
	crowd     = 64
	crowdTime = time.Millisecond
)

// await waits until nothing is in flight in rounds, which are paused, except what
// is endless.
func (s *Server) await(ctx context.Context, c *cutter, rounds [][]group) error {
	for {
		now := time.Now()
		busy := c.look(now, s.pending(rounds...))
		if len(busy) == 0 && s.stopped() {
			return nil
		}
		if !c.terms.Cut.always() && !now.Before(c.deadline) {
			return &BusyError{busy}
		}
		if len(busy) > crowd { // each look costs as much as there are
			time.Sleep(crowdTime)
		}
		select {
		case <-s.changed:
		case <-time.After(c.pause(now)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// moment is how long something that is being cut has to end before the next, less
// gentle step.
const moment = 250 * time.Millisecond

// cutter cuts what a hold may cut, step by step.
type cutter struct {
	server   *Server
	terms    Terms
	deadline time.Time
	endless  bool // what is endless ends too
	cuts     map[pending]*cutting
	left     *[]InFlight // what was left behind
}

// pause is how long to wait for a change before the next look.
func (c *cutter) pause(now time.Time) time.Duration {
	if left := c.deadline.Sub(now); left > 0 {
		return min(pollTime, left)
	}
	return pollTime
}

// cutting is how far the cutting of one thing has come.
type cutting struct {
	next   time.Time // when the next step is due
	status int       // of the answer, if there was none
	steps  int       // steps done
}

// look takes the steps that are due, and returns what is still waited for.
func (c *cutter) look(now time.Time, list []pending) (busy []InFlight) {
	for _, p := range list {
		is := p.inFlight(now, c.terms.Patience)
		if is.State == Endless && !c.endless {
			continue
		}
		cut := c.cuts[p]
		if cut == nil {
			if cut = c.begin(now, is); cut == nil {
				busy = append(busy, is)
				continue
			}
			c.cuts[p] = cut
		}
		if !c.advance(now, cut, p) {
			busy = append(busy, is)
			continue
		}
		*c.left = append(*c.left, is)
		c.server.leftSome.Store(true)
	}
	return busy
}

// begin decides whether something has to be cut; nil if not.
func (c *cutter) begin(now time.Time, is InFlight) *cutting {
	over := !now.Before(c.deadline)
	switch cut := c.terms.Cut; {
	case is.State == Stalled && (cut == CutStalled || cut == CutAll || cut == CutAtLast && over):
		return &cutting{next: now, status: http.StatusRequestTimeout, steps: 1} // no context ends its wait
	case cut == CutAll && is.State == Late || cut.always() && over:
		return &cutting{next: now, status: http.StatusServiceUnavailable}
	default:
		return nil
	}
}

// advance takes the step that is due. It reports whether that was the last one:
// then p was left behind.
func (c *cutter) advance(now time.Time, cut *cutting, p pending) (left bool) {
	if now.Before(cut.next) {
		return false
	}
	cut.next = now.Add(moment)
	if c.endless && cut.steps == 0 {
		cut.next = now.Add(endlessTime)
	}
	cut.steps++
	switch cut.steps {
	case 1:
		p.cancel()
	case 2:
		p.expire(cut.status)
	default:
		if !c.terms.Cut.always() {
			return false
		}
		p.leave()
		return true
	}
	return false
}

// endlessTime is how long an endless answer has to end by itself.
const endlessTime = 100 * time.Millisecond

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

// stopped reports whether nothing is accepted any more.
func (s *Server) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(s.listeners, func(l *listener) bool { return !l.stopped })
}

// Held is a server that serves nobody: connections that can move are detached,
// requests on pinned ones are queued, and new connections wait in the kernel.
// Exactly one of [Held.Release], [Held.Resume] and [Held.HandOver] ends it, unless
// the server is closed; a second one panics.
type Held struct {
	server *Server
	over   atomic.Bool
	left   []InFlight
}

// EndEndless ends what is endless: its context is cancelled, after a moment its
// connection fails, and after another it is left behind. Nothing else is in
// flight then.
func (h *Held) EndEndless() {
	c := cutter{server: h.server, terms: Terms{Cut: CutAll}, endless: true, cuts: map[pending]*cutting{}, left: &h.left}
	h.server.await(context.Background(), &c, h.server.rounds())
}

// Left returns what was left behind: handlers that run on although their
// requests were cut. Their connections are closed.
func (h *Held) Left() []InFlight { return h.left }

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
		waits := func(p pending) bool { return p.inFlight(time.Now(), 0).State != Endless }
		if !slices.ContainsFunc(p.pending(), waits) {
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
