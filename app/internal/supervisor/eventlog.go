//go:build unix

package supervisor

import (
	"maps"
	"slices"

	"example.org/orchestrator/app/client"
)

// maxEvents is how many events are kept.
const maxEvents = 1000

// eventLog numbers events and keeps the last few. The zero value is useful.
type eventLog struct {
	seq       int64
	kept      []client.Event
	followers map[chan client.Event]bool
}

// publish numbers e and passes it on. A follower that reads too slowly is ended
// rather than left with a gap.
func (l *eventLog) publish(e client.Event) {
	l.seq++
	e.Seq = l.seq
	l.kept = append(l.kept, e)
	if len(l.kept) > maxEvents {
		l.kept = slices.Clone(l.kept[len(l.kept)-maxEvents:])
	}
	for f := range maps.Clone(l.followers) {
		select {
		case f <- e:
		default:
			l.leave(f)
		}
	}
}

// last returns the events that are kept.
func (l *eventLog) last() []client.Event { return slices.Clone(l.kept) }

// follow sends all events to come to f, whose room is how far it may fall
// behind. It is closed when it leaves or is left.
func (l *eventLog) follow(f chan client.Event) {
	if l.followers == nil {
		l.followers = map[chan client.Event]bool{}
	}
	l.followers[f] = true
}

func (l *eventLog) leave(f chan client.Event) {
	if l.followers[f] {
		delete(l.followers, f)
		close(f)
	}
}
