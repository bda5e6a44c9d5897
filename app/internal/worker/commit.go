package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/serve"
	"example.org/orchestrator/handoff"
)

// commit gives everything to the candidate (giveAway), stands by until the
// candidate is final (standBy, Finish), and drains. After a failure it takes back
// what an unhealthy candidate returns (takeBack), or kills it and rolls back.
// From here on the attempt cannot be cancelled. If the candidate dies, every
// state is reverted to that of the commit.
func (a *attempt) commit() error {
	g := a.g
	probation := a.terms.Probation
	if len(a.doubtful) > 0 { // nothing may work twice
		probation = 0
	}
	a.stage(handoff.StageCommit, a.limits().commit()+moveTime)
	err := a.giveAway(context.Background(), probation > 0)
	if err == nil && probation > 0 {
		err = a.standBy(probation)
	}
	if back := (*handoff.ReturnedError)(nil); errors.As(err, &back) {
		return a.takeBack(back)
	}
	if err == nil {
		early := false
		select {
		case <-a.expedited:
			early = true
		default:
		}
		a.stage(handoff.StageReady, 2*finalTime)
		ctx, cancel := context.WithTimeout(context.Background(), finalTime)
		defer cancel()
		err = a.candidate.Finish(ctx, early)
	}
	if err == nil || a.candidate.Final() || g.stopping.Load() { // a program that stops takes nothing back
		a.drain()
		return nil
	}
	a.kill()
	if a.candidate.Final() { // it became final meanwhile
		a.drain()
		return nil
	}
	a.rollBack(nil, nil)
	if !a.candidate.Committed() {
		return err
	}
	g.mu.Lock()
	for _, in := range g.set.list { // even if the candidate never got their states
		if in.stateful() && !slices.Contains(a.lost, in.name) {
			a.reverted = append(a.reverted, in.name)
		}
	}
	g.mu.Unlock()
	if a.moved > 0 {
		a.note("%d connections had moved to generation %d and ended with it", a.moved, a.order.Generation)
	}
	return &committedError{err}
}

// giveAway commits and passes the connections on. Pinned connections stay here,
// and their requests are forwarded.
func (a *attempt) giveAway(ctx context.Context, probation bool) error {
	g := a.g
	handed, conns, closed := a.held.HandOver()
	a.handed = handed
	move, stay := split(conns, a.candidate.Room())
	web := slices.DeleteFunc(slices.Clone(stay), func(c serve.Detached) bool { return c.Kind != serve.KindHTTP })
	if lost := len(stay) - len(web); lost > 0 {
		g.log.Warn("closing connections of modules: the new generation cannot open enough files", "connections", lost)
		closed += lost
	}
	a.countCut()
	a.cancelled += closed
	a.left = outgoing(conns)
	a.forwarded = g.server.Pinned() + len(web)
	var to *forwarding
	if a.forwarded > 0 {
		var err error
		if to, err = newForwarding(); err != nil {
			return fault(handoff.StageCommit, "", err)
		}
	}
	accepts, cancel := context.WithTimeout(ctx, a.limits().commit())
	defer cancel()
	err := a.candidate.Commit(accepts, handoff.Commit{
		StagesMS:  stageTimes(a.stages),
		HeldMS:    client.Milliseconds(a.pause + time.Since(a.heldSince)),
		TotalMS:   client.Milliseconds(time.Since(a.began)),
		Held:      a.heldConns,
		Forwarded: a.forwarded,
		Cancelled: a.cancelled,
		Probation: probation,
		Left:      slices.Sorted(maps.Keys(a.doubtful)),
		Lost:      a.lost,
		Notes:     a.notes,
		HoldsMS:   a.holds,
		SlowMS:    millis(g.server.Expectations(a.terms.MaxPause)),
	})
	if err != nil {
		to.close()
		return err
	}
	a.notes = nil // the candidate tells them
	out := outgoing(move)
	if to != nil {
		out = append(out, to.far)
	}
	ctx, cancel = context.WithTimeout(ctx, moveTime)
	defer cancel()
	left, err := a.candidate.Move(ctx, out)
	left = slices.DeleteFunc(left, func(c handoff.Conn) bool { return c.Owner == forwardOwner })
	a.moved = len(move) - len(left)
	a.left = append(left, outgoing(stay)...)
	if err != nil {
		to.close()
		return err
	}
	a.left = nil
	for _, c := range stay {
		if c.Kind != serve.KindHTTP {
			c.Close()
		}
	}
	if to != nil {
		if len(web) > 0 {
			g.log.Warn("connections stay in the old generation: the new one cannot open enough files", "connections", len(web))
		}
		a.handed.Forward(to.handler, web)
	}
	return nil
}

// drain waits until the clients of pinned connections have gone.
func (a *attempt) drain() {
	g := a.g
	a.discardSpare()
	if g.server.Pinned() == 0 || len(a.doubtful) > 0 {
		return
	}
	drain := a.terms.Drain
	a.stage(client.StageDrain, drain+a.limits().slack())
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-a.expedited:
			cancel()
		case <-ctx.Done():
		}
	}()
	closed := a.handed.Drain(ctx, max(drain/2, drain-3*time.Second))
	g.send(control.Message{Type: control.TypeDrained, Drained: &control.Drained{Generation: a.order.Generation, Closed: closed}})
}

// standBy watches the candidate during its probation.
func (a *attempt) standBy(probation time.Duration) error {
	patience, returning := a.limits().answer(), a.limits().handBack()
	unhealthy := func() {
		a.stage(client.StageReturn, a.terms.Drain+returning+a.limits().slack())
		ctx, cancel := context.WithTimeout(context.Background(), a.terms.Drain)
		defer cancel()
		a.handed.Recall(ctx)
	}
	a.stage(handoff.StageProbation, probation+2*patience)
	return a.candidate.Probation(context.Background(), handoff.ProbationTimes{
		Length: probation, Answer: patience, HandBack: returning, OnUnhealthy: unhealthy,
	}, a.expedited)
}

// takeBack serves again with what an unhealthy candidate has handed back.
func (a *attempt) takeBack(back *handoff.ReturnedError) error {
	g := a.g
	a.rollBack(back.States, func(adopt func([]serve.Detached)) {
		ctx, cancel := context.WithTimeout(context.Background(), moveTime)
		defer cancel()
		if _, err := a.candidate.TakeBack(ctx, func(conns []handoff.Conn) { adopt(incoming(conns)) }); err != nil {
			g.log.Warn("not every connection came back", "err", err)
			a.kill() // otherwise it may go on serving
		}
	})
	a.await()
	return &committedError{back.UpgradeError}
}

// countCut adds what holds have cut to what the outcome tells.
func (a *attempt) countCut() {
	n, routes := a.g.server.Cancelled()
	if n > 0 {
		a.cancelled += n
		a.notes = append(a.notes, fmt.Sprintf("cut: %q", routes))
	}
}

func millis(times map[string]time.Duration) map[string]float64 {
	ms := map[string]float64{}
	for name, d := range times {
		ms[name] = client.Milliseconds(d)
	}
	return ms
}
