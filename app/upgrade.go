package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"orchestrator/app/control"
	"orchestrator/app/serve"
	"orchestrator/handoff"
)

// attempt is one upgrade as the old generation sees it.
type attempt struct {
	g         *generation
	order     control.Upgrade
	candidate *handoff.Candidate
	began     time.Time
	held      time.Time
	stages    map[string]float64
	states    []handoff.State // what the old modules exported
	down      []string        // modules that did not start again after a rollback
}

// upgrade hands over to another binary. It reports whether that generation
// has taken over; if not, everything is as before and the supervisor knows
// why. ctx cancels it, as long as it has not committed.
func (g *generation) upgrade(ctx context.Context, order control.Upgrade) (committed bool) {
	a := &attempt{g: g, order: order, began: time.Now(), stages: map[string]float64{}}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(order.TimeoutMS)*time.Millisecond, errors.New("the reload's timeout is over"))
	defer cancel()

	err := a.prepare(ctx)
	if err == nil {
		err = a.hold(ctx)
		if err == nil {
			err = a.handOver(ctx)
		}
		if err == nil {
			return true
		}
	}
	a.fail(err)
	return false
}

// lap notes how long a stage took.
func (a *attempt) lap(stage string, since time.Time) {
	a.stages[stage] = milliseconds(time.Since(since))
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// prepare starts the candidate and waits until it needs the states. Nothing
// is touched yet.
func (a *attempt) prepare(ctx context.Context) (err error) {
	g, began := a.g, time.Now()
	limit, cancel := context.WithTimeout(ctx, g.cfg.App.HookTimeout)
	defer cancel()
	a.candidate, err = g.upgrader.Start(limit, a.order.Binary, g.opts.RunDir, a.order.Generation)
	if err != nil {
		return err
	}
	a.lap("start", began)
	began = time.Now()
	wait, cancel := a.hooks(ctx)
	defer cancel()
	err = a.candidate.Welcome(wait, handoff.Welcome{
		Generation: g.number,
		Modules:    g.set.describe(g.cfg),
		Reload: handoff.ReloadDetails{
			Changed:   a.order.Changed,
			Unknown:   a.order.Unknown,
			DropState: a.order.DropState,
		},
	})
	if err != nil {
		a.bury()
		return err
	}
	a.lap("prepare", began)
	return nil
}

// hooks bounds a wait for the candidate's hooks. It enforces each one's own
// deadline and says which; this is for one that cannot.
func (a *attempt) hooks(ctx context.Context) (context.Context, context.CancelFunc) {
	n := 2*len(a.candidate.Hello().Modules) + 1
	return context.WithTimeout(ctx, a.g.cfg.App.HookTimeout*time.Duration(n)+time.Second)
}

// hold stops taking requests, for a short time at first; if requests in
// flight do not end, it serves on and tries longer, until the drain time is
// over. Then the reload is refused, unless requests may be cancelled.
func (a *attempt) hold(ctx context.Context) error {
	g := a.g
	began := time.Now()
	for pause := g.cfg.App.MaxPause; ; pause *= 2 {
		a.held = time.Now()
		err := a.holdFor(ctx, pause)
		if err == nil {
			break
		}
		waited := time.Since(began) >= g.cfg.App.Drain
		if ctx.Err() == nil && waited && (a.order.Force || g.cfg.App.HotReload) {
			g.log.Warn("cancelling requests for the reload", "routes", err)
			g.server.Cut()
			if err = a.holdFor(ctx, g.cfg.App.HookTimeout); err == nil {
				break
			}
		}
		g.server.Release()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if !waited {
			select {
			case <-time.After(min(pause, g.cfg.App.Drain)):
				continue
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		a.bury()
		return fault(handoff.StageHold, "", err)
	}
	a.lap("hold", a.held)
	return nil
}

func (a *attempt) holdFor(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return a.g.server.Hold(ctx)
}

// handOver shuts the modules down, passes their states and commits. Whatever
// fails is rolled back.
func (a *attempt) handOver(ctx context.Context) error {
	g := a.g
	g.starting.Lock()
	defer g.starting.Unlock()
	if err := g.endRuns(context.WithoutCancel(ctx)); err != nil {
		g.log.Warn("reloading in spite of it", "err", err)
	}
	began := time.Now()
	err := g.set.shutdown(context.WithoutCancel(ctx)) // its hooks have deadlines of their own
	states, exportErr := g.set.export()
	a.states = states
	a.lap("shutdown", began)
	if err == nil {
		err = exportErr
	}
	if err != nil {
		a.bury()
		a.rollBack()
		return err
	}

	began = time.Now()
	limit, cancel := a.hooks(ctx)
	err = a.candidate.Transfer(limit, a.transferred())
	cancel()
	if err == nil {
		err = context.Cause(ctx) // the last moment to cancel
	}
	if err != nil {
		a.await()
		a.rollBack()
		return err
	}
	a.lap("restore", began)
	return a.commit()
}

// commit gives everything away. From here the attempt cannot be cancelled;
// if the candidate dies before it is ready, what it did is rewound.
func (a *attempt) commit() error {
	g := a.g
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.App.HookTimeout)
	defer cancel()
	err := a.candidate.Commit(ctx, handoff.Commit{
		StagesMS: a.stages,
		HeldMS:   milliseconds(time.Since(a.held)),
		TotalMS:  milliseconds(time.Since(a.began)),
	})
	if err == nil {
		conns := g.server.Detached()
		conns, err = a.candidate.Move(ctx, conns)
		if err != nil {
			g.server.Adopt(conns)
		}
	}
	if err == nil {
		err = a.candidate.Finish(ctx)
	}
	if err == nil {
		return nil
	}
	a.candidate.Kill()
	a.rollBack()
	return &rewound{err}
}

// rewound marks a failure after the commit.
type rewound struct{ error }

func (r *rewound) Unwrap() error { return r.error }

// transferred is the exported states without those that are dropped on purpose.
func (a *attempt) transferred() []handoff.State {
	var kept []handoff.State
	for _, s := range a.states {
		if !dropped(a.order.DropState, s.Module) {
			kept = append(kept, s)
		}
	}
	return kept
}

// bury makes sure that the candidate is dead.
func (a *attempt) bury() {
	if a.candidate != nil {
		a.candidate.Kill()
	}
}

// await gives a failed candidate the time to shut its modules down.
func (a *attempt) await() {
	ctx, cancel := context.WithTimeout(context.Background(), a.g.cfg.App.HookTimeout)
	defer cancel()
	a.candidate.Await(ctx)
}

// rollBack starts fresh values of the modules from their own exported states
// and answers what was held. A module that cannot start again answers 503 and
// is tried again until it can.
func (a *attempt) rollBack() {
	g := a.g
	ctx := context.Background()
	set, err := newModuleSet(g.cfg, g.opts.Modules, g.bus, g.log, g.routes.call)
	if err != nil { // the factories worked when this process started
		g.log.Error("roll back", "err", err)
		return
	}
	for _, in := range set.list {
		in.since = g.set.find(in.name).since
	}
	if err := set.restore(a.states); err != nil {
		g.log.Error("roll back: a state could not be restored", "err", err)
	}
	failed := map[*instance]error{}
	for _, in := range set.list {
		if err := set.start(ctx, in); err != nil {
			failed[in] = err
		}
	}
	g.resume(set)
	for in, err := range failed {
		g.log.Error("module does not start again, answering 503", "module", in.name, "err", err)
		a.down = append(a.down, in.name)
		g.routes.fail(in.name, err)
		go g.revive(set, in)
	}
}

// revive tries to start a failed module again until it works.
func (g *generation) revive(set *moduleSet, in *instance) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		time.Sleep(wait)
		if g.reviveOnce(set, in) {
			return
		}
	}
}

