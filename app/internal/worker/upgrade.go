package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/serve"
	"example.org/orchestrator/handoff"
	"example.org/orchestrator/handoff/failpoint"
)

// attempt is one upgrade as the old generation sees it.
type attempt struct {
	g         *generation
	order     control.Upgrade
	expedited <-chan struct{} // closed when the probation and the drain must end now
	candidate *handoff.Candidate
	began     time.Time
	heldSince time.Time         // when the last attempt to hold began
	pause     time.Duration     // in which nobody was served, up to the moment when this generation served again
	held      *serve.Held       // nil until the server is held
	handed    *serve.HandedOver // nil before the commit
	stages    map[client.Stage]float64
	states    *handoff.States // what the old modules exported
	down      []string        // modules that did not start again after a rollback
	lost      []string        // modules that have lost their state
	reverted  []string        // modules that went back to their state at the commit
	left      []handoff.Conn  // connections that the candidate has not taken
	forwarded int             // connections that stayed here
	heldConns int             // connections that waited
	cancelled int             // requests and connections that the hold has cancelled
}

// upgrade hands over to another binary. It reports whether that generation is
// final; if not, this one serves again and has reported why.
// ctx cancels the upgrade until it commits.
func (g *generation) upgrade(ctx context.Context, order control.Upgrade, expedited <-chan struct{}) (final bool) {
	a := &attempt{g: g, order: order, expedited: expedited, began: time.Now(), stages: map[client.Stage]float64{}}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(order.TimeoutMS)*time.Millisecond, errors.New("the reload timed out"))
	defer cancel()

	err := a.prepare(ctx)
	if err == nil {
		err = a.hold(ctx)
	}
	if err == nil {
		err = a.handOver(ctx)
	}
	if err == nil {
		return true
	}
	a.fail(err)
	return false
}

// stage announces the next stage and its limit to the supervisor. If the stage
// takes longer, this process is stuck and the supervisor kills it.
func (a *attempt) stage(name client.Stage, limit time.Duration) {
	if debugged() {
		limit = 0
	}
	a.g.send(control.Message{Type: control.TypeStage, Stage: &control.Stage{Name: name, LimitMS: limit.Milliseconds()}})
	failpoint.At(failpoint.Old, "at", string(name))
}

// lap records how long a stage took.
func (a *attempt) lap(stage client.Stage, since time.Time) {
	a.stages[stage] = client.Milliseconds(time.Since(since))
}

// prepare starts the candidate and waits until it needs the states. Nothing is
// touched yet.
func (a *attempt) prepare(ctx context.Context) (err error) {
	g, began := a.g, time.Now()
	a.stage(handoff.StageStart, 2*a.limits().start())
	limit, cancel := context.WithTimeout(ctx, a.limits().start())
	defer cancel()
	a.candidate, err = g.upgrader.Start(limit, a.order.Binary, g.opts.RunDir, a.order.Generation)
	if err != nil {
		return err
	}
	if err := a.checkDropped(); err != nil {
		a.kill()
		return err
	}
	a.lap("start", began)
	began = time.Now()
	patience := a.limits().prepare()
	a.stage(handoff.StagePrepare, patience+g.cfg.App.HookTimeout)
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	g.mu.Lock()
	infos, err := g.set.describe(g.cfg)
	g.mu.Unlock()
	if err != nil {
		a.kill()
		return err
	}
	err = a.candidate.Welcome(wait, handoff.Welcome{
		Generation: g.number,
		Modules:    infos,
		Reload: handoff.ReloadDetails{
			Changed:   a.order.Changed,
			Unknown:   a.order.Unknown,
			DropState: a.order.DropState,
			Repair:    a.order.Repair,
		},
		PatienceMS: a.limits().silence().Milliseconds(),
	})
	if err != nil {
		a.await()
		return err
	}
	a.lap("prepare", began)
	return nil
}

// checkDropped refuses to drop the state of a module that neither generation
// has: a misspelt name would silently keep the state that was meant.
func (a *attempt) checkDropped() error {
	a.g.mu.Lock()
	known := append(a.g.set.names(), a.candidate.Hello().Modules...)
	a.g.mu.Unlock()
	for _, name := range a.order.DropState {
		if name != "*" && !slices.Contains(known, name) {
			slices.Sort(known)
			return fault(handoff.StageConfig, "", fmt.Errorf("--drop-state: no module is called %q, there are %v", name, slices.Compact(known)))
		}
	}
	return nil
}

// limits returns the limits of the handoff: the candidate may have more modules.
func (a *attempt) limits() limits {
	l := a.g.limits()
	if a.candidate != nil {
		l.modules = max(l.modules, len(a.candidate.Hello().Modules))
	}
	return l
}

