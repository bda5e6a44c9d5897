//go:build unix

package supervisor

import (
	"time"

	"example.org/orchestrator/app/client"
)

// defaultTimeout bounds a reload that nobody has given a limit.
const defaultTimeout = 15 * time.Second

// request is somebody's wish to reload.
type request struct {
	reload client.ReloadRequest
	reply  chan client.Outcome // has room for the outcome; nil if nobody waits
	timer  *time.Timer         // ends the wish; nil for none
}

// limit is how long the reload may take until its commit.
func (r *request) limit() time.Duration {
	if r.reload.TimeoutMS > 0 {
		return time.Duration(r.reload.TimeoutMS) * time.Millisecond
	}
	return defaultTimeout
}

// answer ends the request. It must be called once.
func (r *request) answer(o client.Outcome) {
	if r.timer != nil {
		r.timer.Stop()
	}
	if r.reply != nil {
		r.reply <- o
	}
}

// queue has room for one request: the latest wins.
type queue struct{ waiting *request }

// put has r wait. It returns the request whose place it takes, nil for none.
func (q *queue) put(r *request) (superseded *request) {
	superseded, q.waiting = q.waiting, r
	return superseded
}

// take returns the request that waits, nil for none.
func (q *queue) take() *request {
	r := q.waiting
	q.waiting = nil
	return r
}

// drop removes r. It reports whether r was waiting.
func (q *queue) drop(r *request) bool {
	if q.waiting != r {
		return false
	}
	q.waiting = nil
	return true
}

// place is where a new request goes.
type place int

const (
	placeStart place = iota // begin with it at once
	placeJoin               // it wants what is being built
	placeRetry              // a job that has failed begins anew, with it
	placeQueue              // wait
)

// placeFor decides where a request goes. fromSources says that it wants what
// the sources say, crashLoop that nothing serves, and a restart after a crash
// is being waited for.
func placeFor(j *job, now state, crashLoop, fromSources bool) place {
	switch {
	case j == nil && (now == serving || now == probation || crashLoop):
		return placeStart
	case j == nil || j.initial: // until a generation serves
		return placeQueue
	case j.phase == failedPhase:
		return placeRetry
	case fromSources && j.phase < upgradePhase:
		return placeJoin
	default:
		return placeQueue
	}
}
