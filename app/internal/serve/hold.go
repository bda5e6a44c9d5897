package serve

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// BusyError tells what kept a hold from completing.
type BusyError struct{ Routes []string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("serve: still busy: %v", e.Routes)
}

// Hold stops accepting and waits until every connection is detached or gone:
// first those of HTTP, then, because their owners may be in the middle of a
// call to one of those, the streams. When ctx ends first it returns a
// [*BusyError]; the caller then either cancels the rest with [Server.Cut] and
// holds again, or releases. Nothing is lost in either case.
//
// Event streams and hijacked connections that are not streams would keep it
// for ever: once nothing else is in flight, their requests are cancelled.
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
	s.fixed.park()
	for _, c := range s.connections() { // those that come later see for themselves
		c.interrupt()
	}
	for moving := false; ; {
		idle, endless := s.held()
		if idle && !moving {
			moving = true
			s.moveStreams()
		}
		if idle && s.streamsHeld() {
			return nil
		}
		if endless {
			for _, c := range s.connections() {
				c.cancelRequest()
			}
			s.fixed.cancelRequests()
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			return &BusyError{Routes: s.Busy()}
		}
	}
}

// held tells whether no request is in flight, or none that ever ends.
func (s *Server) held() (idle, endless bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		if !l.parked {
			return false, false
		}
	}
	for c := range s.conns {
		if _, endless := c.busy(); !endless {
			return false, false
		}
	}
	idle, endless = s.fixed.held()
	if len(s.conns) > 0 {
		idle = false
	}
	return idle, endless && !idle
}

// Busy names the requests in flight, and how many connections are in the
// middle of sending one, or handled by their owners.
func (s *Server) Busy() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	routes := []string{}
	others := 0
	for c := range s.conns {
		if route, _ := c.busy(); route != "" {
			routes = append(routes, route)
		} else {
			others++
		}
	}
	routes = append(routes, s.fixed.busy()...)
	slices.Sort(routes)
	if others > 0 {
		routes = append(routes, fmt.Sprintf("%d connection(s) in the middle of sending a request", others))
	}
	streams := map[string]int{}
	for st := range s.streams {
		streams[st.owner]++
	}
	for _, owner := range slices.Sorted(maps.Keys(streams)) {
		routes = append(routes, fmt.Sprintf("%d connection(s) of module %s", streams[owner], owner))
	}
	return routes
}

// Cut cancels the requests in flight with the Reloading error as the cause, and
// waits for nothing more from clients that are slow to send the rest of one.
func (s *Server) Cut() {
	for _, c := range s.connections() {
		if !c.cancelRequest() {
			c.stopReading()
		}
	}
	s.fixed.cancelRequests()
}

// Cancelled counts what was cancelled since the last call.
func (s *Server) Cancelled() int { return int(s.cancelled.Swap(0)) }

// Waiting counts the connections that a hold has detached.
func (s *Server) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.detached) + len(s.parted)
}

// Release ends a hold, or the time before the first one: the detached
// connections are served again and accepting goes on.
func (s *Server) Release() {
	s.mu.Lock()
	s.holding.Store(false)
	detached := s.detached
	s.detached = nil
	for _, st := range s.parted {
		s.resume(st)
	}
	s.parted = nil
	for _, l := range s.listeners {
		if l.paused {
			l.paused = false
			l.setDeadline(time.Time{})
			close(l.resume)
			l.resume = make(chan struct{})
		}
	}
	expecting := s.expecting
	s.mu.Unlock()
	s.fixed.unpark(nil)
	s.Adopt(detached)
	if !expecting {
		s.Open()
	}
}
