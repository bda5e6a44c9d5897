package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"orchestrator/app/eventbus"
	"orchestrator/config"
	"orchestrator/handoff"
	"orchestrator/modules"
)

// instance is one value of one module.
type instance struct {
	name   string
	module modules.Module
	cfg    modules.Config
	bus    *eventbus.Bus

	touched bool // Prepare or Initialize was called, so Shutdown must be
	since   int  // generation in which its code or configuration changed last
}

// moduleSet is the modules of a generation, in start order.
type moduleSet struct {
	list []*instance
	root *eventbus.Root
	hook time.Duration // deadline of each hook

	// progress is told before each hook which stage of which module comes.
	progress func(stage, module string)
}

// fault is an error of a hook.
func fault(stage, module string, err error) *handoff.UpgradeError {
	return &handoff.UpgradeError{Stage: stage, Module: module, Err: err}
}

// newModuleSet makes a fresh value of each configured module.
func newModuleSet(cfg *config.Config, compiled modules.List, root *eventbus.Root, log *slog.Logger, call modules.Caller) (*moduleSet, error) {
	s := &moduleSet{root: root, hook: cfg.App.HookTimeout, progress: func(string, string) {}}
	for i, m := range cfg.Modules {
		value, err := compiled.New(m.Name)
		if err != nil {
			return nil, fault(handoff.StageConfig, m.Name, err)
		}
		if m.Listen != "" {
			return nil, fault(handoff.StageConfig, m.Name, cfg.ErrorAt(fmt.Sprintf("modules[%d].listen", i), "module %q takes no connections of its own", m.Name))
		}
		s.list = append(s.list, &instance{
			name:   m.Name,
			module: value,
			cfg:    modules.NewConfig(m.Name, log, m.Config, call),
		})
	}
	return s, s.sort(cfg)
}

// sort moves modules behind those they depend on and leaves the order of the
// configuration alone otherwise.
func (s *moduleSet) sort(cfg *config.Config) error {
	index := map[string]int{}
	for i, in := range s.list {
		index[in.name] = i
	}
	const visiting, done = 1, 2
	state := map[string]int{}
	sorted := make([]*instance, 0, len(s.list))
	var visit func(in *instance, path []string) error
	visit = func(in *instance, path []string) error {
		key := fmt.Sprintf("modules[%d].name", index[in.name])
		switch state[in.name] {
		case done:
			return nil
		case visiting:
			return fault(handoff.StageConfig, in.name, cfg.ErrorAt(key, "modules depend on each other in a circle: %v", append(path, in.name)))
		}
		state[in.name] = visiting
		if d, ok := in.module.(modules.Dependent); ok {
			for _, name := range d.DependsOn() {
				i, ok := index[name]
				if !ok {
					return fault(handoff.StageConfig, in.name, cfg.ErrorAt(key, "module %q depends on %q, which is not listed under modules", in.name, name))
				}
				if err := visit(s.list[i], append(path, in.name)); err != nil {
					return err
				}
			}
		}
		state[in.name] = done
		sorted = append(sorted, in)
		return nil
	}
	for _, in := range s.list {
		if err := visit(in, nil); err != nil {
			return err
		}
	}
	s.list = sorted
	return nil
}

func (s *moduleSet) find(name string) *instance {
	for _, in := range s.list {
		if in.name == name {
			return in
		}
	}
	return nil
}

func (s *moduleSet) names() []string {
	names := make([]string, 0, len(s.list))
	for _, in := range s.list {
		names = append(names, in.name)
	}
	return names
}

// prepare runs every Prepare, in start order.
func (s *moduleSet) prepare(ctx context.Context) error {
	for _, in := range s.list {
		p, ok := in.module.(modules.Preparer)
		if !ok {
			continue
		}
		in.touched = true
		s.progress(handoff.StagePrepare, in.name)
		if err := s.call(ctx, "Prepare", func(ctx context.Context) error { return p.Prepare(ctx, in.cfg) }); err != nil {
			return fault(handoff.StagePrepare, in.name, err)
		}
	}
	return nil
}

// initialize starts every module and asks for its health, in start order.
func (s *moduleSet) initialize(ctx context.Context) error {
	for _, in := range s.list {
		if err := s.start(ctx, in); err != nil {
			return err
		}
	}
	for _, in := range s.list {
		h, ok := in.module.(modules.HealthChecker)
		if !ok {
			continue
		}
		s.progress(handoff.StageHealthy, in.name)
		if err := s.call(ctx, "Healthy", h.Healthy); err != nil {
			return fault(handoff.StageHealthy, in.name, err)
		}
	}
	return nil
}

// start initializes one module with a fresh client of the bus.
func (s *moduleSet) start(ctx context.Context, in *instance) error {
	s.progress(handoff.StageInitialize, in.name)
	in.touched = true
	in.bus = s.root.Client(in.name)
	err := s.call(ctx, "Initialize", func(ctx context.Context) error { return in.module.Initialize(ctx, in.bus, in.cfg) })
	if err != nil {
		return fault(handoff.StageInitialize, in.name, err)
	}
	return nil
}

