package serve

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"
)

// State says what can be expected of something in flight.
type State int

// The states of something in flight. A hold is begun only when nothing is Late
// or Stalled, and what is Endless ends last.
const (
	Ending  State = iota // expected to end soon
	Late                 // it takes longer than anything of its route lately
	Stalled              // its handler waits for its client
	Endless              // it never ends by itself
)

func (s State) String() string {
	return [...]string{"ending", "late", "stalled", "endless"}[s]
}

// InFlight is something in flight as it was at one moment.
type InFlight struct {
	Route string // for people, such as "GET /kv/x"; already cut to a sane length, not quoted
	Owner string // owner of the code that handles it, "" if no handler runs
	State State
	Age   time.Duration
	Left  time.Duration // how much longer it is expected to take, if it is Ending
}

// pending is something in flight that a hold can cut.
type pending interface {
	// inFlight describes it. patience is how long something that nothing is known
	// about is expected to take, and after how long without a byte its client
	// counts as stalled.
	inFlight(now time.Time, patience time.Duration) InFlight
	// cancel asks it to end: the context of its handler is cancelled.
	cancel()
	// expire makes it end if it waits for its client: what it reads or writes
	// fails. A request that has got no answer yet is answered with status.
	expire(status int)
	// leave lets it run on: the hold no longer waits for it, and its
	// connection is closed.
	leave()
}

// flight is a request that is being handled.
type flight struct {
	server *Server
	route  string
	class  string // whose durations say how long it may take
	owner  string
	began  time.Time
	link   flightLink
	stop   context.CancelCauseFunc
	in     *transfer // reads of its body
	out    *transfer // writes of its answer

	mu          sync.Mutex // guards the fields below
	endless     bool
	eventStream bool // its answer is an event stream, which may end at any place
	finished    bool // its handler says that the answer is complete
	wrote       bool // its handler has begun an answer
	cut         int  // status of the answer if a hold has cancelled it before its handler had begun one
	cancelled   bool // a hold has cancelled it
	wroteBefore bool // its handler had begun an answer before it was cancelled
	wroteAfter  bool // its handler has written after it was cancelled
}

// flightLink is the connection under a flight. Once f has ended, its methods do
// nothing.
type flightLink interface {
	// cancelContext cancels the context of the handler.
	cancelContext(f *flight, cause error)
	// fail ends what the handler reads and writes. status is for a client that
	// has got no answer.
	fail(f *flight, status int)
	// drop ends the connection, and nothing waits for the handler any more.
	drop(f *flight)
}

func (f *flight) inFlight(now time.Time, patience time.Duration) InFlight {
	f.mu.Lock()
	endless := f.endless
	f.mu.Unlock()
	age := now.Sub(f.began)
	is := InFlight{Route: f.route, Owner: f.owner, Age: age, State: Endless}
	if endless {
		return is
	}
	if f.in.stalled(now, patience) || f.out.stalled(now, patience) {
		is.State = Stalled
		return is
	}
	is.State, is.Left = Ending, max(f.server.durations.slowest(f.class, f.route), patience)-age
	if is.Left < 0 {
		is.State, is.Left = Late, 0
	}
	return is
}

func (f *flight) cancel() {
	f.mu.Lock()
	first := !f.cancelled
	if first {
		f.cancelled, f.wroteBefore = true, f.wrote
	}
	f.mu.Unlock()
	if first {
		f.server.cuts.add(f.route)
		f.link.cancelContext(f, f.server.opts.Reloading)
	}
}

func (f *flight) expire(status int) {
	f.cancel()
	f.mu.Lock()
	f.cut = status
	f.mu.Unlock()
	f.link.fail(f, status)
}

func (f *flight) leave() { f.link.drop(f) }

// timeOut is called when the client moves too little.
func (f *flight) timeOut() {
	f.mu.Lock()
	f.cut = http.StatusRequestTimeout
	f.mu.Unlock()
	f.stop(errSlowClient)
	f.link.fail(f, http.StatusRequestTimeout)
}

func (f *flight) isEndless() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.endless
}

// neverEnds marks a request that a hold does not wait for.
func (f *flight) neverEnds(eventStream bool) {
	f.mu.Lock()
	f.endless, f.eventStream = true, f.eventStream || eventStream
	f.mu.Unlock()
	f.server.notify()
}

// mark records that the handler writes. With a hold's cancellation it decides
// how the answer ends.
func (f *flight) mark() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wrote = true
	f.wroteAfter = f.wroteAfter || f.cancelled
}

