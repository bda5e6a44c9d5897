package worker

import (
	"context"
	"encoding/json"
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

// takeOver starts a generation that replaces another. On error it has cleaned
// up, and the old generation knows why and goes on.
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

// welcomeTime is how long a candidate waits for the answer to its hello. The
// answer says how long the old generation may be silent later.
const welcomeTime = 10 * time.Second

// silence is the longest that the old generation may be silent. The supervisor
// kills a stuck one before that.
func (t *takeover) silence() time.Duration {
	return time.Duration(t.welcome.PatienceMS) * time.Millisecond
}

// takeover is one upgrade as the candidate sees it.
type takeover struct {
	g       *generation
	p       *handoff.Predecessor
	set     *moduleSet
	welcome *handoff.Welcome
	notes   []string
	states  *handoff.States
	torn    map[string]*handoff.States // those of modules of which something still runs in the old generation
	lost    []string                   // modules whose state is lost although the old generation had it
	oldGone bool                       // the old generation is gone, and everything is here
}

func (t *takeover) run(ctx context.Context) error {
	g := t.g
	// The old generation learns our PID and generation before any code of
	// modules runs. It learns the names of the modules if main.yaml is valid.
	loadErr := g.load()
	hello := handoff.Hello{Generation: g.number}
	if loadErr == nil {
		hello.Modules = g.cfg.ModuleNames()
		hello.Settings, _ = json.Marshal(termsOf(g.cfg)) // only numbers and names
	}
	greet, cancel := context.WithTimeout(ctx, welcomeTime)
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
		g.repairAsked.Store(true)
	}
	set, err := g.assemble(func(stage, module string) { t.p.Progress(ctx, stage, module) })
	if err != nil {
		return t.giveUp(ctx, err)
	}
	t.set = set

	t.notes, err = set.accepts(t.kept())
	t.notes = append(t.notes, t.tellDropped()...)
	if err == nil {
		err = g.bind()
		t.p.Progress(ctx, handoff.StagePrepare, "") // names the sockets, in case this process dies
	}
	if err == nil {
		err = set.prepare(ctx)
	}
	if err != nil {
		return t.giveUp(ctx, err)
	}
	failpoint.At(failpoint.Candidate, "at", "prepared")
	wait, cancel := context.WithTimeout(ctx, t.silence())
	defer cancel()
	states, doubtful, err := t.p.Prepared(wait)
	if err != nil {
		return t.giveUp(ctx, err)
	}
	t.states = states
	if err := t.takeDoubtful(wait, doubtful); err != nil {
		return t.giveUp(ctx, err)
	}
	began := time.Now()
	err = set.restore(t.statesOf)
	failpoint.At(failpoint.Candidate, "at", "restored")
	if err == nil {
		err = set.initialize(ctx, t.wasDown)
	}
	if err != nil {
		return t.giveUp(ctx, err)
	}
	failpoint.At(failpoint.Candidate, "at", "initialized")
	restore := time.Since(began)
	decide, cancel := context.WithTimeout(ctx, t.silence())
	defer cancel()
	commit, err := t.p.Healthy(decide)
	if errors.Is(err, handoff.ErrPredecessorGone) {
		g.log.Warn("the old generation died during the handoff; going on with its state")
		if len(t.lost) == 0 {
			t.notes = append(t.notes, "the old generation died during the handoff, after it had passed on every state")
		}
		t.oldGone, err = true, nil
		commit = &handoff.Commit{StagesMS: map[string]float64{}}
	}
	if err != nil {
		return t.giveUp(ctx, err)
	}
	t.commit(ctx, commit, restore)
	return nil
}

// takeDoubtful receives the states that something in the old generation may still
// write to. Each may be lost, and if that process dies of one, so are those that
// have not come.
func (t *takeover) takeDoubtful(ctx context.Context, names []string) error {
	t.torn = map[string]*handoff.States{}
	for i := range names {
		name, states, err := t.p.Doubtful(ctx)
		lost := (*handoff.LostError)(nil)
		switch {
		case errors.As(err, &lost): // the old generation says so with the commit
		case errors.Is(err, handoff.ErrPredecessorGone):
			t.lost = names[i:]
			t.g.log.Error("the old generation died while it exported a state that was still written to", "lost", t.lost)
			t.notes = append(t.notes, fmt.Sprintf("the state of %q is lost: the old generation died while it exported it, beside code that still wrote to it", t.lost))
			return nil
		case err != nil:
			return err
		default:
			t.torn[name] = states
		}
	}
	return nil
}

// statesOf returns where the state of a module is.
func (t *takeover) statesOf(module string) *handoff.States {
	if states := t.torn[module]; states != nil {
		return states
	}
	return t.states
}

// wasDown reports whether a module was already down in the old generation: it
// may stay down.
func (t *takeover) wasDown(module string) bool {
	return slices.ContainsFunc(t.welcome.Modules, func(m handoff.ModuleInfo) bool { return m.Name == module && m.Down })
}

