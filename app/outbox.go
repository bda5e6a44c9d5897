package app

import (
	"sync"
	"time"

	"orchestrator/app/control"
)

// outbox sends messages to the supervisor from a goroutine of its own, so
// that publishing an event never waits for another process. When the
// supervisor is gone, messages are dropped.
type outbox struct {
	conn *control.Conn
	wake chan struct{}

	mu    sync.Mutex // guards queue
	queue []control.Message
	empty *sync.Cond // signalled when the queue has been sent
	sent  bool       // nothing is queued or on its way
}

func newOutbox(conn *control.Conn) *outbox {
	o := &outbox{conn: conn, wake: make(chan struct{}, 1), sent: true}
	o.empty = sync.NewCond(&o.mu)
	go o.run()
	return o
}

func (o *outbox) push(m control.Message) {
	o.mu.Lock()
	o.queue, o.sent = append(o.queue, m), false
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// flush waits until everything has been sent, at most for limit.
func (o *outbox) flush(limit time.Duration) {
	late := false
	timer := time.AfterFunc(limit, func() {
		o.mu.Lock()
		late = true
		o.mu.Unlock()
		o.empty.Broadcast()
	})
	defer timer.Stop()
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.sent && !late {
		o.empty.Wait()
	}
}

// run lasts as long as the process.
func (o *outbox) run() {
	for range o.wake {
		for {
			o.mu.Lock()
			batch := o.queue
			o.queue = nil
			if len(batch) == 0 {
				o.sent = true
				o.empty.Broadcast()
			}
			o.mu.Unlock()
			if len(batch) == 0 {
				break
			}
			for _, m := range batch {
				o.conn.Send(m)
			}
		}
	}
}
