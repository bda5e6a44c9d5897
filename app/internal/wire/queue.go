package wire

import (
	"sync"
	"time"
)

// Queue sends messages from a goroutine of its own, in order, so that whoever
// pushes never waits for another process. A process that does not read, because it
// is stopped, gets everything when it goes on. When it is gone, messages are
// dropped.
type Queue struct {
	conn *Conn
	wake chan struct{}
	end  chan struct{}

	mu    sync.Mutex // guards the fields below
	queue []any
	sent  bool       // nothing is queued or on its way
	ended bool       // end is closed
	empty *sync.Cond // signalled when sent has become true
}

// NewQueue returns a queue that sends on conn. Its goroutine ends with
// [Queue.Close].
func NewQueue(conn *Conn) *Queue {
	q := &Queue{conn: conn, wake: make(chan struct{}, 1), end: make(chan struct{}), sent: true}
	q.empty = sync.NewCond(&q.mu)
	go q.run()
	return q
}

// Push queues a message.
func (q *Queue) Push(message any) {
	q.mu.Lock()
	q.queue, q.sent = append(q.queue, message), false
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Len returns how many messages wait.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.queue)
}

// Close ends the queue; what has not been sent is dropped. The connection should be
// closed too, or a message may still be on its way.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.ended {
		q.ended = true
		close(q.end)
	}
}

// Flush waits until everything has been sent, for at most limit.
func (q *Queue) Flush(limit time.Duration) {
	late := false
	timer := time.AfterFunc(limit, func() {
		q.mu.Lock()
		late = true
		q.mu.Unlock()
		q.empty.Broadcast()
	})
	defer timer.Stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.sent && !late {
		q.empty.Wait()
	}
}

// take returns everything that is queued; nil if nothing is.
func (q *Queue) take() []any {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch := q.queue
	q.queue = nil
	if len(batch) == 0 {
		q.sent = true
		q.empty.Broadcast()
	}
	return batch
}

func (q *Queue) run() {
	for {
		select {
		case <-q.wake:
		case <-q.end:
			return
		}
		for batch := q.take(); len(batch) > 0; batch = q.take() {
			for _, m := range batch {
				q.conn.sendPatiently(m)
			}
		}
	}
}
