package worker

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/wire"
	"example.org/orchestrator/modules/topics"
)

// telling tells the supervisor of events: of the framework's own always, of those
// of modules only while somebody follows them. Whoever publishes never waits for
// that: an event that finds no room is dropped and counted.
type telling struct {
	generation int
	out        *wire.Queue
	events     chan eventbus.Event
	all        atomic.Bool // somebody follows the events of modules
	dropped    atomic.Int64
}

const (
	// maxTold is how many events may wait to be encoded, and as many to be sent.
	maxTold = 1024

	// maxData is how many bytes of an event are passed on.
	maxData = 16 << 10

	topicDropped = "app.events_dropped"
)

// bySupervisor are the topics that the supervisor itself publishes to its
// clients. This process publishes them to the modules only; byWorker are the
// framework's other topics.
var (
	bySupervisor = []string{topics.ModuleReloadFailed.Name(), topics.ModuleRolledBack.Name(), topics.AppReloadFailed.Name()}
	byWorker     = []string{topics.ModuleReloaded.Name(), topics.AppReloaded.Name()}
)

func newTelling(generation int, out *wire.Queue) *telling {
	t := &telling{generation: generation, out: out, events: make(chan eventbus.Event, maxTold)}
	go t.run() // never ends
	return t
}

// follow says whether somebody follows the events of modules.
func (t *telling) follow(all bool) { t.all.Store(all) }

// event is called for each event, with the bus locked.
func (t *telling) event(e eventbus.Event) {
	if slices.Contains(bySupervisor, e.Topic) || !t.all.Load() && !slices.Contains(byWorker, e.Topic) {
		return
	}
	select {
	case t.events <- e:
	default:
		t.dropped.Add(1)
	}
}

// run encodes and sends.
func (t *telling) run() {
	for e := range t.events {
		if t.out.Len() > maxTold {
			t.dropped.Add(1)
			continue
		}
		if n := t.dropped.Swap(0); n > 0 {
			t.send(e, topicDropped, fmt.Appendf(nil, `{"dropped":%d}`, n))
		}
		t.send(e, e.Topic, encodeEvent(e))
	}
}

func (t *telling) send(e eventbus.Event, topic string, data json.RawMessage) {
	t.out.Push(control.Message{Type: control.TypeEvent, Event: &client.Event{Time: e.Time, Generation: t.generation, Topic: topic, Data: data}})
}

// encodeEvent encodes what an event carries, which is a module's.
func encodeEvent(e eventbus.Event) json.RawMessage {
	var data []byte
	err := contract.Protect("MarshalJSON", func() (err error) {
		data, err = json.Marshal(e.Data)
		return err
	})
	if err == nil && len(data) > maxData {
		err = fmt.Errorf("it has %d bytes, of which at most %d are passed on", len(data), maxData)
	}
	if err != nil {
		data, _ = json.Marshal(map[string]string{"error": err.Error()})
	}
	return data
}