// fate is what becomes of an answer whose handler has returned.
type fate int

const (
	fateStands   fate = iota
	fateNone          // the handler has written nothing because it was cancelled
	fateReplaced      // the same, but what it had begun before must not go out
	fateBroken        // the client has part of it, and must be able to tell
)

// end is called when the handler has returned. sent says that the client may
// have got some of the answer.
func (f *flight) end(sent bool) fate {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.cancelled {
		if f.cut != 0 && !f.wrote {
			return fateNone
		}
		if !f.endless && f.cut == 0 {
			f.server.durations.add(f.class, f.route, time.Since(f.began))
		}
		return fateStands
	}
	switch {
	case !f.wrote:
		return fateNone
	case !f.wroteBefore || f.finished || f.eventStream:
		return fateStands
	case sent:
		return fateBroken
	case f.wroteAfter:
		return fateStands // the cancellation is not what ended it
	default:
		return fateReplaced
	}
}

// status returns the status for an answer that a hold has prevented.
func (f *flight) status() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cut != 0 {
		return f.cut
	}
	return http.StatusServiceUnavailable
}

// maxRoute bounds the length of a route in messages: clients choose it.
const maxRoute = 100

// routeOf returns what a request is called in messages.
func routeOf(r *http.Request) string {
	route := r.Method + " " + r.URL.Path
	if len(route) > maxRoute {
		route = route[:maxRoute] + "…"
	}
	return route
}

// newFlight describes a request that a handler is about to get.
func (s *Server) newFlight(r *http.Request, link flightLink, stop context.CancelCauseFunc, in, out *transfer) *flight {
	f := &flight{server: s, route: routeOf(r), began: time.Now(), link: link, stop: stop, in: in, out: out}
	f.owner = s.opts.owner(r)
	f.class = r.Method + " " + f.owner
	return f
}

// durations remembers how long requests took: of each class, and of each route
// that was seen lately.
type durations struct {
	mu      sync.Mutex // guards the fields below
	classes map[string]*recent
	routes  map[string]*recent
	known   [maxRoutes]string // the keys of routes, the oldest at next
	next    int
}

// recent is the durations of the last requests of one kind.
type recent struct {
	last []time.Duration
	next int
}

const (
	// maxRecent is how many requests of a kind are remembered, and maxRoutes of
	// how many routes. Requests of other routes are expected to take as long as
	// the slowest of their class.
	maxRecent = 64
	maxRoutes = 512
)

func (r *recent) add(d time.Duration) {
	if len(r.last) < maxRecent {
		r.last = append(r.last, d)
		return
	}
	r.last[r.next] = d
	r.next = (r.next + 1) % maxRecent
}

// Expectations returns how long requests are expected to take, as far as that is
// more than patience, for [Server.Expect] of the server that takes over.
func (s *Server) Expectations(patience time.Duration) map[string]time.Duration {
	d := s.durations
	d.mu.Lock()
	defer d.mu.Unlock()
	slow := map[string]time.Duration{}
	for _, kinds := range []map[string]*recent{d.classes, d.routes} {
		for name, r := range kinds {
			if longest := slices.Max(r.last); longest > patience {
				slow[name] = longest
			}
		}
	}
	return slow
}

// Expect makes the server expect what another one has learnt.
func (s *Server) Expect(slow map[string]time.Duration) {
	for name, took := range slow {
		s.durations.add(name, name, took)
	}
}

func newDurations() *durations {
	return &durations{classes: map[string]*recent{}, routes: map[string]*recent{}}
}

func (d *durations) add(class, route string, took time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.classes[class]
	if c == nil && len(d.classes) < maxRoutes { // clients choose the method, and so part of the class
		c = &recent{}
		d.classes[class] = c
	}
	if c != nil {
		c.add(took)
	}
	r := d.routes[route]
	if r == nil {
		delete(d.routes, d.known[d.next])
		d.known[d.next] = route
		d.next = (d.next + 1) % maxRoutes
		r = &recent{}
		d.routes[route] = r
	}
	r.add(took)
}

// slowest returns the longest of the last requests of a route, or of the class
// if the route is not known; 0 if neither is.
func (d *durations) slowest(class, route string) (longest time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.routes[route]
	if r == nil {
		r = d.classes[class]
	}
	if r != nil {
		longest = slices.Max(r.last)
	}
	return longest
}