// shutdown stops every touched module in reverse order. All are stopped, also
// when one fails; the first error is returned.
func (s *moduleSet) shutdown(ctx context.Context) error {
	var first error
	for _, in := range slices.Backward(s.list) {
		if err := s.stop(ctx, in); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (s *moduleSet) stop(ctx context.Context, in *instance) error {
	if !in.touched {
		return nil
	}
	in.touched = false
	err := s.call(ctx, "Shutdown", in.module.Shutdown)
	if in.bus != nil {
		in.bus.Close()
		err = errors.Join(err, s.call(ctx, "event subscriber", in.bus.Wait))
	}
	if err != nil {
		return fault(handoff.StageShutdown, in.name, err)
	}
	return nil
}

// call runs a hook with its deadline and turns a panic into an error. A hook
// that misses its deadline is left behind.
func (s *moduleSet) call(ctx context.Context, hook string, f func(context.Context) error) error {
	limit := s.hook
	if debugged() {
		limit = 24 * time.Hour
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s still runs after %v (app.hook_timeout)", hook, limit))
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("%s panicked: %v\n%s", hook, p, debug.Stack())
			}
		}()
		done <- f(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		// Returning because of the deadline is not the same as missing it.
		select {
		case err := <-done:
			if err != nil {
				return err
			}
			return nil
		case <-time.After(50 * time.Millisecond):
			return context.Cause(ctx)
		}
	}
}

// export encodes what survives, after Shutdown. A module whose state cannot
// be encoded is an error, but the others are exported.
func (s *moduleSet) export() (states []handoff.State, err error) {
	for _, in := range s.list {
		m, ok := in.module.(modules.Stateful)
		if !ok {
			continue
		}
		state := m.State()
		var data []byte
		e := protect("State", func() error {
			var err error
			data, err = json.Marshal(state.Value)
			return err
		})
		if e != nil {
			err = errors.Join(err, fault(handoff.StageExport, in.name, e))
			continue
		}
		states = append(states, handoff.State{Module: in.name, Version: state.Version, Data: data})
	}
	return states, err
}

// restore gives each module what its name exported, lifted to its version.
func (s *moduleSet) restore(states []handoff.State) error {
	for _, exported := range states {
		in := s.find(exported.Module)
		if in == nil {
			continue
		}
		m, ok := in.module.(modules.Stateful)
		if !ok {
			continue
		}
		s.progress(handoff.StageRestore, in.name)
		err := protect("State", func() error { return restoreOne(m.State(), exported) })
		if err != nil {
			return fault(handoff.StageRestore, in.name, err)
		}
	}
	return nil
}

func restoreOne(state modules.State, exported handoff.State) error {
	decode := func(v any) error {
		if err := json.NewDecoder(bytes.NewReader(exported.Data)).Decode(v); err != nil {
			return fmt.Errorf("decode the state of version %d: %w", exported.Version, err)
		}
		return nil
	}
	if exported.Version == state.Version {
		return decode(state.Value)
	}
	return state.Migrate(exported.Version, decode)
}

// accepts tells before anything is touched whether the states of the old
// generation can be restored here.
func (s *moduleSet) accepts(old []handoff.ModuleInfo) error {
	for _, info := range old {
		in := s.find(info.Name)
		if in == nil || !info.Stateful {
			continue
		}
		m, ok := in.module.(modules.Stateful)
		if !ok {
			continue
		}
		state := m.State()
		v := reflect.ValueOf(state.Value)
		switch {
		case v.Kind() != reflect.Pointer || v.IsNil():
			return fault(handoff.StageConfig, in.name, fmt.Errorf("State().Value must be a pointer that is not nil, got %T", state.Value))
		case info.StateVersion > state.Version:
			return fault(handoff.StageConfig, in.name, fmt.Errorf("the running state has version %d, newer than this build's %d: reload with --drop-state=%s to start afresh", info.StateVersion, state.Version, in.name))
		case info.StateVersion < state.Version && state.Migrate == nil:
			return fault(handoff.StageConfig, in.name, fmt.Errorf("the running state has version %d, this build's %d and it has no Migrate: add one, or reload with --drop-state=%s", info.StateVersion, state.Version, in.name))
		}
	}
	return nil
}

// describe is what a candidate needs to know of this generation's modules.
func (s *moduleSet) describe(cfg *config.Config) []handoff.ModuleInfo {
	infos := make([]handoff.ModuleInfo, 0, len(s.list))
	for _, in := range s.list {
		info := handoff.ModuleInfo{Name: in.name, Digest: cfg.Digest(in.name), Since: in.since}
		if m, ok := in.module.(modules.Stateful); ok {
			info.Stateful, info.StateVersion = true, m.State().Version
		}
		infos = append(infos, info)
	}
	return infos
}

// protect turns a panic of f into an error.
func protect(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s panicked: %v\n%s", what, p, debug.Stack())
		}
	}()
	return f()
}

// background is the Run calls of a generation.
type background struct {
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

// run calls every Run.
func (s *moduleSet) run() *background {
	ctx, cancel := context.WithCancel(context.Background())
	b := &background{cancel: cancel}
	for _, in := range s.list {
		r, ok := in.module.(modules.Runner)
		if !ok {
			continue
		}
		b.tasks.Go(func() {
			err := protect("Run", func() error { return r.Run(ctx) })
			if err != nil && ctx.Err() == nil {
				in.cfg.Log.Error("module's Run ended", "err", err)
			}
		})
	}
	return b
}

// end tells every Run to return and waits for it.
func (b *background) end(ctx context.Context) error {
	b.cancel()
	done := make(chan struct{})
	go func() {
		b.tasks.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a module's Run does not return: %w", context.Cause(ctx))
	}
}
