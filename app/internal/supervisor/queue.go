//go:build unix

package supervisor

import (
	"time"

	"example.org/orchestrator/app/client"
)

// request asks for a reload.
type request struct {
	reload client.ReloadRequest
	reply  chan client.Outcome // buffered; nil if nobody waits
	timer  *time.Timer         // expires the request; nil for none
}

// limit is how long the reload may take until its commit, 0 for as long as the
// limits of its parts allow.
func (r *request) limit() time.Duration { return time.Duration(r.reload.TimeoutMS) * time.Millisecond }

// answer ends the request with o. It must be called once.
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

// put makes r wait. It returns the request that r supersedes, nil for none.
func (q *queue) put(r *request) (superseded *request) {
	superseded, q.waiting = q.waiting, r
	return superseded
}

// take removes and returns the waiting request, nil for none.
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
	placeStart place = iota // start a job at once
	placeJoin               // join the job, which builds what it asks for
	placeRetry              // start the failed job again, with the request
	placeQueue              // wait
)

// placeFor decides where a request goes. fromSources says that it asks for a
// build of the sources, crashLoop that nothing serves and a start has failed
// already.
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
