// Package console writes lines for people without ever making the writer wait.
//
// A terminal after Ctrl-S, a dead ssh session and a blocked log driver take
// nothing, for hours perhaps. A [Writer] queues what is written and has one
// goroutine pass it on; when the queue is full, lines are dropped, and counted.
package console

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// maxQueued bounds the bytes that wait for a reader.
const maxQueued = 1 << 20

// Writer passes writes on to another writer, in order. It is safe for
// concurrent use, and Write never blocks and never fails.
type Writer struct {
	to io.Writer

	mu      sync.Mutex // guards the fields below
	queue   [][]byte
	size    int
	dropped int  // writes since the last one that found room
	writing bool // the goroutine runs
	idle    *sync.Cond
}

// New returns a Writer to w. There must be one per destination.
func New(w io.Writer) *Writer {
	c := &Writer{to: w}
	c.idle = sync.NewCond(&c.mu)
	return c
}

// Write queues p, which should be whole lines.
func (c *Writer) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.size+len(p) > maxQueued {
		c.dropped++
		return len(p), nil
	}
	if c.dropped > 0 {
		c.push(fmt.Appendf(nil, "(%d lines were not printed: nobody took them)\n", c.dropped))
		c.dropped = 0
	}
	c.push(append([]byte(nil), p...))
	if !c.writing {
		c.writing = true
		go c.run() // it ends with the queue; Flush waits for it
	}
	return len(p), nil
}

func (c *Writer) push(p []byte) {
	c.queue = append(c.queue, p)
	c.size += len(p)
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
	}
	c.queue = nil
	c.writing = false
	c.idle.Broadcast()
}

// Flush waits until everything has been written, at most for limit. It reports
// whether that is so.
func (c *Writer) Flush(limit time.Duration) bool {
	late := false
	timer := time.AfterFunc(limit, func() {
		c.mu.Lock()
		late = true
		c.mu.Unlock()
		c.idle.Broadcast()
	})
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.writing && !late {
		c.idle.Wait()
	}
	return !c.writing
}
