package worker

import (
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/wire"
	"example.org/orchestrator/modules/topics"
)

// publishes publishes another event when it is encoded.
type publishes struct{ again func() }

func (p publishes) MarshalJSON() ([]byte, error) {
	p.again()
	return []byte(`"published"`), nil
}

// TestEventsOfModulesDoNotStopTheProgram: they are encoded only if somebody
// follows them, and not while the bus is locked; large ones and those that find no
// room are not passed on, and that is said.
func TestEventsOfModulesDoNotStopTheProgram(t *testing.T) {
	near, far := net.Pipe()
	greeted := make(chan *wire.Conn, 1)
	go func() {
		c, _, err := wire.Accept(far)
		if err != nil {
			t.Error(err)
		}
		greeted <- c
	}()
	link, err := wire.Greet(near, wire.Hello{Role: wire.RoleWorker})
	if err != nil {
		t.Fatal(err)
	}
	supervisor := <-greeted
	defer supervisor.Close()
	defer link.Close()
	root := eventbus.New(eventbus.Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	bus := root.Client("m")
	out := wire.NewQueue(link)
	defer out.Close()
	told := newTelling(1, out)
	defer close(told.events)
	root.Tap(told.event)
	text, nested := eventbus.NewTopic[string]("m.text"), eventbus.NewTopic[publishes]("m.nested")
	hear := func() *control.Message {
		var m control.Message
		if err := supervisor.Receive(&m); err != nil || m.Event == nil {
			t.Fatalf("heard %+v, %v", m, err)
		}
		return &m
	}

	eventbus.Publish(bus, text, "nobody follows")
	eventbus.Publish(bus, topics.ModuleReloaded, topics.Module{Name: "m"})
	if m := hear(); m.Event.Topic != "module.reloaded" {
		t.Errorf("heard of %s, which nobody follows", m.Event.Topic)
	}
	told.follow(true)
	eventbus.Publish(bus, nested, publishes{func() { eventbus.Publish(bus, text, "nested") }})
	if a, b := hear(), hear(); string(a.Event.Data) != `"published"` || string(b.Event.Data) != `"nested"` {
		t.Errorf("heard %s and %s", a.Event.Data, b.Event.Data)
	}
	eventbus.Publish(bus, text, strings.Repeat("x", 1<<20))
	if m := hear(); len(m.Event.Data) > 200 || !strings.Contains(string(m.Event.Data), "bytes") {
		t.Errorf("heard %.100s of a large event", m.Event.Data)
	}
	for range 10 * maxTold { // nobody reads
		eventbus.Publish(bus, text, "x")
	}
	for end := time.Now().Add(10 * time.Second); ; {
		eventbus.Publish(bus, text, "x")
		if m := hear(); m.Event.Topic == topicDropped {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing says that events were dropped")
		}
	}
}
