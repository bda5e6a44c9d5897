package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/handoff"
	"example.org/orchestrator/modules"
)

// export writes the states of modules that were shut down, except doubtful ones. A
// state that cannot be exported is an error, unless mayFail(in, err), but the
// others are exported all the same. Missing states can still be carried: see
// [contract.Carry].
func (s *moduleSet) export(ctx context.Context, mayFail func(in *instance, err error) bool) (*handoff.States, error) {
	states, err := handoff.NewStates(s.maxState)
	if err != nil {
		return nil, fault(handoff.StageExport, "", err)
	}
	for in := range s.inOrder(contract.Export) {
		if in.doubtful {
			continue
		}
		if e := s.exportOne(ctx, states, in); e != nil && !mayFail(in, e) {
			err = errors.Join(err, fault(handoff.StageExport, in.name, e))
		}
	}
	return states, err
}

// exportDoubtful exports one doubtful state into a file of its own. Something may
// write to it meanwhile: the process may even die of that.
func (s *moduleSet) exportDoubtful(ctx context.Context, name string) (*handoff.States, error) {
	states, err := handoff.NewStates(s.maxState)
	if err != nil {
		return nil, err
	}
	if err := s.exportOne(ctx, states, s.find(name)); err != nil {
		states.Close()
		return nil, err
	}
	return states, nil
}

func (s *moduleSet) exportOne(ctx context.Context, states *handoff.States, in *instance) error {
	m, ok := in.module.(modules.Stateful)
	if !ok {
		return nil
	}
	if _, kept := in.kept.Version(in.name); kept && in.down != nil {
		return states.Copy(in.kept, in.name)
	}
	err := states.Add(in.name, in.version, s.limits[in.name], func(w io.Writer) error {
		out := &gate{w: w}
		defer out.close() // an encoder that was left behind writes nowhere
		return s.call(ctx, contract.Export, func(context.Context) error { return contract.Write(m.State(), out) })
	})
	if errors.Is(err, handoff.ErrTooLarge) {
		err = fmt.Errorf("%w (max_state, or app.max_state)", err)
	}
	if err != nil {
		err = fmt.Errorf("%w; a reload with --drop-state=%s starts it afresh", err, in.name)
	}
	return err
}

// gate passes writes on until it is closed.
type gate struct {
	mu sync.Mutex // guards w, and is held while it is written to
	w  io.Writer
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.w == nil {
		return 0, io.ErrClosedPipe
	}
	return g.w.Write(p)
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.w = nil
}

// restore gives each module the state exported under its name, migrated to its
// version. of returns where the state of a module is.
func (s *moduleSet) restore(of func(module string) *handoff.States) error {
	for in := range s.inOrder(contract.Restore) {
		if err := s.restoreOne(of(in.name), in); err != nil {
			return err
		}
	}
	return nil
}

func (s *moduleSet) restoreOne(states *handoff.States, in *instance) error {
	m, ok := in.module.(modules.Stateful)
	version, exported := states.Version(in.name)
	if !ok || !exported {
		return nil
	}
	s.progress(contract.Restore.Stage, in.name)
	err := states.Read(in.name, func(r *handoff.StateReader) error {
		return s.call(context.Background(), contract.Restore, func(context.Context) error { return contract.Read(m.State(), version, r) })
	})
	if err != nil {
		return fault(contract.Restore.Stage, in.name, err)
	}
	return nil
}

// readBack is restoreOne without a deadline, for the state of this very process: it
// is better late than lost.
func (s *moduleSet) readBack(states *handoff.States, in *instance) error {
	version, _ := states.Version(in.name)
	return states.Read(in.name, func(r *handoff.StateReader) error {
		return contract.Protect(contract.Restore.Name, func() error {
			return contract.Read(in.module.(modules.Stateful).State(), version, reading{r, s.alive})
		})
	})
}

// reading calls read before each read.
type reading struct {
	io.Reader
	read func()
}

func (r reading) Read(p []byte) (int, error) {
	r.read()
	return r.Reader.Read(p)
}

// accepts checks, before anything is touched, that the states of the old
// generation can be restored here. The notes are for people.
func (s *moduleSet) accepts(old []handoff.ModuleInfo) (notes []string, err error) {
	for _, info := range old {
		if !info.Stateful {
			continue
		}
		s.progress(handoff.StageConfig, info.Name)
		in := s.find(info.Name)
		if in == nil {
			notes = append(notes, fmt.Sprintf("the state of module %s is dropped: this build's configuration does not have the module", info.Name))
			continue
		}
		if !in.stateful() {
			notes = append(notes, fmt.Sprintf("the state of module %s is dropped: the module no longer has one", in.name))
			continue
		}
		added, err := compatible(info, in)
		if err != nil {
			return nil, fault(handoff.StageConfig, in.name, err)
		}
		for _, field := range added {
			notes = append(notes, fmt.Sprintf("state of module %s: %s", in.name, field))
		}
	}
	return notes, nil
}

// compatible returns an error if the state of in, a fresh value, cannot take what
// info describes, and otherwise a line for each field that is new.
func compatible(info handoff.ModuleInfo, in *instance) (added []string, err error) {
	state := in.module.(modules.Stateful).State()
	afresh := fmt.Sprintf("reload with --drop-state=%s to start afresh", info.Name)
	switch {
	case info.StateVersion > state.Version:
		return nil, fmt.Errorf("the running state has version %d, newer than this build's %d: %s", info.StateVersion, state.Version, afresh)
	case info.StateVersion < state.Version && state.Migrate == nil:
		return nil, fmt.Errorf("the running state has version %d, this build's %d and it has no Migrate: add one, or %s", info.StateVersion, state.Version, afresh)
	case info.StateVersion < state.Version || info.StateFields == nil:
		return nil, nil
	}
	broke, added := contract.Layout(info.StateFields).Changes(in.layout)
	if len(broke) > 0 {
		return nil, fmt.Errorf("the running state of version %d does not fit: %s: give the state a new Version and migrate it in Migrate, or %s", state.Version, strings.Join(broke, ", "), afresh)
	}
	return added, nil
}

// describe returns what a candidate needs to know about this generation's
// modules. It asks no module: all of them serve.
func (g *generation) describe() []handoff.ModuleInfo {
	g.mu.Lock()
	defer g.mu.Unlock()
	infos := make([]handoff.ModuleInfo, 0, len(g.set.list))
	for _, in := range g.set.list {
		info := handoff.ModuleInfo{Name: in.name, Digest: g.cfg.Digest(in.name), Since: in.since, Down: in.down != nil}
		if in.stateful() {
			info.Stateful, info.StateVersion, info.StateFields = true, in.version, in.layout
			if version, kept := in.kept.Version(in.name); kept && in.down != nil && version != in.version {
				info.StateVersion, info.StateFields = version, nil
			}
		}
		infos = append(infos, info)
	}
	return infos
}
