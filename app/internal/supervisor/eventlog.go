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

// publish numbers e and sends it to all followers. The channel of a follower
// that reads too slowly is closed, so that it never has a gap.
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

// follow sends all future events to f, which may fall behind as far as its
// buffer holds. f is closed by leave, or when it falls behind further.
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
