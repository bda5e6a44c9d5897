package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/serve"
	"example.org/orchestrator/handoff"
	"example.org/orchestrator/handoff/failpoint"
	"example.org/orchestrator/modules/topics"
)

// takeOver starts a generation that replaces another. An error means that it
// has cleaned up, that the old generation knows why and carries on.
func (g *generation) takeOver(ctx context.Context) error {
	p, err := g.upgrader.Dial(ctx)
	if err != nil {
		return err
	}
	t := &takeover{g: g, p: p}
	if err := t.run(ctx); err != nil {
		p.Close()
		return err
	}
	return nil
}

// firstWord is how long a candidate waits for the old generation's answer to
// its first word, in which that one says how long it may be silent later.
const firstWord = 10 * time.Second

// patience is how long a candidate waits for the old generation's next word.
// One that is silent for longer is stuck, and the supervisor ends it before.
func (t *takeover) patience() time.Duration {
	return time.Duration(t.welcome.PatienceMS) * time.Millisecond
}

type takeover struct {
	g       *generation
	p       *handoff.Predecessor
	set     *moduleSet
	welcome *handoff.Welcome
	notes   []string
	states  *handoff.States
	orphan  bool // the old generation died and left everything to us
}

func (t *takeover) run(ctx context.Context) error {
	g := t.g
	// The old generation learns our PID and generation before any code of
	// modules runs; which modules there are it hears if main.yaml is right.
	loadErr := g.load()
	hello := handoff.Hello{Generation: g.number}
	if loadErr == nil {
		hello.Modules = g.cfg.ModuleNames()
	}
	greet, cancel := context.WithTimeout(ctx, firstWord)
	defer cancel()
	welcome, err := t.p.Hello(greet, hello)
	if err != nil {
		return err
	}
	t.welcome = welcome
	if loadErr != nil {
		return t.giveUp(ctx, loadErr)
	}
	if welcome.Reload.Repair {
		g.repaired.Store(true)
	}
	set, err := g.make(func(stage, module string) { t.p.Progress(ctx, stage, module) })
	if err != nil {
		return t.giveUp(ctx, err)
	}
	t.set = set

	t.notes, err = set.accepts(t.kept())
	if err == nil {
		err = g.bind()
		t.p.Progress(ctx, handoff.StagePrepare, "") // names the sockets, should this process die
	}
	if err == nil {
		err = set.prepare(ctx)
	}
	if err != nil {
		return t.giveUp(ctx, err)
	}
	failpoint.At(failpoint.Candidate, "at", "prepared")
	wait, cancel := context.WithTimeout(ctx, t.patience())
	defer cancel()
	t.states, err = t.p.Prepared(wait)
	if err != nil {
		return t.giveUp(ctx, err)
	}
	began := time.Now()
	err = set.restore(t.states)
	failpoint.At(failpoint.Candidate, "at", "restored")
	if err == nil {
		err = set.initialize(ctx, t.wasDown)
	}
	if err != nil {
		return t.giveUp(ctx, err)
	}
	failpoint.At(failpoint.Candidate, "at", "initialized")
	restore := time.Since(began)
	decide, cancel := context.WithTimeout(ctx, t.patience())
	defer cancel()
	commit, err := t.p.Healthy(decide)
	if errors.Is(err, handoff.ErrPredecessorGone) {
		g.log.Warn("the old generation died during the handoff; going on with its state")
		t.notes = append(t.notes, "the old generation died during the handoff, after it had passed on every state")
		t.orphan, err = true, nil
		commit = &handoff.Commit{StagesMS: map[string]float64{}}
	}
	if err != nil {
		return t.giveUp(ctx, err)
	}
	t.commit(ctx, commit, restore)
	return nil
}

// wasDown tells whether a module did not run in the old generation either: it
// may go on not to.
func (t *takeover) wasDown(module string) bool {
	return slices.ContainsFunc(t.welcome.Modules, func(m handoff.ModuleInfo) bool { return m.Name == module && m.Down })
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
		t.set.progress = silent
		t.set.shutdown(ctx, never)
	}
	return err
}

