package worker

import (
	"context"
	"errors"
	"slices"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/serve"
	"example.org/orchestrator/handoff"
	"example.org/orchestrator/handoff/failpoint"
)

// passProbation is the probation: this generation serves while the old one
// stands by. It reports whether this one stays.
func (t *takeover) passProbation() (stays bool) {
	g := t.g
	defer t.p.Close()
	probation := client.ProbationPassed
	if !t.oldGone {
		early, err := t.p.Probation(context.Background(), t.healthy)
		var unhealthy *handoff.UpgradeError
		if errors.As(err, &unhealthy) {
			if t.handBack(unhealthy) {
				return false
			}
			probation = client.ProbationFailed
		} else if errors.Is(err, handoff.ErrPredecessorGone) {
			g.log.Warn("the old generation died before the end of the probation")
		} else if err != nil {
			t.waitGone(err)
		} else if early {
			probation = client.ProbationCut
		}
	}
	failpoint.At(failpoint.Candidate, "at", "proved")
	ctx, cancel := context.WithTimeout(context.Background(), finalTime)
	defer cancel()
	if err := t.p.Ready(ctx); err != nil && !errors.Is(err, handoff.ErrPredecessorGone) {
		g.log.Warn("the old generation did not confirm its exit", "err", err)
	}
	g.closeReplaced()
	g.send(control.Message{Type: control.TypeFinal, Final: &control.Final{Generation: g.number, Probation: probation}})
	return true
}

// waitGone makes sure that the old generation is gone after an error of the
// protocol, so that two never serve. When the old one sees the link end, it
// kills this process, or the supervisor kills the old one.
func (t *takeover) waitGone(err error) {
	if !errors.Is(err, handoff.ErrPredecessorGone) {
		t.g.log.Error("the old generation violated the protocol", "err", err)
		t.p.Close()
		t.p.Gone(context.Background())
	}
	t.g.log.Warn("the old generation is gone: going on", "err", err)
}

// healthy asks all modules for their health.
func (t *takeover) healthy() *handoff.UpgradeError {
	g := t.g
	g.mu.Lock()
	list := slices.Clone(g.set.list)
	g.mu.Unlock()
	for _, in := range list {
		g.mu.Lock()
		down := in.down
		g.mu.Unlock()
		if down != nil {
			continue
		}
		err := g.set.healthy(context.Background(), in)
		if where := (*handoff.UpgradeError)(nil); errors.As(err, &where) {
			return where
		}
	}
	return nil
}

// handBack hands everything back to the old generation. It returns false if that
// is not possible, because the old one has died or there is no file for the
// states: then this one goes on, healthy or not.
func (t *takeover) handBack(why *handoff.UpgradeError) bool {
	g := t.g
	g.log.Error("unhealthy, handing back", "stage", why.Stage, "module", why.Module, "err", why.Err)
	tell, cancel := context.WithTimeout(context.Background(), t.silence())
	defer cancel()
	if err := t.p.Unhealthy(tell); err != nil {
		t.waitGone(err)
		return false
	}
	held := g.lastHold()
	for _, is := range held.Left() {
		g.log.Warn("handing back although it still runs", "module", is.Owner, "what", is.Route)
		g.distrust(is.Owner)
	}
	for _, module := range g.endRuns(g.cfg.App.RunTimeout) {
		g.log.Warn("handing back although it still runs", "module", module, "what", "Run")
		g.distrust(module)
	}
	if n := g.flushEvents(g.cfg.App.RunTimeout); n > 0 {
		g.log.Warn("events were not handled in time, and are lost", "events", n)
	}
	g.starting.Lock()
	defer g.starting.Unlock()
	if err := g.set.shutdown(context.Background(), mustStop); err != nil {
		g.log.Error("shutdown failed", "err", err)
	}
	states, err := g.set.export(context.Background(), mustStop)
	if err != nil {
		g.log.Error("not every state could be exported", "err", err)
	}
	resume := held.Resume
	var rest []handoff.Conn
	if states != nil {
		wait, cancel := context.WithTimeout(context.Background(), t.silence())
		defer cancel()
		handed, conns, _ := held.HandOver()
		left, err := t.p.Return(wait, why, states, outgoing(conns))
		if err == nil {
			states.Close()
			return true
		}
		t.waitGone(err)
		resume, rest = handed.Resume, left
	}
	g.startAgainLocked(remains{older: states})
	resume(func(adopt func([]serve.Detached)) { adopt(incoming(rest)) })
	g.report(nil)
	return false
}

// distrust marks the state of a module as one that something still writes to: it
// is not handed back.
func (g *generation) distrust(module string) {
	if in := g.set.find(module); in != nil {
		in.doubtful = true
	}
}