// hold holds the server. It tries for a short time first. If requests in flight
// do not end, the server goes on and hold tries for longer, until the drain time
// is over. In the last attempt HTTP requests are cancelled if the order says
// force, or if hot_reload is on; otherwise the reload is refused.
func (a *attempt) hold(ctx context.Context) error {
	g := a.g
	began := time.Now()
	a.stage(handoff.StageHold, a.limits().hold())
	for pause := g.cfg.App.MaxPause; ; pause *= 2 {
		last := time.Since(began)+pause >= g.cfg.App.Drain
		err := a.holdFor(ctx, pause, last && (a.order.Force || g.cfg.App.HotReload))
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if !last {
			select {
			case <-time.After(min(pause, g.cfg.App.Drain)):
				continue
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		a.dismiss()
		return fault(handoff.StageHold, "", err)
	}
	a.lap(client.StageHold, a.heldSince)
	a.heldConns = a.held.Waiting()
	return nil
}

// holdFor tries to hold within d. With force it then cancels the requests, and
// gives them the time of a hook to end.
func (a *attempt) holdFor(ctx context.Context, d time.Duration, force bool) (err error) {
	a.heldSince = time.Now()
	defer func() {
		if err != nil {
			a.pause += time.Since(a.heldSince)
		}
	}()
	var held *serve.Held
	if force {
		held, err = a.g.server.ForceHold(ctx, d, a.g.cfg.App.HookTimeout)
	} else {
		limit, cancel := context.WithTimeout(ctx, d)
		held, err = a.g.server.Hold(limit)
		cancel()
	}
	if err == nil {
		err = context.Cause(ctx) // cancelled in the last moment: nothing is touched yet
	}
	if err != nil {
		if held != nil {
			held.Release()
		}
		return err
	}
	a.held = held
	return nil
}

// handOver does all that follows the hold: it shuts the modules down, passes on
// their states and calls commit. After a failure before the commit it rolls back;
// later ones are commit's.
func (a *attempt) handOver(ctx context.Context) error {
	g, began := a.g, time.Now()
	a.stage(handoff.StageShutdown, a.limits().shutdown())
	if err := g.endRuns(context.WithoutCancel(ctx)); err != nil {
		g.log.Warn("reloading all the same", "err", err)
	}
	g.starting.Lock()
	defer g.starting.Unlock()
	drop := func(module string) bool { return dropped(a.order.DropState, module) }
	err := g.set.shutdown(context.WithoutCancel(ctx), drop) // hooks have their own deadlines
	a.stage(handoff.StageExport, a.limits().export())
	states, exportErr := g.set.export(context.WithoutCancel(ctx), drop)
	a.states = states
	a.lap("shutdown", began)
	if err == nil {
		err = exportErr
	}
	if err != nil {
		a.rollBack(nil, nil)
		a.dismiss()
		return err
	}

	began = time.Now()
	patience := a.limits().restore()
	a.stage(handoff.StageRestore, patience+2*g.cfg.App.HookTimeout)
	limit, cancel := context.WithTimeout(ctx, patience)
	err = a.candidate.Transfer(limit, states.Without(drop))
	cancel()
	if err == nil {
		err = context.Cause(ctx) // the last chance to cancel
	}
	if err != nil {
		a.await()
		a.rollBack(nil, nil)
		return err
	}
	a.lap("restore", began)
	return a.commit()
}

// committedError marks a failure after the commit.
type committedError struct{ error }

func (e *committedError) Unwrap() error { return e.error }

// kill makes sure that the candidate is dead.
func (a *attempt) kill() {
	if a.candidate != nil {
		a.candidate.Kill()
	}
}

// await gives a failed candidate the time of a hook to shut its modules down.
func (a *attempt) await() {
	ctx, cancel := context.WithTimeout(context.Background(), a.g.cfg.App.HookTimeout)
	defer cancel()
	a.candidate.AwaitExit(ctx)
}

// rollBack starts fresh values of the modules and serves what was held. They
// start from the states that the candidate has handed back, if it has, otherwise
// from the states that this generation has exported. more, if not nil, adopts
// connections that come back.
func (a *attempt) rollBack(returned *handoff.States, more func(adopt func([]serve.Detached))) {
	a.stage(client.StageRollback, a.limits().rollback()+2*a.g.cfg.App.HookTimeout)
	if a.handed != nil {
		a.handed.Stop()
	}
	r := a.g.startAgainLocked(returned, a.states)
	a.down, a.lost, a.reverted = r.down, r.lost, r.older
	resume := a.held.Resume
	if a.handed != nil {
		resume = a.handed.Resume
	}
	resume(func(adopt func([]serve.Detached)) {
		adopt(incoming(a.left))
		if more != nil {
			more(adopt)
		}
	})
	a.pause += time.Since(a.heldSince)
}

// dismiss ends a candidate that has only prepared. Its modules have the time of
// a hook to shut down.
func (a *attempt) dismiss() {
	ctx, cancel := context.WithTimeout(context.Background(), a.g.cfg.App.HookTimeout)
	defer cancel()
	a.candidate.Dismiss(ctx)
}

// fail reports why the upgrade failed. The supervisor then publishes the failure
// or retries, once the sources are quiet.
func (a *attempt) fail(err error) {
	a.cancelled += a.g.server.Cancelled()
	r := &control.Report{
		Generation: a.order.Generation,
		Error:      err.Error(),
		Down:       a.down,
		Lost:       a.lost,
		StagesMS:   a.stages,
		Held:       a.heldConns,
		Cancelled:  a.cancelled,
	}
	var where *handoff.UpgradeError
	if errors.As(err, &where) {
		r.Stage, r.Module, r.Error = client.Stage(where.Stage), where.Module, where.Err.Error()
	}
	var busy *serve.BusyError
	if errors.As(err, &busy) {
		r.Error = fmt.Sprintf("requests are still running after %v (app.drain): %v; reload with --force cancels them", a.g.cfg.App.Drain, busy.Routes)
	}
	var after *committedError
	if errors.As(err, &after) {
		r.Committed, r.Reverted = true, a.reverted
	}
	if a.order.Repair {
		a.g.repairAsked.Store(false) // a repair may be asked for again
	}
	if a.pause > 0 {
		r.StagesMS[client.StagePause] = client.Milliseconds(a.pause)
	}
	a.g.report(nil)
	a.g.send(control.Message{Type: control.TypeReport, Report: r})
}

// stageTimes returns stages in the type of package handoff.
func stageTimes(stages map[client.Stage]float64) map[string]float64 {
	times := map[string]float64{}
	for stage, ms := range stages {
		times[string(stage)] = ms
	}
	return times
}
