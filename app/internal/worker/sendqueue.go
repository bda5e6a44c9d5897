package worker

import (
	"sync"
	"time"

	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/wire"
)

// sendQueue sends messages to the supervisor from a goroutine of its own, so
// that publishing an event never waits for another process. When the
// supervisor is gone, messages are dropped.
type sendQueue struct {
	conn *wire.Conn
	wake chan struct{}

	mu    sync.Mutex // guards queue
	queue []control.Message
	empty *sync.Cond // signalled when the queue has been sent
	sent  bool       // nothing is queued or on its way
}

func newSendQueue(conn *wire.Conn) *sendQueue {
	q := &sendQueue{conn: conn, wake: make(chan struct{}, 1), sent: true}
	q.empty = sync.NewCond(&q.mu)
	go q.run() // never ends
	return q
}

func (q *sendQueue) push(m control.Message) {
	q.mu.Lock()
	q.queue, q.sent = append(q.queue, m), false
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// flush waits until everything has been sent, for at most limit.
func (q *sendQueue) flush(limit time.Duration) {
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

// run sends what is queued. It lasts as long as the process.
func (q *sendQueue) run() {
	for range q.wake {
		for {
			q.mu.Lock()
			batch := q.queue
			q.queue = nil
			if len(batch) == 0 {
				q.sent = true
				q.empty.Broadcast()
			}
			q.mu.Unlock()
			if len(batch) == 0 {
				break
			}
			for _, m := range batch {
				q.conn.Send(m)
			}
		}
	}
}
