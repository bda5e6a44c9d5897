//go:build unix

package supervisor

import (
	"slices"

	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/handoff/failpoint"
)

// state is what the supervisor is doing. It is derived from what the supervisor
// owns, so it cannot contradict that: see [supervisor.state].
//
//	            serving                  upgrade               report: took over
//	starting ─────────────▶ serving ───────────────▶ upgrading ─────────────────▶ probation
//	                        ▲  ▲  ▲                      │  ▲                        │   │
//	                        │  │  └────── report: failed ┘  └──── upgrade (ends it) ─┘   │
//	                        │  └──────────── final, or report: failed after the commit ──┘
//	                        │ serving
//	                    recovering ◀── the serving generation died, in any state
//
//	stopping ◀── SIGTERM, Ctrl-C: in any state, for good
//
// Listing and building go on in every state except stopping: until there is a
// binary to hand over to, nothing is touched. See [job].
type state int

const (
	starting   state = iota // no generation has served yet
	serving                 // a generation serves and is final
	upgrading               // the serving generation was ordered to hand over
	probation               // a candidate serves and is not final; with app.probation the old one stands by
	recovering              // the serving generation died, and none serves yet
	stopping
)

func (s state) String() string {
	return [...]string{"starting", "serving", "upgrading", "probation", "recovering", "stopping"}[s]
}

func (s *supervisor) state() state {
	switch {
	case s.stop.begun:
		return stopping
	case s.workers.serving == nil && !s.workers.everServed:
		return starting
	case s.workers.serving == nil:
		return recovering
	case s.job != nil && s.job.phase == upgradePhase:
		return upgrading
	case s.unconfirmed != nil:
		return probation
	default:
		return serving
	}
}

// hearing says what one type of message from a worker means, and in which
// states.
type hearing struct {
	message string
	in      []state // in others it comes too late and is ignored
	do      func(*supervisor, *worker, control.Message)
}

var (
	always    = []state{starting, serving, upgrading, probation, recovering, stopping}
	whileUp   = []state{serving, upgrading, probation, stopping}
	unstopped = []state{serving, upgrading, probation}
)

// hearings has every message that a worker can send.
//
// When a report of a failed upgrade arrives, its job may be gone: the supervisor
// has given up on it, or a newer job has replaced it. The worker serves in any
// case, so its report counts in every state in which a worker can serve.
var hearings = []hearing{
	{control.TypeServing, always, (*supervisor).hearServing},
	{control.TypeReport, whileUp, (*supervisor).hearReport},
	{control.TypeStage, whileUp, (*supervisor).hearStage},
	{control.TypeFinal, []state{serving, upgrading, probation, stopping}, (*supervisor).hearFinal},
	{control.TypeDrained, always, (*supervisor).hearDrained},
	{control.TypeSignal, always, (*supervisor).hearSignal},
	{control.TypeUnclean, []state{stopping}, (*supervisor).hearUnclean},
	{control.TypeRepair, unstopped, (*supervisor).hearRepair},
	{control.TypeEvent, always, (*supervisor).hearEvent},
	{control.TypeStatus, always, (*supervisor).hearStatus},
}

// hear handles a worker's message.
func (s *supervisor) hear(w *worker, m control.Message) {
	failpoint.At(failpoint.Supervisor, "on", m.Type)
	for _, h := range hearings {
		if h.message == m.Type {
			if slices.Contains(h.in, s.state()) {
				h.do(s, w, m)
			}
			return
		}
	}
}
