package serve

import (
	"errors"
	"time"
)

// errSlowClient is the cause of a request's context whose client moves too little.
var errSlowClient = errors.New("serve: the client is too slow")

// sweepTime is how often the clients are looked at, as long as there are any: a
// fraction of the shortest limit.
func (l *Limits) sweepTime() time.Duration {
	shortest := 8 * time.Second
	for _, d := range []time.Duration{l.Head, l.Transfer, l.Idle} {
		if d > 0 {
			shortest = min(shortest, d)
		}
	}
	return max(shortest/8, 5*time.Millisecond)
}

// sweep disconnects clients that take too long. It is the goroutine of the server
// for that; between looks at no client it sleeps until one comes.
func (s *Server) sweep() {
	for {
		select {
		case <-s.came:
		case <-s.closed:
			return
		}
		for s.connections() > 0 {
			select {
			case <-time.After(s.opts.Limits.sweepTime()):
			case <-s.closed:
				return
			}
			if s.isHolding() { // clocks stand still
				continue
			}
			now := time.Now()
			s.http1.sweep(now)
			s.pinned.sweep(now)
		}
	}
}

// connections counts all connections, and those that are about to come from
// elsewhere.
func (s *Server) connections() int {
	return s.http1.count() + s.pinned.count() + s.streams.count() + int(s.expected.Load())
}

// Expecting keeps room for n connections that [Server.Adopt] will bring, so that
// none that is accepted meanwhile takes it.
func (s *Server) Expecting(n int) { s.expected.Store(int64(n)) }

func (s *Server) isHolding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holding
}

// isFull reports whether there are as many connections as may be.
func (s *Server) isFull() bool {
	limit := s.opts.Limits.Conns
	return limit > 0 && s.connections() >= limit
}

// evict closes the connection that has been idle for longest. It reports false if
// none is idle.
func (s *Server) evict() bool {
	for range 3 { // one that was idle may just have become busy
		since, evict := s.http1.longestIdle()
		pinnedSince, evictPinned := s.pinned.longestIdle()
		if evict == nil || evictPinned != nil && pinnedSince.Before(since) {
			evict = evictPinned
		}
		if evict == nil {
			return false
		}
		if evict() {
			s.evicted.Add(1)
			return true
		}
	}
	return false
}

// Evicted returns how many idle connections were closed to make room for others,
// since the last call.
func (s *Server) Evicted() int { return int(s.evicted.Swap(0)) }
