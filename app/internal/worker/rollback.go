package worker

import (
	"context"
	"errors"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/handoff"
)

// restarted says how a restart of the modules went.
type restarted struct {
	down  []string // modules that could not start
	lost  []string // modules that have lost their state
	older []string // modules that started from the older of two states
}

// startAgainLocked replaces the modules, which were shut down, with fresh values. Each
// starts from its state in newer, else in older, else from what is still in
// memory. A module that cannot start answers 503 and is tried again until it
// can. The server must be held, and g.starting locked.
func (g *generation) startAgainLocked(newer, older *handoff.States) restarted {
	var r restarted
	ctx := context.Background()
	set, err := newModuleSet(g.cfg, g.opts.Modules, g.bus, g.log, g.routes.call, silent)
	if err != nil {
		// The factories worked when this process started. The supervisor
		// starts another process.
		g.log.Error("cannot make the modules again", "err", err)
		os.Exit(client.ExitFailed)
	}
	set.started = g.routes.started
	g.routes.begin()
	needed := false
	for _, in := range set.list {
		before := g.set.find(in.name)
		in.since = before.since
		source := older
		if _, ok := newer.Version(in.name); ok {
			source = newer
		}
		if source, err = g.refill(set, in, before, source, older); err != nil {
			g.log.Error("a state is lost", "module", in.name, "err", err)
			r.lost = append(r.lost, in.name)
		}
		if _, had := older.Version(in.name); had && newer != nil && source == older {
			r.older = append(r.older, in.name)
		}
		if in.down = set.start(ctx, in); in.down != nil {
			in.kept, needed = source, needed || source != nil
			r.down = append(r.down, in.name)
		}
	}
	if !needed { // otherwise the collector closes them when no module needs them
		older.Close()
		newer.Close()
	}
	g.install(set)
	for _, in := range set.list {
		if in.down != nil {
			g.log.Error("module did not start again: it answers 503", "module", in.name, "err", in.down)
		}
	}
	return r
}

// largeState is the size in bytes above which a state in memory is dropped
// before its export is read back.
const largeState = 16 << 20

// refill restores the state of in, from source if possible, and returns where it
// came from; nil means from memory.
func (g *generation) refill(set *moduleSet, in, before *instance, source, older *handoff.States) (*handoff.States, error) {
	if before.stuck {
		return nil, errors.New("its Shutdown did not return")
	}
	for _, states := range slices.Compact([]*handoff.States{source, older}) {
		if _, ok := states.Version(in.name); !ok {
			continue
		}
		if before.module != nil && states.Size(in.name) > largeState {
			g.routes.fail(in.name, errors.New("it is being started again")) // the route drops its module
			before.module = nil                                             // otherwise the state is in memory twice
			debug.FreeOSMemory()
		}
		err := set.restoreOne(states, in)
		if err == nil {
			return states, nil
		}
		g.log.Error("a state could not be restored", "module", in.name, "err", err)
		if fresh, err := contract.New(g.opts.Modules, in.name); err == nil { // otherwise it has half of that state
			in.module = fresh
		}
	}
	if before.module == nil {
		return nil, errors.New("the exported state cannot be read back")
	}
	return nil, carry(before, in)
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
	fresh := &instance{name: in.name, module: value, cfg: in.cfg, since: in.since, kept: in.kept}
	if _, ok := in.kept.Version(in.name); ok {
		err = g.set.restoreOne(in.kept, fresh)
	} else {
		err = carry(in, fresh)
	}
	if err == nil {
		err = g.set.start(ctx, fresh)
	}
	if err == nil {
		err = g.set.healthy(ctx, fresh)
	}
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
	b.run(fresh)
	g.report(nil)
	return fresh, nil
}
