// Package console writes lines for people without making the writer wait for
// them.
//
// A terminal after Ctrl-S, a dead ssh session and a blocked log driver take
// nothing, for hours perhaps. A [Writer] gives each write a moment; what has not
// been taken by then is queued, and a goroutine passes it on. When the queue is
// full, writes are dropped, and counted. While somebody reads, a line is out
// when its write returns, so that a crash does not swallow the last ones.
package console

import (
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	// maxQueued bounds the bytes that wait for a reader.
	maxQueued = 1 << 20

	// moment is how long a write may wait for a reader, once: while others are
	// queued before it, it does not wait at all.
	moment = 20 * time.Millisecond
)

// Writer passes writes on to another writer, in order. It is safe for
// concurrent use, and Write never fails.
type Writer struct {
	to io.Writer

	mu      sync.Mutex // guards the fields below
	queue   [][]byte
	size    int
	dropped int           // writes since the last one that found room
	empty   chan struct{} // closed when the queue has been written; nil if it is empty
}

// New returns a Writer to w. There must be one per destination.
func New(w io.Writer) *Writer { return &Writer{to: w} }

// Write passes p on, which should be whole lines.
func (c *Writer) Write(p []byte) (int, error) {
	if empty := c.push(p); empty != nil {
		select {
		case <-empty:
		case <-time.After(moment):
		}
	}
	return len(p), nil
}

// push queues p. Its result is not nil if nothing was queued before: it is
// closed when p has been written.
func (c *Writer) push(p []byte) (empty <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.size > 0 && c.size+len(p) > maxQueued {
		c.dropped++
		return nil
	}
	c.noticeLocked()
	c.addLocked(append([]byte(nil), p...))
	if c.empty != nil {
		return nil
	}
	c.empty = make(chan struct{})
	go c.run() // it ends with the queue; Flush waits for it
	return c.empty
}

func (c *Writer) addLocked(p []byte) {
	c.queue = append(c.queue, p)
	c.size += len(p)
}

// noticeLocked says what is missing.
func (c *Writer) noticeLocked() {
	if c.dropped > 0 {
		c.addLocked(fmt.Appendf(nil, "(%d messages were dropped: nobody was reading)\n", c.dropped))
		c.dropped = 0
	}
}

// run writes until nothing is queued.
func (c *Writer) run() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 {
		p := c.queue[0]
		c.queue = c.queue[1:]
		c.mu.Unlock()
		c.to.Write(p) // whoever has closed the other end wants no error either
		c.mu.Lock()
		c.size -= len(p)
		if len(c.queue) == 0 {
			c.noticeLocked()
		}
	}
	c.queue = nil
	close(c.empty)
	c.empty = nil
}

// Flush waits until everything has been written, at most for limit. It reports
// whether that is so.
func (c *Writer) Flush(limit time.Duration) bool {
	c.mu.Lock()
	empty := c.empty
	c.mu.Unlock()
	if empty == nil {
		return true
	}
	select {
	case <-empty:
		return true
	case <-time.After(limit):
		return false
	}
}
