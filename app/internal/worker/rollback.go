package worker

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/handoff"
	"example.org/orchestrator/modules"
)

// restarted says how a restart of the modules went.
type restarted struct {
	down  []string // modules that could not start
	lost  []string // modules that have lost their state
	older []string // modules that started from the older of two states
}

// remains is what a generation starts its modules again from.
type remains struct {
	spare *moduleSet                 // fresh values that were prepared; nil if there are none
	newer *handoff.States            // what an unhealthy candidate has handed back; nil for nothing
	older *handoff.States            // what this generation has exported; nil for nothing
	torn  map[string]*handoff.States // doubtful states that it has exported
}

// find returns where the export of a module's state is, nil if there is none.
func (r *remains) find(module string) *handoff.States {
	for _, states := range []*handoff.States{r.torn[module], r.older} {
		if _, ok := states.Version(module); ok {
			return states
		}
	}
	return nil
}

func (r *remains) close() {
	r.newer.Close()
	r.older.Close()
	for _, states := range r.torn {
		states.Close()
	}
}

// startAgainLocked replaces the modules, which were shut down, with fresh values.
// Each starts from its state in from.newer, else from what is still in memory. A
// module that cannot start answers 503 and is tried again until it can. The server
// must be held, and g.starting locked.
func (g *generation) startAgainLocked(from remains) restarted {
	var r restarted
	ctx := context.Background()
	set := from.spare
	if set == nil {
		var err error
		if set, err = g.freshSet(); err != nil {
			// The factories worked when this process started. The supervisor
			// starts another process.
			g.log.Error("cannot make the modules again", "err", err)
			os.Exit(client.ExitFailed)
		}
	}
	set.started = g.routes.started
	g.routes.begin()
	needed := false
	for _, in := range set.list {
		before := g.set.find(in.name)
		in.since = before.since
		newest, err := g.refill(set, in, before, &from)
		if err != nil {
			g.log.Error("a state is lost", "module", in.name, "err", err)
			r.lost = append(r.lost, in.name)
		}
		if in.stateful() && err == nil && from.newer != nil && !newest {
			r.older = append(r.older, in.name)
		}
		if in.down = set.prepareOne(ctx, in); in.down == nil {
			in.down = set.start(ctx, in)
		}
		if in.down != nil {
			in.doubtful = in.doubtful || errors.Is(in.down, errLate)
			in.kept = from.find(in.name)
			if newest {
				in.kept = from.newer
			}
			needed = needed || in.kept != nil
			r.down = append(r.down, in.name)
		}
	}
	if !needed { // otherwise the collector closes them when no module needs them
		from.close()
	}
	g.install(set)
	for _, in := range set.list {
		if in.down != nil {
			g.log.Error("module did not start again: it answers 503", "module", in.name, "err", in.down)
		}
	}
	return r
}

// freshSet makes fresh values of all modules.
func (g *generation) freshSet() (*moduleSet, error) {
	s, err := newModuleSet(g.cfg, g.opts.Modules, g.bus, g.log, g.routes.call, silent)
	if err == nil {
		s.beat = g.beat
	}
	return s, err
}

// refill gives in, a fresh value in place of before, its state: what the candidate
// has handed back if that can be read, else what is still in memory. newest says
// that it was the former.
func (g *generation) refill(set *moduleSet, in, before *instance, from *remains) (newest bool, err error) {
	if !in.stateful() {
		return false, nil
	}
	if _, ok := from.newer.Version(in.name); ok {
		err := set.restoreOne(from.newer, in)
		if err == nil {
			return true, nil
		}
		g.log.Error("a state that the candidate handed back cannot be restored: going back to the one before", "module", in.name, "err", err)
		if err := in.renew(g.opts.Modules); err != nil { // it has half of that state
			return false, err
		}
	}
	return false, g.takeFrom(set, in, before, from.find(in.name))
}

// takeFrom gives in, a fresh value, the state of before, which was shut down:
// without encoding it if that is possible. exported is where the export of the same
// state is, nil if there is none.
func (g *generation) takeFrom(set *moduleSet, in, before *instance, exported *handoff.States) error {
	if before.doubtful { // something may still write to it
		if exported == nil {
			return errors.New("something still works on it, and it was not exported")
		}
		return set.restoreOne(exported, in)
	}
	old, fresh := before.module.(modules.Stateful).State(), in.module.(modules.Stateful).State()
	err := contract.Carry(old, fresh)
	if err == nil {
		return nil
	}
	if exported != nil {
		readErr := set.readBack(exported, in)
		if readErr == nil {
			return nil
		}
		err = readErr
		if renewErr := in.renew(g.opts.Modules); renewErr != nil {
			return renewErr
		}
		fresh = in.module.(modules.Stateful).State()
	}
	g.log.Warn("a state is copied in memory as it is: give it a Carry method", "module", in.name, "err", err)
	return contract.CarryWhole(old, fresh)
}

// renew replaces the value of an instance that is not started with a fresh one.
func (in *instance) renew(list modules.List) error {
	if in.touched {
		return nil // a prepared value cannot be had twice; what it has got of a state is overwritten
	}
	value, err := contract.New(list, in.name)
	if err == nil {
		in.module = value
	}
	return err
}

// repairAfter is how many times a module is tried again before a fresh process
// of the same build is asked for. If there is none, it is asked for again after
// as many more.
const repairAfter = 3

// recoverModule tries to start a module again until that succeeds or the generation's
// background work ends.
func (g *generation) recoverModule(ctx context.Context, b *background, in *instance) {
	for n, wait := 1, 100*time.Millisecond; ; n, wait = n+1, min(2*wait, 5*time.Second) {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		fresh, err := g.tryStart(ctx, b, in)
		if err == nil {
			return
		}
		in = fresh
		if n%repairAfter == 0 && !g.repairAsked.Swap(true) {
			g.send(control.Message{Type: control.TypeRepair})
		}
	}
}

// tryStart starts a fresh value in place of in, and returns the value that is
// in its place afterwards, also on error.
func (g *generation) tryStart(ctx context.Context, b *background, in *instance) (*instance, error) {
	g.starting.Lock()
	defer g.starting.Unlock()
	if ctx.Err() != nil {
		return in, nil
	}
	g.set.stop(context.Background(), in)
	value, err := contract.New(g.opts.Modules, in.name)
	if err != nil {
		return in, err
	}
	fresh := newInstance(in.name, value, in.cfg)
	fresh.since, fresh.kept = in.since, in.kept
	err = g.set.prepareOne(ctx, fresh)
	if err == nil && in.stateful() {
		err = g.takeFrom(g.set, fresh, in, in.kept)
	}
	if err == nil {
		err = g.set.start(ctx, fresh)
	}
	if err == nil {
		err = g.set.healthy(ctx, fresh)
	}
	fresh.doubtful = errors.Is(err, errLate)
	g.mu.Lock()
	fresh.down = err
	if err == nil {
		fresh.kept = nil
	}
	g.set.list[slices.Index(g.set.list, in)] = fresh
	if !slices.ContainsFunc(g.set.list, func(in *instance) bool { return in.down != nil }) {
		g.repairAsked.Store(false) // a later failure may ask for a repair again
	}
	g.mu.Unlock()
	if err != nil {
		return fresh, err
	}
	g.log.Info("module runs again", "module", in.name)
	g.routes.recovered(in.name, fresh.module)
	b.run(fresh, nil)
	g.report(nil)
	return fresh, nil
}
