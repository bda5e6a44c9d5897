package eventbus_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"example.org/orchestrator/app/eventbus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	numbers = eventbus.NewTopic[int]("test.numbers")
	words   = eventbus.NewTopic[string]("test.words")
)

// recorder collects what it is given, in order.
type recorder[T any] struct {
	mu  sync.Mutex
	got []T
}

func (r *recorder[T]) add(_ context.Context, v T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, v)
}

func (r *recorder[T]) all() []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func TestAllSubscribersSeeOneOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := eventbus.New(eventbus.Options{})
		var subscribers [4]recorder[int]
		client := root.Client("test")
		for i := range subscribers {
			eventbus.Subscribe(client, numbers, subscribers[i].add)
		}
		var publishers sync.WaitGroup
		for p := range 8 {
			publishers.Go(func() {
				bus := root.Client("publisher")
				for i := range 100 {
					eventbus.Publish(bus, numbers, p*1000+i)
				}
			})
		}
		publishers.Wait()
		synctest.Wait()
		want := subscribers[0].all()
		if len(want) != 800 {
			t.Fatalf("got %d events, want 800", len(want))
		}
		for i := range subscribers {
			if got := subscribers[i].all(); !slices.Equal(got, want) {
				t.Errorf("subscriber %d saw another order than subscriber 0", i)
			}
		}
		client.Close()
		if err := client.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestPublishInsideASubscriberNeitherBlocksNorReorders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := eventbus.New(eventbus.Options{})
		client := root.Client("test")
		var seen recorder[int]
		eventbus.Subscribe(client, numbers, func(ctx context.Context, n int) {
			seen.add(ctx, n)
			if n < 1000 {
				eventbus.Publish(client, numbers, n+1)
			}
		})
		eventbus.Publish(client, numbers, 0)
		synctest.Wait()
		got := seen.all()
		if len(got) != 1001 || !slices.IsSorted(got) {
			t.Errorf("got %d events, sorted: %v; want 0 to 1000 in order", len(got), slices.IsSorted(got))
		}
		client.Close()
	})
}

func TestAStuckSubscriberDelaysNobodyAndIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		root := eventbus.New(eventbus.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		stuck, quick := root.Client("stuck"), root.Client("quick")
		release := make(chan struct{})
		eventbus.Subscribe(stuck, numbers, func(context.Context, int) { <-release })
		var seen recorder[int]
		eventbus.Subscribe(quick, numbers, seen.add)
		for i := range 100 {
			eventbus.Publish(quick, numbers, i)
		}
		time.Sleep(2 * time.Second) // the bubble's clock: it passes once everybody is blocked
		synctest.Wait()
		if got := len(seen.all()); got != 100 {
			t.Errorf("the quick subscriber got %d of 100 events", got)
		}
		if !strings.Contains(log.String(), "module=stuck") || !strings.Contains(log.String(), "eventbus_test.go:") {
			t.Errorf("log = %q, want the stuck module and the line that subscribed", log.String())
		}
		stuck.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := stuck.Wait(ctx); err == nil || !strings.Contains(err.Error(), "eventbus_test.go:") {
			t.Errorf("Wait = %v, want the line of the subscriber that still runs", err)
		}
		close(release)
		quick.Close()
	})
}

func TestAPanickingSubscriberIsReportedAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		root := eventbus.New(eventbus.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		client := root.Client("shaky")
		var seen recorder[int]
		eventbus.Subscribe(client, numbers, func(ctx context.Context, n int) {
			if n == 1 {
				panic("one is too many")
			}
			seen.add(ctx, n)
		})
		for i := range 3 {
			eventbus.Publish(client, numbers, i)
		}
		synctest.Wait()
		if got := seen.all(); !slices.Equal(got, []int{0, 2}) {
			t.Errorf("after the panic got %v, want [0 2]", got)
		}
		for _, want := range []string{"module=shaky", "one is too many", "eventbus_test.go:"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("log = %q, want it to contain %q", log.String(), want)
			}
		}
		client.Close()
	})
}

