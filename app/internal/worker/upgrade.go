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
	"example.org/orchestrator/modules"
)

// attempt is one upgrade as the old generation sees it.
type attempt struct {
	g         *generation
	order     control.Upgrade
	expedited <-chan struct{} // closed when the probation and the drain must end now
	candidate *handoff.Candidate
	began     time.Time
	terms     terms             // the candidate's, once it has said hello
	holds     []float64         // how long each attempt to hold took, in milliseconds
	heldSince time.Time         // when the last attempt to hold began
	pause     time.Duration     // in which nobody was served: earlier holds, and the last one once this generation serves again
	spare     *moduleSet        // prepared values for a rollback; nil if no module has anything to prepare
	doubtful  map[string]string // modules of which something still runs -> what
	notes     []string          // for people: what the reload has cost
	held      *serve.Held       // nil until the server is held
	handed    *serve.HandedOver // nil before the commit
	stages    map[client.Stage]float64
	states    *handoff.States            // what the old modules exported
	down      []string                   // modules that did not start again after a rollback
	lost      []string                   // modules that have lost their state
	reverted  []string                   // modules that went back to their state at the commit
	torn      map[string]*handoff.States // doubtful states that were exported
	left      []handoff.Conn             // connections that the candidate has not taken
	moved     int                        // connections that the candidate has taken
	forwarded int                        // connections that stayed here
	heldConns int                        // connections that waited
	cancelled int                        // requests and connections that the hold has cancelled
}

// upgrade hands over to another binary. It reports whether that generation is
// final; if not, this one serves again and has reported why.
// ctx cancels the upgrade until it commits.
func (g *generation) upgrade(ctx context.Context, order control.Upgrade, expedited <-chan struct{}) (final bool) {
	a := &attempt{
		g: g, order: order, expedited: expedited, began: time.Now(),
		terms: termsOf(g.cfg), stages: map[client.Stage]float64{},
		doubtful: map[string]string{}, torn: map[string]*handoff.States{},
	}
	if order.TimeoutMS > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(order.TimeoutMS)*time.Millisecond, errors.New("the reload timed out"))
		defer cancel()
	}

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
	if a.spare != nil {
		a.g.announce(client.StageRollback, a.limits().one(), true)
		a.discardSpare() // before the answer: a failed reload leaves nothing behind
	}
	a.fail(err)
	handoff.Collect() // now that nobody waits
	return false
}

// stage announces the next stage and its limit to the supervisor. If the stage
// takes longer, this process is stuck and the supervisor kills it.
func (a *attempt) stage(name client.Stage, limit time.Duration) {
	a.g.announce(name, limit, false)
	failpoint.At(failpoint.Old, "at", string(name))
}

// hookStage is stage for one in which hooks are called: limit is that of each.
func (a *attempt) hookStage(name client.Stage, limit time.Duration) {
	a.g.announce(name, limit, true)
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
	a.terms = agreed(a.terms, a.candidate.Hello().Settings)
	if err := a.checkDropped(); err != nil {
		a.kill()
		return err
	}
	a.lap("start", began)
	began = time.Now()
	patience := a.limits().prepare()
	a.hookStage(handoff.StagePrepare, a.limits().one())
	a.candidate.Watch(a.limits().one(), g.beat)
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	spare := make(chan error, 1)
	go func() { spare <- a.prepareSpare(wait) }() // beside the candidate's own
	err = a.candidate.Welcome(wait, handoff.Welcome{
		Generation: g.number,
		Modules:    g.describe(),
		Reload: handoff.ReloadDetails{
			Changed:   a.order.Changed,
			Unknown:   a.order.Unknown,
			DropState: a.order.DropState,
			Repair:    a.order.Repair,
		},
		PatienceMS: a.limits().silence().Milliseconds(),
	})
	if spareErr := <-spare; err == nil && spareErr != nil {
		if !a.force() {
			a.dismiss()
			return spareErr
		}
		a.note("a failed reload could not have started the modules again: %v", spareErr)
	}
	if err != nil {
		a.await()
		return err
	}
	a.lap("prepare", began)
	return nil
}

// force reports whether whatever is in the reload's way is cut or left behind: a
// developer can always load the fix.
func (a *attempt) force() bool { return a.order.Force || a.terms.HotReload }

// note adds a line for people to the outcome.
func (a *attempt) note(format string, args ...any) {
	a.notes = append(a.notes, fmt.Sprintf(format, args...))
}

// prepareSpare makes and prepares the values that a rollback would start, while
// nobody waits for it.
func (a *attempt) prepareSpare(ctx context.Context) error {
	a.g.mu.Lock()
	needed := slices.ContainsFunc(a.g.set.list, func(in *instance) bool { _, ok := in.module.(modules.Preparer); return ok })
	a.g.mu.Unlock()
	if !needed {
		return nil
	}
	set, err := a.g.freshSet()
	if err != nil {
		return err
	}
	a.spare = set
	if err := set.prepare(ctx); err != nil {
		a.discardSpare()
		return err
	}
	return nil
}