// reviveOnce reports whether there is nothing left to revive.
func (g *generation) reviveOnce(set *moduleSet, in *instance) bool {
	g.starting.Lock()
	defer g.starting.Unlock()
	g.mu.Lock()
	current := g.set == set && g.runs != nil
	g.mu.Unlock()
	if !current {
		return true
	}
	set.stop(context.Background(), in)
	if err := set.start(context.Background(), in); err != nil {
		return false
	}
	g.log.Info("module runs again", "module", in.name)
	g.routes.revived(in.name, in.module)
	g.report(nil)
	return true
}

// fail tells the supervisor why the upgrade did not happen. It publishes the
// events, or has somebody else try again, when the files are quiet.
func (a *attempt) fail(err error) {
	o := control.Outcome{
		Outcome:    control.Rejected,
		Generation: a.order.Generation,
		StagesMS:   a.stages,
		TotalMS:    milliseconds(time.Since(a.began)),
		Error:      err.Error(),
	}
	var where *handoff.UpgradeError
	if errors.As(err, &where) {
		o.Stage, o.FailedModule, o.Error = where.Stage, where.Module, where.Err.Error()
	}
	var busy *serve.BusyError
	if errors.As(err, &busy) {
		o.Error = fmt.Sprintf("requests are still running after %v (app.drain): %v; reload with --force cancels them", a.g.cfg.App.Drain, busy.Routes)
	}
	var after *rewound
	if errors.As(err, &after) {
		o.Outcome = control.RolledBack
	}
	if len(a.down) > 0 {
		o.Outcome = control.Failed
		o.Error += fmt.Sprintf("; after the rollback %v does not start again and answers 503", a.down)
	}
	if !a.held.IsZero() {
		o.StagesMS["pause"] = milliseconds(time.Since(a.held))
	}
	a.g.report(nil)
	a.g.send(control.Message{Type: control.TypeOutcome, Outcome: &o})
}
