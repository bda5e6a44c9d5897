package eventbustest_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/app/eventbus/eventbustest"
)

var (
	placed = eventbus.NewTopic[string]("orders.placed")
	cooked = eventbus.NewTopic[int]("kitchen.cooked")
)

func TestExpect(t *testing.T) {
	bus := eventbustest.New(t)
	kitchen := bus.Client("kitchen")
	eventbus.Subscribe(kitchen, placed, func(_ context.Context, what string) {
		eventbus.Publish(kitchen, cooked, len(what))
	})
	defer kitchen.Wait(t.Context())
	defer kitchen.Close()
	eventbustest.Publish(bus, placed, "tea")
	eventbustest.Publish(bus, placed, "coffee")
	if n := eventbustest.Expect(bus, cooked); n != 3 {
		t.Errorf("cooked %d, want 3", n)
	}
	if n := eventbustest.Expect(bus, cooked); n != 6 {
		t.Errorf("cooked %d, want 6", n)
	}
	left := bus.Left()
	if len(left) != 2 || left[0].Data != "tea" || left[1].Data != "coffee" || len(bus.Left()) != 0 {
		t.Errorf("left are %v", left)
	}
}

// TestExpect_nothing fails the test, after Patience.
func TestExpect_nothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failing := &reporter{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			eventbustest.Expect(eventbustest.New(failing), placed)
		}()
		<-done
		if !strings.Contains(failing.said, "no event of orders.placed came within 10s") {
			t.Errorf("it says %q", failing.said)
		}
	})
}

// reporter is a test that may fail.
type reporter struct {
	testing.TB
	said string
}

func (r *reporter) Fatalf(format string, args ...any) {
	r.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}
