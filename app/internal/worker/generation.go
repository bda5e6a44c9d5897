// Package worker is the life of one generation: it starts the configured
// modules, serves their requests, hands everything over to the next generation
// when ordered to, and takes everything back if that one fails.
//
// The process of a generation is a worker. The supervisor gives it orders over a link
// of app/internal/control, and it stops when that link ends. [Run] is its whole
// life.
//
//	start ─▶ serving ─▶ holding ─▶ stopped ─▶ committed ─▶ exit
//	            ▲          │          │           │  (stands by)
//	            └── release ┴─ roll back ┴───────────┘   the candidate failed
//
// upgrade.go and commit.go are the old generation's side of a handoff,
// takeover.go and probation.go the new one's, rollback.go the way back. Package
// handoff carries the messages between them.
package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/serve"
	"example.org/orchestrator/app/internal/wire"
	"example.org/orchestrator/config"
	"example.org/orchestrator/handoff"
	"example.org/orchestrator/modules"
	"example.org/orchestrator/modules/topics"
)

// Log lines that people and tests search for.
const (
	logInitialized = "Application initialized (hot-reload=%s)"
	logReloaded    = "Module '%s' reloaded successfully"
)

// Options configure a generation.
type Options struct {
	ConfigFile string
	RunDir     string // as the supervisor resolved it
	Modules    modules.List
	Log        *slog.Logger
	Out        io.Writer // for people
}

// generation is a worker process.
type generation struct {
	opts     Options
	cfg      *config.Config
	number   int
	log      *slog.Logger
	upgrader *handoff.Upgrader
	link     *wire.Conn
	out      *wire.Queue // sends on link
	told     *telling    // sends events on it
	bus      *eventbus.Root
	own      *eventbus.Bus // the framework's client
	server   *serve.Server
	held     *serve.Held // until this generation serves for the first time
	routes   *routes
	listen   map[string]string // owner -> address; "" is HTTP

	beats beats

	listeners  []ownedListener
	untilFinal []net.Listener // those of earlier generations that end when this one is final

	starting    sync.Mutex  // held while modules of the set are started or stopped
	stopping    atomic.Bool // the program is stopping
	repairAsked atomic.Bool // this is a fresh process of its build, or one was asked for
	leftBehind  []string    // modules of which something still runs in the old generation
	final       <-chan bool // receives once, after the probation, whether this generation stays; nil without one

	mu   sync.Mutex // guards the fields below, which rollbacks replace
	set  *moduleSet
	runs *background
}

// Run runs a generation until it ends, and returns the process's exit code.
func Run(opts Options) int {
	log := opts.Log
	signals := catchSignals()
	upgrader, err := handoff.New()
	if err != nil {
		log.Error("cannot start", "err", err)
		return client.ExitFailed
	}
	g := &generation{
		opts:     opts,
		number:   upgrader.Generation(),
		log:      log.With("generation", upgrader.Generation()),
		upgrader: upgrader,
	}
	g.bus = eventbus.New(eventbus.Options{Log: g.log})
	g.own = g.bus.Client("orchestrator")
	g.routes = &routes{}
	g.link, err = wire.Dial(wire.Socket(opts.RunDir), wire.Hello{Role: wire.RoleWorker, Generation: g.number})
	if err != nil {
		g.log.Error("cannot reach the supervisor", "err", err)
		return client.ExitFailed
	}
	defer g.link.Close()
	// The supervisor must know this generation before the old one exits, or it
	// would conclude that none is left.
	var known control.Message
	if err := g.link.Receive(&known); err != nil || known.Type != control.TypeKnown {
		g.log.Error("the supervisor does not accept this worker", "got", known.Type, "err", err)
		return client.ExitFailed
	}
	g.out = wire.NewQueue(g.link)
	g.told = newTelling(g.number, g.out)
	g.bus.Tap(g.told.event)

	orders := make(chan control.Message)
	go g.receive(orders)        // ends with the link, which ends with the process
	go g.relay(signals, orders) // never ends

	start := g.startFirst
	if upgrader.HasPredecessor() {
		start = g.takeOver
	}
	if err := start(context.Background()); err != nil {
		if !upgrader.HasPredecessor() {
			var where *handoff.UpgradeError
			if errors.As(err, &where) && where.Stage == handoff.StageConfig {
				fmt.Fprintln(opts.Out, where.Err) // one line for each mistake
			} else {
				g.log.Error("cannot start", "err", err)
			}
		}
		if config.IsInvalid(err) {
			return control.ExitConfig
		}
		return client.ExitFailed
	}
	return g.serve(orders)
}

