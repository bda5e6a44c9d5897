//go:build unix

package supervisor

import (
	"maps"
	"slices"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/modules/topics"
)

// maxEvents is how many events are kept, and maxKept how many bytes of what they
// carry.
const (
	maxEvents = 1000
	maxKept   = 4 << 20
)

// eventLog numbers events and keeps the last few of the framework's own. The zero
// value is useful.
type eventLog struct {
	seq       int64
	kept      []client.Event
	bytes     int                        // of what the kept ones carry
	followers map[chan client.Event]bool // whether they want the events of modules too
}

// ownTopics are those of the framework.
var ownTopics = []string{
	topics.ModuleReloaded.Name(), topics.ModuleReloadFailed.Name(), topics.ModuleRolledBack.Name(),
	topics.AppReloaded.Name(), topics.AppReloadFailed.Name(), topicCrashed,
}

// publish numbers e and sends it to all followers that want it. The channel of a
// follower that reads too slowly is closed, so that it never has a gap.
func (l *eventLog) publish(e client.Event) {
	l.seq++
	e.Seq = l.seq
	own := slices.Contains(ownTopics, e.Topic)
	if own {
		l.keep(e)
	}
	for f, all := range maps.Clone(l.followers) {
		if !own && !all {
			continue
		}
		select {
		case f <- e:
		default:
			l.leave(f)
		}
	}
}

func (l *eventLog) keep(e client.Event) {
	l.kept = append(l.kept, e)
	l.bytes += len(e.Data)
	drop := 0
	for len(l.kept)-drop > maxEvents || l.bytes > maxKept {
		l.bytes -= len(l.kept[drop].Data)
		drop++
	}
	if drop > 0 {
		l.kept = slices.Clone(l.kept[drop:])
	}
}

// wantsAll reports whether a follower wants the events of modules.
func (l *eventLog) wantsAll() bool {
	for _, all := range l.followers {
		if all {
			return true
		}
	}
	return false
}

// last returns the events that are kept.
func (l *eventLog) last() []client.Event { return slices.Clone(l.kept) }

// follow sends all future events to f, which may fall behind as far as its
// buffer holds. f is closed by leave, or when it falls behind further.
func (l *eventLog) follow(f chan client.Event, all bool) {
	if l.followers == nil {
		l.followers = map[chan client.Event]bool{}
	}
	l.followers[f] = all
}

func (l *eventLog) leave(f chan client.Event) {
	if _, ok := l.followers[f]; ok {
		delete(l.followers, f)
		close(f)
	}
}
