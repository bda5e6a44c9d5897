package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"

	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/config"
	"example.org/orchestrator/handoff"
	"example.org/orchestrator/modules"
)

// export writes the states of modules that were shut down. A state that cannot
// be exported is an error, unless mayFail(name), but the others are exported all
// the same. Missing states can still be carried: see [carry].
func (s *moduleSet) export(ctx context.Context, mayFail func(name string) bool) (*handoff.States, error) {
	states, err := handoff.NewStates(s.maxState)
	if err != nil {
		return nil, fault(handoff.StageExport, "", err)
	}
	for in := range s.inOrder(contract.Export) {
		if e := s.exportOne(ctx, states, in); e != nil && !mayFail(in.name) {
			err = errors.Join(err, fault(handoff.StageExport, in.name, e))
		}
	}
	return states, err
}

func (s *moduleSet) exportOne(ctx context.Context, states *handoff.States, in *instance) error {
	m, ok := in.module.(modules.Stateful)
	if !ok || in.stuck {
		return nil
	}
	if _, kept := in.kept.Version(in.name); kept && in.down != nil {
		return states.Copy(in.kept, in.name)
	}
	var state modules.State
	if err := contract.Protect("State", func() error { state = m.State(); return nil }); err != nil {
		return err
	}
	err := states.Add(in.name, state.Version, s.limits[in.name], func(w io.Writer) error {
		out := &gate{w: w}
		defer out.close() // an encoder that was left behind writes nowhere
		return s.call(ctx, contract.Export, func(context.Context) error { return contract.Write(state, out) })
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
// version.
func (s *moduleSet) restore(states *handoff.States) error {
	for in := range s.inOrder(contract.Restore) {
		if err := s.restoreOne(states, in); err != nil {
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

// carry copies the state of the instance from to the instance to, without encoding it. Both are of the same
// build, and from was shut down. It is for modules that start again in their own
// process, when their state could not be exported.
func carry(from, to *instance) error {
	old, ok := from.module.(modules.Stateful)
	if !ok || from.stuck {
		return nil
	}
	return contract.Protect("State", func() error {
		source := reflect.ValueOf(old.State().Value).Elem()
		reflect.ValueOf(to.module.(modules.Stateful).State().Value).Elem().Set(source)
		return nil
	})
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
		m, ok := in.module.(modules.Stateful)
		if !ok {
			notes = append(notes, fmt.Sprintf("the state of module %s is dropped: the module no longer has one", in.name))
			continue
		}
		added, err := compatible(info, m.State())
		if err != nil {
			return nil, fault(handoff.StageConfig, in.name, err)
		}
		for _, field := range added {
			notes = append(notes, fmt.Sprintf("state of module %s: %s", in.name, field))
		}
	}
	return notes, nil
}

// compatible returns an error if state cannot take what info describes, and
// otherwise a line for each field that is new.
func compatible(info handoff.ModuleInfo, state modules.State) (added []string, err error) {
	afresh := fmt.Sprintf("reload with --drop-state=%s to start afresh", info.Name)
	switch {
	case info.StateVersion > state.Version:
		return nil, fmt.Errorf("the running state has version %d, newer than this build's %d: %s", info.StateVersion, state.Version, afresh)
	case info.StateVersion < state.Version && state.Migrate == nil:
		return nil, fmt.Errorf("the running state has version %d, this build's %d and it has no Migrate: add one, or %s", info.StateVersion, state.Version, afresh)
	case info.StateVersion < state.Version || info.StateFields == nil:
		return nil, nil
	}
	layout, err := contract.LayoutOf(state.Value)
	if err != nil {
		return nil, err
	}
	broke, added := contract.Layout(info.StateFields).Changes(layout)
	if len(broke) > 0 {
		return nil, fmt.Errorf("the running state of version %d does not fit: %s: give the state a new Version and migrate it in Migrate, or %s", state.Version, strings.Join(broke, ", "), afresh)
	}
	return added, nil
}

// describe returns what a candidate needs to know about this generation's
// modules.
func (s *moduleSet) describe(cfg *config.Config) ([]handoff.ModuleInfo, error) {
	infos := make([]handoff.ModuleInfo, 0, len(s.list))
	for _, in := range s.list {
		info := handoff.ModuleInfo{Name: in.name, Digest: cfg.Digest(in.name), Since: in.since, Down: in.down != nil}
		if m, ok := in.module.(modules.Stateful); ok {
			var state modules.State
			if err := contract.Protect("State", func() error { state = m.State(); return nil }); err != nil {
				return nil, fault(handoff.StagePrepare, in.name, err)
			}
			info.Stateful, info.StateVersion = true, state.Version
			info.StateFields, _ = contract.LayoutOf(state.Value) // checked when it was made
			if version, kept := in.kept.Version(in.name); kept && in.down != nil && version != state.Version {
				info.StateVersion, info.StateFields = version, nil
			}
		}
		infos = append(infos, info)
	}
	return infos, nil
}