func TestCloseEndsSubscriptionsAndPublishing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := eventbus.New(eventbus.Options{})
		old, other := root.Client("old"), root.Client("other")
		var seen, elsewhere recorder[string]
		eventbus.Subscribe(old, words, seen.add)
		eventbus.Subscribe(other, words, elsewhere.add)
		eventbus.Publish(other, words, "before")
		synctest.Wait()
		old.Close()
		old.Close()
		eventbus.Publish(other, words, "after")
		eventbus.Publish(old, words, "from a closed client")
		eventbus.Subscribe(old, words, seen.add)
		synctest.Wait()
		if got := seen.all(); !slices.Equal(got, []string{"before"}) {
			t.Errorf("the closed client got %q, want only what came before", got)
		}
		if got := elsewhere.all(); !slices.Equal(got, []string{"before", "after"}) {
			t.Errorf("the other client got %q, want before and after", got)
		}
		other.Close()
	})
}

func TestCloseEndsTheContextOfARunningSubscriber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := eventbus.New(eventbus.Options{}).Client("test")
		eventbus.Subscribe(client, numbers, func(ctx context.Context, _ int) { <-ctx.Done() })
		eventbus.Publish(client, numbers, 1)
		synctest.Wait()
		client.Close()
		if err := client.Wait(t.Context()); err != nil {
			t.Errorf("Wait = %v, want nil: the subscriber obeys its context", err)
		}
	})
}

func TestTapSeesEverythingInOrder(t *testing.T) {
	root := eventbus.New(eventbus.Options{})
	var got []string
	root.Tap(func(e eventbus.Event) { got = append(got, e.Topic) })
	client := root.Client("test")
	eventbus.Publish(client, words, "a")
	eventbus.Publish(client, numbers, 1)
	if want := []string{"test.words", "test.numbers"}; !slices.Equal(got, want) {
		t.Errorf("tap saw %q, want %q", got, want)
	}
}

func TestOneNameWithTwoTypesIsAWiringMistake(t *testing.T) {
	defer func() {
		if p := recover(); p == nil || !strings.Contains(p.(string), "test.numbers") {
			t.Errorf("recover() = %v, want a panic that names the topic", p)
		}
	}()
	client := eventbus.New(eventbus.Options{}).Client("test")
	eventbus.Publish(client, numbers, 1)
	eventbus.Publish(client, eventbus.NewTopic[string]("test.numbers"), "one")
}

func ExampleSubscribe() {
	greeted := eventbus.NewTopic[string]("example.greeted")
	bus := eventbus.New(eventbus.Options{}).Client("example")
	done := make(chan struct{})
	eventbus.Subscribe(bus, greeted, func(_ context.Context, name string) {
		fmt.Println("hello,", name)
		close(done)
	})
	eventbus.Publish(bus, greeted, "Gopher")
	<-done
	bus.Close()
	// Output: hello, Gopher
}

// TestFlush waits for what is queued, and for what subscribers publish meanwhile.
func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := eventbus.New(eventbus.Options{})
		bus := root.Client("m")
		defer func() {
			bus.Close()
			bus.Wait(t.Context())
		}()
		var handled atomic.Int64
		eventbus.Subscribe(bus, numbers, func(_ context.Context, n int) {
			time.Sleep(100 * time.Millisecond)
			handled.Add(1)
			if n > 0 {
				eventbus.Publish(bus, numbers, n-1)
			}
		})
		if left := root.Flush(t.Context()); left != 0 {
			t.Errorf("Flush of an idle bus = %d", left)
		}
		eventbus.Publish(bus, numbers, 3)
		eventbus.Publish(bus, numbers, 0)
		if left := root.Flush(t.Context()); left != 0 || handled.Load() != 5 {
			t.Errorf("Flush = %d, %d were handled; want all 5", left, handled.Load())
		}
		eventbus.Publish(bus, numbers, 0)
		eventbus.Publish(bus, numbers, 0)
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		if left := root.Flush(ctx); left != 1 {
			t.Errorf("Flush = %d, want 1 that is not handled in time", left)
		}
	})
}
