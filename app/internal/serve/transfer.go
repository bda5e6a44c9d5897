package serve

import (
	"sync"
	"time"
)

// transfer follows the reads of a request's body, or the writes of an answer:
// whether one is blocked, and whether bytes move meanwhile. Only the time in
// which a read or write is blocked counts.
type transfer struct {
	// probe returns a number that changes whenever the client has received
	// something; ok is false if that cannot be known. It may be nil.
	probe func() (n uint64, ok bool)

	mu      sync.Mutex // guards the fields below
	since   time.Time  // when the present call began; zero if there is none
	moved   time.Time  // when bytes were last seen to move in it
	probed  bool       // last is what probe returned in it
	last    uint64
	blind   bool          // probe does not know
	inCall  int64         // bytes seen to move in it
	blocked time.Duration // in earlier calls of this request
	bytes   int64         // moved in earlier calls of this request
}

// begin is called before a read or write that may block.
func (t *transfer) begin() {
	now := time.Now()
	t.mu.Lock()
	t.since, t.moved, t.probed, t.inCall = now, now, false, 0
	t.mu.Unlock()
}

// end is called after it, with the number of bytes moved.
func (t *transfer) end(n int) {
	t.mu.Lock()
	t.blocked += time.Since(t.since)
	t.since = time.Time{}
	t.bytes += max(int64(n), t.inCall)
	t.mu.Unlock()
}

// reset begins another request.
func (t *transfer) reset() {
	t.mu.Lock()
	t.blocked, t.bytes = 0, 0
	t.mu.Unlock()
}

// stalled reports whether a call has been blocked for patience without a byte.
func (t *transfer) stalled(now time.Time, patience time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since.IsZero() {
		return false
	}
	t.lookLocked(now)
	return now.Sub(t.moved) >= patience
}

// lookLocked notices bytes that have moved within the present call.
func (t *transfer) lookLocked(now time.Time) {
	if t.probe == nil {
		return
	}
	n, ok := t.probe()
	if t.blind = !ok; t.blind {
		return
	}
	if t.probed && n == t.last {
		return
	}
	t.moved = now // in the first look nobody knows when they last moved
	if t.probed {
		t.inCall += int64(n - t.last)
	}
	t.probed, t.last = true, n
}

// tooSlow reports whether the client moves so little that it is given up: nothing
// for limit, or less than minRate once it has been waited for long enough.
func (t *transfer) tooSlow(now time.Time, limit time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since.IsZero() {
		return false
	}
	t.lookLocked(now)
	if t.blind { // it may be receiving all the time
		return false
	}
	blocked := t.blocked + now.Sub(t.since)
	return now.Sub(t.moved) >= limit || blocked >= slowAfter && float64(t.bytes+t.inCall) < minRate*blocked.Seconds()
}
