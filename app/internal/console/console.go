// Package console writes lines for people without making the writer wait for
// them.
//
// A terminal after Ctrl-S, a dead ssh session and a blocked log driver accept
// nothing, perhaps for hours. A [Writer] gives each write a moment; after that
// the write is queued, and a goroutine passes it on. When the queue is full,
// writes are dropped and counted. While somebody reads, a line has been written
// when its Write returns, so that a crash does not swallow the last lines.
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
	dropped int           // writes dropped since the last one that found room
	empty   chan struct{} // closed when the queue has been written; nil if it is empty
}

// New returns a Writer to w. There must be one per destination.
func New(w io.Writer) *Writer { return &Writer{to: w} }

// Write passes on p, which should be whole lines.
func (c *Writer) Write(p []byte) (int, error) {
	if empty := c.push(p); empty != nil {
		select {
		case <-empty:
		case <-time.After(moment):
		}
	}
	return len(p), nil
}

// push queues p. If nothing was queued before, it returns a channel that is
// closed when p has been written, else nil.
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

// noticeLocked queues a notice of the writes that were dropped.
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
		c.to.Write(p) // an error means that the other end is closed: nobody is left to tell
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

// Flush waits at most limit until everything has been written, and reports
// whether it has.
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