// commit takes everything: from here this generation owns it.
func (t *takeover) commit(ctx context.Context, commit *handoff.Commit, restore time.Duration) {
	g, took := t.g, time.Now()
	changed := t.changed()
	t.set.progress = silent
	needed := false
	for _, in := range t.set.list {
		if in.down != nil {
			in.kept, needed = t.states, true
			t.notes = append(t.notes, fmt.Sprintf("module %s still does not run: %v", in.name, in.down))
		}
	}
	if !needed {
		t.states.Close()
	}
	g.install(t.set)
	var pause float64
	moved := 0
	g.held.Resume(func(adopt func([]serve.Detached)) {
		failpoint.At(failpoint.Candidate, "at", "resumed")
		pause = commit.HeldMS + milliseconds(time.Since(took))
		if !t.orphan {
			moved = t.takeConns(ctx, adopt)
		}
	})

	r := &control.Report{
		Generation: g.number,
		TookOver:   true,
		Standby:    commit.Probation && !t.orphan,
		Changed:    changed,
		StagesMS:   map[client.Stage]float64{client.StageRestore: milliseconds(restore), client.StagePause: pause},
		Held:       commit.Held,
		Forwarded:  commit.Forwarded,
		Moved:      moved,
		Cancelled:  commit.Cancelled,
		Notes:      t.notes,
	}
	for stage, ms := range commit.StagesMS {
		r.StagesMS[client.Stage(stage)] = ms
	}
	for _, name := range changed {
		g.log.Info(fmt.Sprintf(logReloaded, name))
		eventbus.Publish(g.own, topics.ModuleReloaded, topics.Module{Name: name, Generation: g.number})
	}
	eventbus.Publish(g.own, topics.AppReloaded, topics.App{
		Generation: g.number, Outcome: string(client.Reloaded), Modules: changed,
		PauseMS: pause, Held: r.Held, Moved: r.Moved, Forwarded: r.Forwarded, Cancelled: r.Cancelled,
	})
	g.report(r)
	failpoint.At(failpoint.Candidate, "at", "reported")
	settled := make(chan bool, 1)
	g.settled = settled
	go func() { settled <- t.prove() }()
}

// takeConns adopts the connections that the old generation passes on, and
// returns how many there were.
func (t *takeover) takeConns(ctx context.Context, adopt func([]serve.Detached)) (moved int) {
	limit, cancel := context.WithTimeout(ctx, t.g.cfg.App.HookTimeout)
	defer cancel()
	_, err := t.p.Accepting(limit, func(conns []handoff.Conn) {
		for _, c := range conns {
			if c.Owner != forwardOwner {
				moved++
			}
		}
		adopt(incoming(conns))
	})
	if err != nil {
		t.g.log.Warn("not every connection could be taken over", "err", err)
		t.outlive(err) // it takes everything back
		t.orphan = true
	}
	return moved
}

// prove is the probation: the old generation stands by while this one serves.
// It reports whether this one stays.
func (t *takeover) prove() (stays bool) {
	g := t.g
	defer t.p.Close()
	probation := client.ProbationPassed
	if !t.orphan {
		cut, err := t.p.Probation(context.Background(), t.healthy)
		var unhealthy *handoff.UpgradeError
		if errors.As(err, &unhealthy) {
			if t.giveBack(unhealthy) {
				return false
			}
			probation = client.ProbationFailed
		} else if errors.Is(err, handoff.ErrPredecessorGone) {
			g.log.Warn("the old generation died before the end of the probation")
		} else if err != nil {
			t.outlive(err)
		} else if cut {
			probation = client.ProbationCut
		}
	}
	failpoint.At(failpoint.Candidate, "at", "proved")
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.App.HookTimeout)
	defer cancel()
	if err := t.p.Ready(ctx); err != nil && !errors.Is(err, handoff.ErrPredecessorGone) {
		g.log.Warn("the old generation did not say goodbye", "err", err)
	}
	g.send(control.Message{Type: control.TypeFinal, Final: &control.Final{Generation: g.number, Probation: probation}})
	return true
}

// outlive makes sure that the old generation is gone, after an error of the
// conversation with it, so that two never serve: seeing the link end it ends
// this process, or is ended by the supervisor.
func (t *takeover) outlive(err error) {
	if !errors.Is(err, handoff.ErrPredecessorGone) {
		t.g.log.Error("the old generation does not keep to the protocol", "err", err)
		t.p.Close()
		t.p.Gone(context.Background())
	}
	t.g.log.Warn("there is no old generation any more, going on", "err", err)
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

// giveBack returns everything to the old generation. It reports false if that
// one has died meanwhile: then this one goes on, well or not.
func (t *takeover) giveBack(why *handoff.UpgradeError) bool {
	g := t.g
	g.log.Error("not well, handing back", "stage", why.Stage, "module", why.Module, "err", why.Err)
	tell, cancel := context.WithTimeout(context.Background(), t.patience())
	defer cancel()
	if err := t.p.Unwell(tell); err != nil {
		t.outlive(err)
		return false
	}
	held, err := g.lastHold(g.cfg.App.HookTimeout)
	if err != nil {
		g.log.Warn("handing back with requests unfinished", "err", err)
	}
	if err := g.endRuns(context.Background()); err != nil {
		g.log.Warn("handing back in spite of it", "err", err)
	}
	g.starting.Lock()
	defer g.starting.Unlock()
	if err := g.set.shutdown(context.Background(), never); err != nil {
		g.log.Error("shutdown failed", "err", err)
	}
	states, err := g.set.export(context.Background(), never)
	if err != nil {
		g.log.Error("not every state could be exported", "err", err)
	}
	resume := held.Resume
	var rest []handoff.Conn
	if states != nil {
		wait, cancel := context.WithTimeout(context.Background(), t.patience())
		defer cancel()
		handed, conns, _ := held.HandOver()
		left, err := t.p.Return(wait, why, states, outgoing(conns))
		if err == nil {
			states.Close()
			return true
		}
		t.outlive(err)
		resume, rest = handed.Resume, left
	}
	g.restart(states, nil)
	resume(func(adopt func([]serve.Detached)) { adopt(incoming(rest)) })
	g.report(nil)
	return false
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