// discardSpare shuts down what was prepared for a rollback and is not needed.
func (a *attempt) discardSpare() {
	spare := a.spare
	a.spare = nil
	if spare == nil {
		return
	}
	if err := spare.shutdown(context.Background(), mustStop); err != nil {
		a.g.log.Warn("what was prepared for a rollback did not shut down", "err", err)
	}
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
	l.use(a.terms)
	if a.candidate != nil {
		l.modules = max(l.modules, len(a.candidate.Hello().Modules))
	}
	return l
}

// hold holds the server as soon as that is possible without making anybody wait
// for long. When the drain time is over, what waits for its client is cut. What
// else has not ended refuses the reload, unless it is forced: then it is cut too.
func (a *attempt) hold(ctx context.Context) error {
	a.stage(handoff.StageHold, a.limits().hold())
	began := time.Now()
	p := &pace{terms: a.terms, force: a.force()}
	for {
		next := p.next(time.Since(began), a.g.server.InFlight(a.terms.MaxPause))
		err := next.refuse
		if next.hold != nil {
			if err = a.holdFor(ctx, *next.hold); err == nil {
				a.lap(client.StageHold, a.heldSince)
				a.heldConns = a.held.Waiting()
				return nil
			}
			p.vain++
			if busy := (*serve.BusyError)(nil); errors.As(err, &busy) {
				if next.hold.Cut == serve.CutNothing {
					if err = rest(ctx, restTime); err == nil {
						continue
					}
				} else {
					err = &busyError{after: a.terms.Drain, routes: busy.Routes(), vain: p.vain}
				}
			}
		}
		if err == nil {
			err = a.look(ctx, next.wait)
		}
		if err != nil {
			a.dismiss()
			return fault(handoff.StageHold, "", err)
		}
	}
}

// minLook is the shortest time between two looks at what is in flight.
const minLook = time.Millisecond