// kept returns the old modules except those with a state to drop.
func (t *takeover) kept() []handoff.ModuleInfo {
	return slices.DeleteFunc(slices.Clone(t.welcome.Modules), func(m handoff.ModuleInfo) bool {
		return dropped(t.welcome.Reload.DropState, m.Name)
	})
}

// tellDropped says whose state is dropped because that was asked for.
func (t *takeover) tellDropped() (notes []string) {
	for _, m := range t.welcome.Modules {
		if m.Stateful && dropped(t.welcome.Reload.DropState, m.Name) {
			notes = append(notes, fmt.Sprintf("the state of module %s is dropped, as asked", m.Name))
		}
	}
	return notes
}

// dropped reports whether list, from --drop-state, includes module.
func dropped(list []string, module string) bool {
	return slices.Contains(list, "*") || slices.Contains(list, module)
}

// giveUp sends the old generation the reason, then shuts down what was started.
func (t *takeover) giveUp(ctx context.Context, err error) error {
	var where *handoff.UpgradeError
	if !errors.As(err, &where) {
		where = fault(handoff.StageRestore, "", err)
	}
	t.p.Fail(ctx, where)
	if t.set != nil {
		t.set.progress = silent
		t.set.shutdown(ctx, mustStop)
	}
	return err
}

// commit takes over everything. From here on this generation owns it.
func (t *takeover) commit(ctx context.Context, commit *handoff.Commit, restore time.Duration) {
	g, took := t.g, time.Now()
	changed := t.markChanged()
	t.set.progress = silent
	needed := false
	for _, in := range t.set.list {
		if in.down != nil {
			in.kept, needed = t.statesOf(in.name), true
			t.notes = append(t.notes, fmt.Sprintf("module %s is still down: %v", in.name, in.down))
		}
	}
	if !needed {
		t.states.Close()
		for _, states := range t.torn {
			states.Close()
		}
	}
	t.notes = append(t.notes, commit.Notes...)
	t.lost = append(t.lost, commit.Lost...)
	g.leftBehind = commit.Left
	slow := map[string]time.Duration{}
	for name, ms := range commit.SlowMS {
		slow[name] = time.Duration(ms * float64(time.Millisecond))
	}
	g.server.Expect(slow)
	g.install(t.set)
	for _, path := range g.upgrader.Remade() {
		t.notes = append(t.notes, fmt.Sprintf("the socket %s had been removed: it is there again", path))
	}
	if err := g.upgrader.Open(); err != nil {
		g.log.Error("a listener failed after the commit", "err", err)
		t.notes = append(t.notes, fmt.Sprintf("nobody can connect: %v", err))
	}
	moved := 0
	g.server.Expecting(commit.Held)
	g.held.Resume(func(adopt func([]serve.Detached)) {
		failpoint.At(failpoint.Candidate, "at", "resumed")
		if !t.oldGone {
			moved = t.takeConns(ctx, adopt)
		}
		g.server.Expecting(0)
	})
	pause := commit.HeldMS + client.Milliseconds(time.Since(took))

	r := &control.Report{
		Generation: g.number,
		TookOver:   true,
		Standby:    commit.Probation && !t.oldGone,
		Changed:    changed,
		StagesMS:   map[client.Stage]float64{},
		Held:       commit.Held,
		Forwarded:  commit.Forwarded,
		Moved:      moved,
		Cancelled:  commit.Cancelled,
		Notes:      t.notes,
		Lost:       t.lost,
		HoldsMS:    commit.HoldsMS,
	}
	for stage, ms := range commit.StagesMS {
		r.StagesMS[client.Stage(stage)] = ms
	}
	r.StagesMS[client.StageRestore] = client.Milliseconds(restore) // without the transfer, which that of the old one includes
	r.StagesMS[client.StagePause] = pause
	for _, name := range changed {
		g.log.Info(fmt.Sprintf(logReloaded, name))
		eventbus.Publish(g.own, topics.ModuleReloaded, topics.Module{Name: name, Generation: g.number})
	}
	eventbus.Publish(g.own, topics.AppReloaded, topics.App{
		Generation: g.number, Outcome: string(client.Reloaded), Modules: changed,
		PauseMS: pause, Held: r.Held, Moved: r.Moved, Forwarded: r.Forwarded, Cancelled: r.Cancelled,
	})
	g.report(r)
	g.passSockets()
	failpoint.At(failpoint.Candidate, "at", "reported")
	final := make(chan bool, 1)
	g.final = final
	go func() { final <- t.passProbation() }() // serve waits for it
}

// takeConns adopts the connections that the old generation passes on, and
// returns how many of them are clients of the program.
func (t *takeover) takeConns(ctx context.Context, adopt func([]serve.Detached)) (moved int) {
	limit, cancel := context.WithTimeout(ctx, moveTime)
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
		t.waitGone(err) // that one takes everything back
		t.oldGone = true
	}
	return moved
}

// markChanged returns the modules with markChanged code or configuration.
func (t *takeover) markChanged() []string {
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
