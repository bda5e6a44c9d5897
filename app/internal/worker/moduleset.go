package worker

import (
	"cmp"
	"fmt"
	"log/slog"
	"time"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/app/internal/contract"
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

	touched  bool // Prepare or Initialize was called, so Shutdown must be called
	stuck    bool // Shutdown or a subscriber did not return
	doubtful bool // something still runs that may write to the state: it is not carried in memory

	// What a fresh value has said about its state: State is never called while a
	// module serves.
	version int
	layout  contract.Layout
	since   int // generation in which its code or configuration last changed

	// down is why the module does not run although its generation serves; nil
	// if it runs. Once it can start, it starts from its state in kept or, if
	// kept has none, from its own State. Both are guarded by generation.mu
	// once the generation serves.
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

	// progress is called before each hook, with its stage and module.
	progress func(stage, module string)

	beat func() // called before each hook; may be nil

	// started is called for each module after its Initialize has succeeded.
	started func(name string, m modules.Module)
}

// newModuleSet makes a fresh value of each configured module, and calls progress
// before each.
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
		s.limits[m.Name] = stateLimit(cfg, m)
		progress(handoff.StageConfig, m.Name)
		value, err := contract.New(compiled, m.Name)
		if err != nil {
			return nil, fault(handoff.StageConfig, m.Name, err)
		}
		if err := contract.Configure(value, m.Config); err != nil {
			return nil, fault(handoff.StageConfig, m.Name, err)
		}
		if _, ok := value.(modules.ConnHandler); m.Listen != "" && !ok {
			return nil, fault(handoff.StageConfig, m.Name, cfg.ErrorAt(fmt.Sprintf("modules[%d].listen", i), "module %q cannot listen: it has no HandleConn", m.Name))
		}
		s.list = append(s.list, newInstance(m.Name, value, modules.Config{Name: m.Name, Log: log.With("module", m.Name), Section: m.Config, Caller: call}))
	}
	return s, s.sort(cfg)
}

// alive says that this process is.
func (s *moduleSet) alive() {
	if s.beat != nil {
		s.beat()
	}
}

// newInstance takes a value fresh from its factory, which [contract.New] has
// checked.
func newInstance(name string, value modules.Module, cfg modules.Config) *instance {
	in := &instance{name: name, module: value, cfg: cfg}
	if m, ok := value.(modules.Stateful); ok {
		state := m.State()
		in.version = state.Version
		in.layout, _ = contract.LayoutOf(state.Value)
	}
	return in
}

func (in *instance) stateful() bool {
	_, ok := in.module.(modules.Stateful)
	return ok
}

// stateLimit returns the limit of a module's state in bytes.
func stateLimit(cfg *config.Config, m config.Module) int64 {
	return int64(cmp.Or(m.MaxState, cfg.App.MaxState))
}

// apply makes the deadlines and limits those of a reload.
func (s *moduleSet) apply(t terms) {
	s.hook, s.maxState, s.limits = t.Hook, t.MaxState, t.StateLimit
}

// sort moves modules behind those they depend on. Otherwise it keeps the order
// of the configuration.
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
			return fault(handoff.StageConfig, in.name, cfg.ErrorAt(key, "modules depend on each other in a cycle: %v", append(path, in.name)))
		}
		state[in.name] = visiting
		if d, ok := in.module.(modules.Dependent); ok {
			s.progress(contract.DependsOn.Stage, in.name)
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