// restTime is the least between two holds: whoever has waited for the first must be
// served before the next, and what has made it fail has then taken too long.
const restTime = 2 * lookTime

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// look waits until something in flight has ended, or d is over.
func (a *attempt) look(ctx context.Context, d time.Duration) error {
	select {
	case <-a.g.server.Changed():
		d = minLook
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return rest(ctx, d)
}

// holdFor makes one attempt to hold.
func (a *attempt) holdFor(ctx context.Context, t serve.Terms) error {
	a.heldSince = time.Now()
	held, err := a.g.server.Hold(ctx, t)
	a.holds = append(a.holds, client.Milliseconds(time.Since(a.heldSince)))
	if err == nil && ctx.Err() != nil { // called off in the last moment: nothing is touched yet
		held.Release()
		err = context.Cause(ctx)
	}
	if err != nil {
		a.pause += time.Since(a.heldSince)
		return err
	}
	a.held = held
	for _, is := range held.Left() {
		a.leave(is.Owner, is.Route)
	}
	return nil
}

// leave records that something still runs after it was cut, or after its time is
// over. It may write to the state of its module.
func (a *attempt) leave(module, what string) {
	if module == "" {
		return
	}
	a.g.log.Warn("left behind", "module", module, "what", what)
	a.note("left behind in generation %d: %q of module %s; its state may be torn", a.g.number, what, module)
	if _, known := a.doubtful[module]; !known {
		a.doubtful[module] = what
	}
	if in := a.g.set.find(module); in != nil {
		in.doubtful = true
	}
}

// quiet ends what works besides the requests: first every Run, then what is
// endless. It refuses the reload if a Run does not return, unless that may be left
// behind.
func (a *attempt) quiet() error {
	g := a.g
	still := g.endRuns(a.terms.Run)
	if len(still) > 0 && !a.force() {
		a.held.Release()
		a.pause += time.Since(a.heldSince)
		g.runAgain()
		a.dismiss()
		err := fmt.Errorf("its Run has not returned %v (app.run_timeout) after its context ended; reload with --force leaves it behind", a.terms.Run)
		return fault(handoff.StageHold, still[0], err)
	}
	for _, module := range still {
		a.leave(module, "Run")
	}
	before := len(a.held.Left())
	a.held.EndEndless()
	for _, is := range a.held.Left()[before:] {
		a.leave(is.Owner, is.Route)
	}
	if n := g.flushEvents(a.terms.Run); n > 0 {
		a.note("%d events were not handled within %v (app.run_timeout), and are lost", n, a.terms.Run)
	}
	for module, n := range g.routes.inCalls() {
		a.leave(module, fmt.Sprintf("%d calls from other modules", n))
	}
	return nil
}

// handOver does all that follows the hold: it shuts the modules down, passes on
// their states and calls commit. After a failure before the commit it rolls back;
// later ones are commit's.
func (a *attempt) handOver(ctx context.Context) error {
	g, began := a.g, time.Now()
	a.hookStage(handoff.StageShutdown, a.limits().quiet())
	if err := a.quiet(); err != nil {
		return err
	}
	g.starting.Lock()
	defer g.starting.Unlock()
	hooks := context.WithoutCancel(ctx) // they have their own deadlines
	g.set.apply(a.terms)
	err := g.set.shutdown(hooks, a.mayFailToStop)
	a.hookStage(handoff.StageExport, a.limits().one())
	states, exportErr := g.set.export(hooks, a.mayFailToExport)
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
	a.hookStage(handoff.StageRestore, a.limits().one())
	limit, cancel := context.WithTimeout(ctx, patience)
	err = a.transfer(limit, states)
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

// drops reports whether the order drops the state of a module.
func (a *attempt) drops(module string) bool { return dropped(a.order.DropState, module) }

// mayFailToStop is called when a module has not shut down properly. It reports
// whether the reload goes on.
func (a *attempt) mayFailToStop(in *instance, err error) bool {
	if in.stuck && (a.force() || a.drops(in.name)) {
		a.leave(in.name, "Shutdown")
		return true
	}
	if a.order.Force {
		a.note("Shutdown of module %s failed: %v", in.name, err)
	}
	return a.order.Force || a.drops(in.name)
}

// mayFailToExport is the same for a state that cannot be exported.
func (a *attempt) mayFailToExport(in *instance, _ error) bool { return a.drops(in.name) }

// transfer passes the states to the candidate: first those that are whole, then the
// doubtful ones, one by one. If this process dies of one of those, the candidate
// has all others.
func (a *attempt) transfer(ctx context.Context, states *handoff.States) error {
	var doubtful []string
	for _, in := range a.g.set.list {
		if in.doubtful && in.stateful() && !a.drops(in.name) {
			doubtful = append(doubtful, in.name)
		}
	}
	if !a.candidate.TakesDoubtful() {
		for _, name := range doubtful {
			a.lose(name, errors.New("the new build is too old to take it"))
		}
		doubtful = nil
	}
	if err := a.candidate.Transfer(ctx, states.Without(a.drops), doubtful); err != nil {
		return err
	}
	for _, name := range doubtful {
		one, err := a.g.set.exportDoubtful(ctx, name)
		if err != nil {
			a.lose(name, err)
		}
		if sendErr := a.candidate.TransferDoubtful(ctx, name, one, err); sendErr != nil {
			return sendErr
		}
		if one != nil {
			a.torn[name] = one
		}
	}
	return a.candidate.AwaitHealthy(ctx)
}

// lose records that a state cannot be passed on.
func (a *attempt) lose(module string, err error) {
	a.g.log.Error("a state is lost", "module", module, "err", err)
	a.note("the state of module %s is lost: %v", module, err)
	a.lost = append(a.lost, module)
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

// await gives a failed candidate the time to shut its modules down.
func (a *attempt) await() {
	a.g.announce(client.StageRollback, a.limits().leave()+a.limits().one(), false)
	ctx, cancel := context.WithTimeout(context.Background(), a.limits().leave())
	defer cancel()
	a.candidate.AwaitExit(ctx)
}

// rollBack starts fresh values of the modules and serves what was held. They
// start from the states that the candidate has handed back, if it has, otherwise
// from the states that this generation has exported. more, if not nil, adopts
// connections that come back.
func (a *attempt) rollBack(returned *handoff.States, more func(adopt func([]serve.Detached))) {
	a.hookStage(client.StageRollback, a.limits().one())
	if a.handed != nil {
		a.handed.Stop()
	}
	spare := a.spare
	a.spare = nil
	r := a.g.startAgainLocked(remains{spare: spare, newer: returned, older: a.states, torn: a.torn})
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

// dismiss ends a candidate that has only prepared. Its modules have the time to
// shut down.
func (a *attempt) dismiss() {
	a.g.announce(client.StageRollback, a.limits().leave()+a.limits().one(), false)
	ctx, cancel := context.WithTimeout(context.Background(), a.limits().leave())
	defer cancel()
	a.candidate.Dismiss(ctx)
}

// fail reports why the upgrade failed. The supervisor then publishes the failure
// or retries, once the sources are quiet.
func (a *attempt) fail(err error) {
	a.g.endBeats()
	a.countCut()
	r := &control.Report{
		Generation: a.order.Generation,
		Error:      err.Error(),
		Down:       a.down,
		Lost:       a.lost,
		StagesMS:   a.stages,
		Held:       a.heldConns,
		Cancelled:  a.cancelled,
		Notes:      a.notes,
		HoldsMS:    a.holds,
	}
	var where *handoff.UpgradeError
	if errors.As(err, &where) {
		r.Stage, r.Module, r.Error = client.Stage(where.Stage), where.Module, where.Err.Error()
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