// receive passes on the supervisor's orders. When the supervisor is gone, the
// last order is to stop.
func (g *generation) receive(orders chan<- control.Message) {
	for {
		var m control.Message
		err := g.link.Receive(&m)
		if errors.Is(err, wire.ErrGarbled) {
			g.log.Warn("ignored a message of the supervisor", "err", err)
			continue
		}
		if err != nil {
			orders <- control.Message{Type: control.TypeStop, Error: "the supervisor is gone"}
			return
		}
		orders <- m
	}
}

// relayTime is how long the supervisor may take to order a stop after a signal was
// relayed to it.
const relayTime = 2 * time.Second

// relay tells the supervisor of signals that ask the program to stop: it stops the
// program once, whichever processes got how many of them. If it does not, this
// process stops by itself.
func (g *generation) relay(signals <-chan os.Signal, orders chan<- control.Message) {
	for sig := range signals {
		g.send(control.Message{Type: control.TypeSignal, Signal: sig.String()})
		time.AfterFunc(relayTime, func() {
			if !g.stopping.Load() {
				orders <- control.Message{Type: control.TypeStop, Error: "the supervisor does not answer"}
			}
		})
	}
}

// load reads the configuration.
func (g *generation) load() error {
	cfg, err := config.Load(g.opts.ConfigFile, g.opts.Modules.Names())
	if err != nil {
		return fault(handoff.StageConfig, "", err)
	}
	if filepath.Clean(cfg.App.RunDir) != filepath.Clean(g.opts.RunDir) {
		return fault(handoff.StageConfig, "", cfg.ErrorAt("app.run_dir", "it changed from %q to %q, which a reload cannot do: restart run", g.opts.RunDir, cfg.App.RunDir))
	}
	g.cfg = cfg
	return nil
}

// assemble makes the modules and the server, and starts neither.
func (g *generation) assemble(progress func(stage, module string)) (*moduleSet, error) {
	progress(handoff.StageConfig, "")
	if err := contract.CheckList(g.opts.Modules); err != nil {
		var entry *contract.EntryError
		errors.As(err, &entry)
		return nil, fault(handoff.StageConfig, entry.Module, entry.Err)
	}
	set, err := newModuleSet(g.cfg, g.opts.Modules, g.bus, g.log, g.routes.call, progress)
	if err != nil {
		return nil, err
	}
	set.started, set.beat = g.routes.started, g.beat
	g.routes.development, g.routes.guard = g.cfg.App.HotReload, newGuard(g.cfg.App)
	g.routes.begin()
	security, err := loadTLS(g.cfg)
	if err != nil {
		return nil, fault(handoff.StageConfig, "", err)
	}
	g.server, g.held = serve.New(g.routes, serve.Options{
		Log:       g.log,
		TLS:       security,
		Stream:    g.routes.handleConn,
		Moving:    modules.ErrMoving,
		Reloading: modules.ErrReloading,
		Owner:     g.routes.owner,
		Limits:    clientLimits(g.cfg.App),
	})
	return set, nil
}

// startFirst starts a first generation.
func (g *generation) startFirst(ctx context.Context) error {
	if err := g.load(); err != nil {
		return err
	}
	set, err := g.assemble(silent)
	if err != nil {
		return err
	}
	g.set = set
	err = g.bind()
	if err == nil {
		err = set.prepare(ctx)
	}
	if err == nil {
		err = set.initialize(ctx, never)
	}
	if err == nil {
		err = g.upgrader.Ready()
	}
	if err != nil {
		return errors.Join(err, set.shutdown(ctx, mustStop))
	}
	for _, in := range set.list {
		in.since = g.number
	}
	g.install(set)
	g.held.Release()
	g.closeReplaced()
	mode := "disabled"
	if g.cfg.App.HotReload {
		mode = "enabled"
	}
	g.log.Info(fmt.Sprintf(logInitialized, mode), "listen", g.listen[""], "pid", os.Getpid())
	g.report(nil)
	g.passSockets()
	return nil
}

