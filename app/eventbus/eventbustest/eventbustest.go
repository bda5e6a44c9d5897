// Package eventbustest is for tests of modules that publish events or subscribe
// to them.
//
//	bus := eventbustest.New(t)
//	m.Initialize(ctx, bus.Client("orders"), cfg)
//	m.order("tea")
//	got := eventbustest.Expect(bus, orders.Placed)
package eventbustest

import (
	"log/slog"
	"sync"
	"testing"
	"time"

	"example.org/orchestrator/app/eventbus"
)

// Patience is how long [Expect] waits for an event.
const Patience = 10 * time.Second

// Bus is a bus that records every event.
type Bus struct {
	*eventbus.Root
	t testing.TB

	mu     sync.Mutex // guards the fields below
	events []eventbus.Event
	more   chan struct{} // closed and replaced with each event
}

// New returns an empty bus. A subscriber that panics or is slow is reported in
// the test's log.
func New(t testing.TB) *Bus {
	b := &Bus{t: t, more: make(chan struct{})}
	b.Root = eventbus.New(eventbus.Options{Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
	b.Tap(func(e eventbus.Event) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.events = append(b.events, e)
		close(b.more)
		b.more = make(chan struct{})
	})
	return b
}

// Publish appends an event to the timeline, as another module would.
func Publish[T any](b *Bus, topic eventbus.Topic[T], data T) {
	eventbus.Publish(b.Client("eventbustest"), topic, data)
}

// Expect returns the next event of a topic, and waits for it if necessary.
// Events of other topics are kept. If none comes within [Patience], it fails
// the test at once.
func Expect[T any](b *Bus, topic eventbus.Topic[T]) T {
	b.t.Helper()
	late := time.After(Patience)
	for {
		e, more, ok := b.take(topic.Name())
		if ok {
			return e.Data.(T)
		}
		select {
		case <-more:
		case <-late:
			b.t.Fatalf("no event of %s came within %v", topic.Name(), Patience)
		}
	}
}

// Left returns and discards the events that Expect has not returned.
func (b *Bus) Left() []eventbus.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	left := b.events
	b.events = nil
	return left
}

// take removes the first event of a topic.
func (b *Bus) take(topic string) (e eventbus.Event, more <-chan struct{}, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, e := range b.events {
		if e.Topic == topic {
			b.events = append(b.events[:i:i], b.events[i+1:]...)
			return e, nil, true
		}
	}
	return e, b.more, false
}

// testLog writes to a test's log.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", p)
	return len(p), nil
}
