package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"time"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/config"
	"example.org/orchestrator/handoff"
	"example.org/orchestrator/modules"
)

// instance is one value of one module.
type instance struct {
	name   string
	module modules.Module
	cfg    modules.Config
	bus    *eventbus.Bus

	touched bool // Prepare or Initialize was called, so Shutdown must be
	stuck   bool // its Shutdown did not return, so its state may not be looked at
	since   int  // generation in which its code or configuration changed last

	// down is why the module does not run though its generation serves, nil
	// if it does. What it starts from, once it can, is in kept, or if kept
	// has nothing in its own State. Guarded by generation.mu once it serves.
	down error
	kept *handoff.States
}

// moduleSet is the modules of a generation, in start order.
type moduleSet struct {
	list []*instance
	root *eventbus.Root
	hook time.Duration // deadline of each hook

	maxState int64            // of all states together
	limits   map[string]int64 // of each state

	// progress is told before each hook which stage of which module comes.
	progress func(stage, module string)

	// started is told of each module whose Initialize has succeeded.
	started func(name string, m modules.Module)
}

// fault is an error of a hook.
func fault(stage, module string, err error) *handoff.UpgradeError {
	return &handoff.UpgradeError{Stage: stage, Module: module, Err: err}
}

// newModuleSet makes a fresh value of each configured module, and tells
// progress of each.
func newModuleSet(cfg *config.Config, compiled modules.List, root *eventbus.Root, log *slog.Logger, call modules.Caller, progress func(stage, module string)) (*moduleSet, error) {
	s := &moduleSet{
		root:     root,
		hook:     cfg.App.HookTimeout,
		maxState: int64(cfg.App.MaxState),
		limits:   map[string]int64{},
		progress: progress,
		started:  func(string, modules.Module) {},
	}
	for i, m := range cfg.Modules {
		s.limits[m.Name] = int64(cmp.Or(m.MaxState, cfg.App.MaxState))
		progress(handoff.StageConfig, m.Name)
		value, err := compiled.New(m.Name)
		if err != nil {
			return nil, fault(handoff.StageConfig, m.Name, err)
		}
		if _, ok := value.(modules.ConnHandler); m.Listen != "" && !ok {
			return nil, fault(handoff.StageConfig, m.Name, cfg.ErrorAt(fmt.Sprintf("modules[%d].listen", i), "module %q takes no connections of its own: it has no HandleConn", m.Name))
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
			s.progress(handoff.StageConfig, in.name)
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

// initialize starts every module and asks for its health, in start order. A
// module that mayFail may, and is down then: it did not run before either.
func (s *moduleSet) initialize(ctx context.Context, mayFail func(name string) bool) error {
	for _, in := range s.list {
		err := s.start(ctx, in)
		if err != nil && !mayFail(in.name) {
			return err
		}
		in.down = err
	}
	for _, in := range s.list {
		err := s.healthy(ctx, in)
		if err != nil && !mayFail(in.name) {
			return err
		}
		if in.down == nil {
			in.down = err
		}
	}
	return nil
}

// never is for modules of which none may fail.
func never(string) bool { return false }

// healthy asks a module that runs for its health.
func (s *moduleSet) healthy(ctx context.Context, in *instance) error {
	h, ok := in.module.(modules.HealthChecker)
	if !ok || in.down != nil {
		return nil
	}
	s.progress(handoff.StageHealthy, in.name)
	if err := s.call(ctx, "Healthy", h.Healthy); err != nil {
		return fault(handoff.StageHealthy, in.name, err)
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
	s.started(in.name, in.module)
	return nil
}

// silent is for those who need not know of progress.
func silent(stage, module string) {}

// shutdown stops every touched module in reverse order. All are stopped, also
// when one fails; the first error is returned, but for those of modules that
// mayFail.
func (s *moduleSet) shutdown(ctx context.Context, mayFail func(name string) bool) error {
	var first error
	for _, in := range slices.Backward(s.list) {
		if err := s.stop(ctx, in); err != nil && first == nil && !mayFail(in.name) {
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
	in.stuck = errors.Is(err, errLate)
	if in.bus != nil {
		in.bus.Close()
		err = errors.Join(err, s.call(ctx, "event subscriber", in.bus.Wait))
	}
	if in.stuck {
		err = fmt.Errorf("%w; a reload with --drop-state=%s goes on without its state", err, in.name)
	}
	if err != nil {
		return fault(handoff.StageShutdown, in.name, err)
	}
	return nil
}

// errLate marks a hook that has missed its deadline and been left behind.
var errLate = errors.New("still runs")

// call runs a hook with its deadline and turns a panic into an error. A hook
// that misses its deadline is left behind.
func (s *moduleSet) call(ctx context.Context, hook string, f func(context.Context) error) error {
	limit := s.hook
	if debugged() {
		limit = 24 * time.Hour
	}
	over := fmt.Errorf("%s after %v (app.hook_timeout)", hook, limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, over)
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
			return fmt.Errorf("%w: %w", errLate, context.Cause(ctx))
		}
	}
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
