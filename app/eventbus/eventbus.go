package eventbus

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// Topic names a stream of events whose payload is a T. Topics are package
// variables made with [NewTopic]; topics that several modules share live in
// modules/topics.
type Topic[T any] struct{ name string }

// NewTopic returns the topic called name, such as module.reloaded. Two topics
// with the same name must carry the same type.
func NewTopic[T any](name string) Topic[T] { return Topic[T]{name} }

// Name returns the topic's name.
func (t Topic[T]) Name() string { return t.name }

// Event is one published event, for code that does not know its type.
type Event struct {
	Topic string
	Time  time.Time
	Data  any // the payload as published; must not be changed
}

// Options tune a [Root]. The zero value is useful.
type Options struct {
	Log  *slog.Logger  // where slow and panicking subscribers are reported; default slog.Default()
	Slow time.Duration // a subscriber that handles one event for longer is reported; default 1s
}

// Root is the bus of a process. Its clients are made with [Root.Client].
type Root struct {
	log  *slog.Logger
	slow time.Duration

	pending pending

	mu    sync.Mutex // guards the fields below; never held while a subscriber runs
	types map[string]reflect.Type
	subs  map[string][]*subscription
	taps  []func(Event)
}

// New returns an empty bus.
func New(o Options) *Root {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Slow == 0 {
		o.Slow = time.Second
	}
	return &Root{log: o.Log, slow: o.Slow, types: map[string]reflect.Type{}, subs: map[string][]*subscription{}}
}

// Tap calls f with each event that is published from now on, in order, while
// the publisher waits: f must not block and must not use the bus.
func (r *Root) Tap(f func(Event)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.taps = append(r.taps, f)
}

// Client returns a new client called name, usually a module's name.
func (r *Root) Client(name string) *Bus { return &Bus{root: r, name: name} }

// check records that topic name carries values of type t.
func (r *Root) check(name string, t reflect.Type) {
	if have, ok := r.types[name]; ok && have != t {
		panic(fmt.Sprintf("eventbus: topic %q carries %v and %v: give one of them another name", name, have, t))
	}
	r.types[name] = t
}

// Flush waits until every event that was published has been handled, those that
// subscribers publish meanwhile included. If ctx ends first, it returns how many
// have not.
func (r *Root) Flush(ctx context.Context) (left int) {
	return r.pending.wait(ctx)
}

// pending counts events that were published and not handled, once for each
// subscriber.
type pending struct {
	mu   sync.Mutex // guards the fields below
	n    int
	zero chan struct{} // closed when n becomes 0; nil if nobody waits
}

func (p *pending) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n += n; p.n == 0 && p.zero != nil {
		close(p.zero)
		p.zero = nil
	}
}

func (p *pending) wait(ctx context.Context) (left int) {
	p.mu.Lock()
	if p.n == 0 {
		p.mu.Unlock()
		return 0
	}
	if p.zero == nil {
		p.zero = make(chan struct{})
	}
	zero := p.zero
	p.mu.Unlock()
	select {
	case <-zero:
		return 0
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// Bus is a client of the process's bus: its subscriptions end with it.
type Bus struct {
	root *Root
	name string

	mu     sync.Mutex // guards the fields below
	subs   []*subscription
	closed bool
}

// Publish appends an event to the timeline. It never blocks. On a closed
// client it does nothing: the module has been shut down.
func Publish[T any](b *Bus, topic Topic[T], data T) {
	b.mu.Lock()
	defer b.mu.Unlock() // held throughout: nothing is published once Close has returned
	if b.closed {
		return
	}
	r := b.root
	r.mu.Lock()
	defer r.mu.Unlock()
	r.check(topic.name, reflect.TypeFor[T]())
	e := Event{Topic: topic.name, Time: time.Now(), Data: data}
	for _, s := range r.subs[topic.name] {
		s.push(e)
	}
	for _, tap := range r.taps {
		tap(e)
	}
}

// Subscribe calls f with each event of topic that is published from now on,
// one at a time and in order, on a goroutine of its own. ctx ends when the
// client is closed. On a closed client it does nothing.
func Subscribe[T any](b *Bus, topic Topic[T], f func(ctx context.Context, data T)) {
	_, file, line, _ := runtime.Caller(1)
	s := &subscription{
		root:  b.root,
		topic: topic.name,
		who:   b.name,
		where: fmt.Sprintf("%s:%d", file, line),
		call:  func(ctx context.Context, e Event) { f(ctx, e.Data.(T)) },
		wake:  make(chan struct{}, 1),
		done:  make(chan struct{}),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	b.root.mu.Lock()
	defer b.root.mu.Unlock()
	b.root.check(topic.name, reflect.TypeFor[T]())
	b.root.subs[topic.name] = append(b.root.subs[topic.name], s)
	b.subs = append(b.subs, s)
	go s.run(ctx)
}

// Close ends the client's subscriptions: no further call begins, queued events
// are dropped, and the contexts of running calls end. It does not wait;
// [Bus.Wait] does. Closing twice is fine.
func (b *Bus) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.closed = true
	for _, s := range b.subs {
		b.root.remove(s)
		s.cancel()
	}
}

// Wait returns once no subscriber of a closed client is running. If ctx ends
// first, the error names one that still is. It must not be called by a
// subscriber.
func (b *Bus) Wait(ctx context.Context) error {
	b.mu.Lock()
	subs := b.subs
	b.mu.Unlock()
	for _, s := range subs {
		select {
		case <-s.done:
		case <-ctx.Done():
			return fmt.Errorf("eventbus: the subscriber of %s at %s still runs: %w", s.topic, s.where, ctx.Err())
		}
	}
	return nil
}

func (r *Root) remove(s *subscription) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := make([]*subscription, 0, len(r.subs[s.topic]))
	for _, x := range r.subs[s.topic] {
		if x != s {
			kept = append(kept, x)
		}
	}
	r.subs[s.topic] = kept
}

// subscription is one Subscribe call: a queue and the goroutine that empties it.
type subscription struct {
	root              *Root
	topic, who, where string
	call              func(context.Context, Event)
	cancel            context.CancelFunc
	wake              chan struct{}
	done              chan struct{}

	mu    sync.Mutex // guards queue
	queue []Event
}

func (s *subscription) push(e Event) {
	s.root.pending.add(1)
	s.mu.Lock()
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscription) run(ctx context.Context) {
	defer close(s.done)
	defer s.drop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		s.mu.Lock()
		batch := s.queue
		s.queue = nil
		s.mu.Unlock()
		for i, e := range batch {
			if ctx.Err() != nil {
				s.root.pending.add(i - len(batch))
				return
			}
			s.handle(ctx, e)
			s.root.pending.add(-1)
		}
	}
}

// drop forgets what is queued: nothing is pushed any more.
func (s *subscription) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.root.pending.add(-len(s.queue))
	s.queue = nil
}

// handle calls the subscriber and reports it when it is slow or panics.
func (s *subscription) handle(ctx context.Context, e Event) {
	slow := time.AfterFunc(s.root.slow, func() {
		s.root.log.Warn("slow event subscriber", "module", s.who, "topic", s.topic, "subscribed", s.where, "running", s.root.slow, "queued", s.waiting())
	})
	defer slow.Stop()
	defer func() {
		if p := recover(); p != nil {
			s.root.log.Error("event subscriber panicked", "module", s.who, "topic", s.topic, "subscribed", s.where, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	s.call(ctx, e)
}

func (s *subscription) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue)
}