// install routes requests to the modules of set and begins their background
// work. Modules that are down answer 503 and are started again until they run.
func (g *generation) install(set *moduleSet) {
	g.routes.mount(g.cfg, set)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.set = set
	g.beginRunsLocked(set, nil)
}

// beginRunsLocked begins the background work of set. That of a module waits until
// its earlier one has ended, in this process, and in the old generation if
// something was left behind there. g.mu is held.
func (g *generation) beginRunsLocked(set *moduleSet, earlier *background) {
	runs := newBackground()
	g.runs = runs
	for _, in := range set.list {
		if in.down == nil {
			runs.run(in, func(ctx context.Context, module string) error {
				if earlier != nil {
					if err := earlier.await(ctx, module); err != nil {
						return err
					}
				}
				if slices.Contains(g.leftBehind, module) {
					return g.upgrader.WaitForParent(ctx)
				}
				return nil
			})
			continue
		}
		g.routes.fail(in.name, in.down)
		runs.do(in.name, func(ctx context.Context) { g.recoverModule(ctx, runs, in) })
	}
}

// report sends the supervisor what this generation serves. upgrade, unless nil,
// is the report of the upgrade that led to it.
func (g *generation) report(upgrade *control.Report) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := &control.Serving{
		Name:      g.cfg.App.Name,
		Version:   g.cfg.App.Version,
		HotReload: g.cfg.App.HotReload,
		Listen:    []string{g.listen[""]},
		Modules:   []client.Module{},
		Packages:  map[string]string{},
		StopMS:    g.limits().stop().Milliseconds(),
		StartMS:   (2 * g.limits().allHooks()).Milliseconds(),
		QueueMS:   g.cfg.App.CrashQueue.Milliseconds(),
		Report:    upgrade,

		RestartOlderBuild: g.cfg.App.RestartOlderBuild,
	}
	for _, in := range g.set.list {
		m := client.Module{Name: in.name, State: client.ModuleRunning, Generation: in.since, Listen: g.listen[in.name]}
		if in.down != nil {
			m.State, m.Error, s.Degraded = client.ModuleFailed, in.down.Error(), true
		}
		_, m.Stateful = in.module.(modules.Stateful)
		s.Modules = append(s.Modules, m)
		s.Packages[in.name] = contract.Package(in.module)
	}
	g.send(control.Message{Type: control.TypeServing, Serving: s})
}

// limits returns the limits of this generation alone.
func (g *generation) limits() limits {
	app := g.cfg.App
	return limits{modules: len(g.cfg.Modules), hook: app.HookTimeout, run: app.RunTimeout, drain: app.Drain, maxFreeze: app.MaxFreeze, stopMost: app.StopTimeout}
}

// send queues a message to the supervisor. If the supervisor is gone, this
// process soon stops too.
func (g *generation) send(m control.Message) {
	g.out.Push(m)
}

// affected returns the modules of set that a change of packages concerns: all of
// them if that is unknown.
func affected(set *moduleSet, changed []string, unknown bool) []string {
	if unknown {
		return set.names()
	}
	names := []string{}
	for _, in := range set.list {
		if slices.Contains(changed, contract.Package(in.module)) {
			names = append(names, in.name)
		}
	}
	return names
}

// publishFailure publishes a failed reload to the modules.
func (g *generation) publishFailure(f *control.Failure) {
	topic := topics.ModuleReloadFailed
	if f.RolledBack {
		topic = topics.ModuleRolledBack
	}
	for _, name := range f.App.Modules {
		eventbus.Publish(g.own, topic, topics.Module{Name: name, Generation: f.App.Generation, Stage: f.App.Stage, Error: f.App.Error})
	}
	eventbus.Publish(g.own, topics.AppReloadFailed, f.App)
}
