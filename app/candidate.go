package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"orchestrator/app/control"
	"orchestrator/app/eventbus"
	"orchestrator/handoff"
	"orchestrator/modules/topics"
)

// takeOver starts a generation that replaces another. An error means that it
// has cleaned up, that the old generation knows why and carries on.
func (g *generation) takeOver(ctx context.Context) error {
	p, err := g.upgrader.Dial(ctx)
	if err != nil {
		return err
	}
	defer p.Close()
	t := &takeover{g: g, p: p}
	if err := t.run(ctx); err != nil {
		return err
	}
	return nil
}

// patience is how long a candidate waits for the old generation's next word.
// It covers the longest hold and every hook over there; an old generation
// that is silent for longer is stuck, and the candidate leaves it alone.
func (g *generation) patience() time.Duration {
	if g.cfg == nil { // the configuration is wrong, and only that is to be told
		return 10 * time.Second
	}
	return g.stopLimit() + 2*g.cfg.App.Drain + 4*g.cfg.App.MaxPause
}

type takeover struct {
	g       *generation
	p       *handoff.Predecessor
	set     *moduleSet
	welcome *handoff.Welcome
	orphan  bool // the old generation died and left everything to us
}

func (t *takeover) run(ctx context.Context) error {
	g := t.g
	// The old generation learns our PID and generation before anything that
	// may hang; which modules there are it hears if loading goes well.
	set, loadErr := g.load()
	hello := handoff.Hello{Generation: g.number}
	if loadErr == nil {
		t.set = set
		hello.Modules = set.names()
	}
	greet, cancel := context.WithTimeout(ctx, g.patience())
	defer cancel()
	welcome, err := t.p.Hello(greet, hello)
	if err != nil {
		return err
	}
	t.welcome = welcome
	if loadErr != nil {
		return t.giveUp(ctx, loadErr)
	}
	set.progress = func(stage, module string) { t.p.Progress(ctx, stage, module) }

	err = set.accepts(t.kept())
	if err == nil {
		err = g.bind()
	}
	if err == nil {
		err = set.prepare(ctx)
	}
	if err != nil {
		return t.giveUp(ctx, err)
	}
	wait, cancel := context.WithTimeout(ctx, g.patience())
	defer cancel()
	states, err := t.p.Prepared(wait)
	if err != nil {
		return t.giveUp(ctx, err)
	}
	began := time.Now()
	err = set.restore(states)
	if err == nil {
		err = set.initialize(ctx)
	}
	if err != nil {
		return t.giveUp(ctx, err)
	}
	restore := time.Since(began)
	decide, cancel := context.WithTimeout(ctx, g.patience())
	defer cancel()
	commit, err := t.p.Healthy(decide)
	if errors.Is(err, handoff.ErrPredecessorGone) {
		g.log.Warn("the old generation died during the handoff; going on with its state")
		t.orphan, err = true, nil
		commit = &handoff.Commit{StagesMS: map[string]float64{}}
	}
	if err != nil {
		return t.giveUp(ctx, err)
	}
	t.commit(ctx, commit, restore)
	return nil
}

// kept is the old modules without those whose state is dropped on purpose.
func (t *takeover) kept() []handoff.ModuleInfo {
	return slices.DeleteFunc(slices.Clone(t.welcome.Modules), func(m handoff.ModuleInfo) bool {
		return dropped(t.welcome.Reload.DropState, m.Name)
	})
}

// dropped tells whether a module starts afresh on purpose.
func dropped(list []string, module string) bool {
	return slices.Contains(list, "*") || slices.Contains(list, module)
}

// giveUp tells the old generation why, and then shuts down what was started.
func (t *takeover) giveUp(ctx context.Context, err error) error {
	var where *handoff.UpgradeError
	if !errors.As(err, &where) {
		where = fault(handoff.StageRestore, "", err)
	}
	t.p.Fail(ctx, where)
	if t.set != nil {
		t.set.progress = func(string, string) {}
		t.set.shutdown(ctx)
	}
	return err
}

// commit takes everything: from here this generation owns it.
func (t *takeover) commit(ctx context.Context, commit *handoff.Commit, restore time.Duration) {
	g, took := t.g, time.Now()
	changed := t.changed()
	g.resume(t.set)
	pause := commit.HeldMS + milliseconds(time.Since(took))
	moved := 0
	if !t.orphan {
		limit, cancel := context.WithTimeout(ctx, g.cfg.App.HookTimeout)
		defer cancel()
		var err error
		moved, err = t.p.Accepting(limit, func(conns []net.Conn) { g.server.Adopt(conns) })
		if err != nil {
			g.log.Warn("not every connection could be taken over", "err", err)
		}
		if err := t.p.Ready(limit); err != nil {
			g.log.Warn("the old generation did not say goodbye", "err", err)
		}
	} else if err := g.upgrader.Ready(); err != nil {
		g.log.Debug("nobody was told that this generation is ready", "err", err)
	}

	stages := commit.StagesMS
	stages["restore"] = milliseconds(restore)
	stages["pause"] = pause
	o := &control.Outcome{
		Outcome:    control.Reloaded,
		Generation: g.number,
		Modules:    changed,
		StagesMS:   stages,
		TotalMS:    commit.TotalMS + milliseconds(time.Since(took)),
		Moved:      moved,
	}
	for _, name := range changed {
		g.log.Info(fmt.Sprintf(logReloaded, name))
		eventbus.Publish(g.own, topics.ModuleReloaded, topics.Module{Name: name, Generation: g.number})
	}
	eventbus.Publish(g.own, topics.AppReloaded, topics.App{Generation: g.number, Outcome: o.Outcome, Modules: changed})
	g.report(o)
}

// changed names the modules whose code or configuration is not what it was.
func (t *takeover) changed() []string {
	old := map[string]handoff.ModuleInfo{}
	for _, m := range t.welcome.Modules {
		old[m.Name] = m
	}
	reload := t.welcome.Reload
	code := affected(t.set, reload.Changed, reload.Unknown)
	names := []string{}
	for _, in := range t.set.list {
		before, known := old[in.name]
		in.since = before.Since
		if !known || slices.Contains(code, in.name) || before.Digest != t.g.cfg.Digest(in.name) {
			in.since = t.g.number
			names = append(names, in.name)
		}
	}
	return names
}
