// Package modules is the contract between the orchestrator and the modules
// that are compiled into it.
//
// # The life of a module
//
//  1. The factory makes a value. Its State is valid from here on.
//  2. Prepare, if it has one: the slow or fallible part that needs nothing
//     exclusive. The old instance, in the old process, is still serving.
//  3. The old instance's Run context ends, its requests have finished, its
//     Shutdown is called and its State is exported.
//  4. The exported State is restored into the new value.
//  5. Initialize. Then Healthy, if it has one. An error of either, a panic or
//     a missed deadline sends everything back to the old process. There a fresh
//     value, which has prepared in step 2 as well, gets the State that is still in
//     memory, and goes through 5.
//  6. The new process has taken over: requests arrive, Run begins.
//  7. When the next reload begins or the program ends, 3 follows.
//
// A module owns neither sockets nor signals: the framework does, and that is
// why no connection closes when code is replaced.
//
// # The parts
//
// Only [Module] is mandatory. Everything else is found by type assertion:
// [Configured], [Stateful], [Preparer], [HealthChecker], [Runner], [Dependent],
// [ConnHandler], and http.Handler, which gets the requests below the module's
// path, with that prefix removed. So a module should state what it means to
// implement:
//
//	var _ modules.Stateful = (*Counter)(nil)
//
// A method with the name of an optional part's method but another signature is
// refused when the program starts.
package modules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/config"
)

// Module is what every module implements.
type Module interface {
	// Initialize starts the module. The module owns what Initialize opens, even
	// if Initialize returns an error: Shutdown follows in any case. ctx ends
	// with the call. bus is a fresh client that is closed after Shutdown. What
	// State points to has already been restored and must not be overwritten.
	//
	// What Initialize leaves on disk must be readable by the previous build,
	// because a rollback may follow. Irreversible work belongs in Run.
	Initialize(ctx context.Context, bus *eventbus.Bus, cfg Config) error

	// Shutdown gives back everything exclusive: files, locks, devices. It is
	// also called after a failed Initialize and after Prepare alone, so it must
	// cope with what was never opened. ctx carries its deadline. State is
	// exported afterwards.
	Shutdown(ctx context.Context) error
}

// Stateful modules carry state from one generation to the next.
type Stateful interface {
	// State describes what survives. It is called on values fresh from the factory
	// and after Shutdown, and never while the module serves. It points to the same
	// Value each time. After Shutdown nothing of the module touches that any more.
	State() State
}

// Preparer does what may be slow or fail before anything is touched.
type Preparer interface {
	// Prepare runs while another instance is still serving, even in the same
	// process: it must not take anything exclusive, such as a file lock or a name.
	// Shutdown follows if the reload goes no further.
	Prepare(ctx context.Context, cfg Config) error
}

// HealthChecker can veto a reload.
type HealthChecker interface {
	// Healthy is called after Initialize, before the new generation takes over,
	// and again during the probation. An error rolls the reload back.
	Healthy(ctx context.Context) error
}

// Runner works in the background.
type Runner interface {
	// Run begins once the module's generation serves. It must return soon after
	// ctx ends, which it does when a reload has everything else or the program
	// ends: within app.run_timeout, or the reload is refused; in development, and
	// with --force, it is left behind. It may be called again on the same value, if
	// a reload was called off before Shutdown. An error or an early return is only
	// logged.
	Run(ctx context.Context) error
}

// Dependent modules need other modules to start first.
type Dependent interface {
	// DependsOn names the modules that start before this one and stop after it.
	DependsOn() []string
}

// Configured modules have settings that are checked before anything is touched: by
// `orchestrator check`, at the start, and by a reload before the old module stops.
type Configured interface {
	// Settings points to a struct with yaml tags, and the defaults in it. The config:
	// part of the module's entry in main.yaml is stored there, as by [Config.Decode],
	// before any other hook is called. If the struct has a method Validate() error,
	// that is asked afterwards. Neither may touch anything outside. A doc tag of a
	// field is what `orchestrator config` says of it.
	Settings() any
}

// Config is what a module learns about the program around it. A module's tests
// make their own.
type Config struct {
	Name    string         // the module's name
	Log     *slog.Logger   // has the module's name attached
	Section config.Section // the config: part of the module's entry in main.yaml
	Caller  Caller         // reaches the other modules; see [Config.Call]
}

// Caller hands a request to a module of the same generation.
type Caller func(module string, r *http.Request) (*http.Response, error)

// Decode stores the module's settings, the config: part of its entry in
// main.yaml, in v, a pointer to a struct with yaml tags. Unknown keys and
// wrong types are errors that name file, line and column. What the file does
// not mention keeps its value in v, so set the defaults first.
func (c Config) Decode(v any) error { return c.Section.Decode(v) }

// ErrNotRunning means that a called module is not running, or not yet.
var ErrNotRunning = errors.New("module is not running")

// Call hands r to the HTTP handler of another module and returns the whole
// answer. The path of r is as the other module sees it, without that module's
// prefix. Call is a plain function call within the process, so it also works
// during a reload, when a request over the network would wait for itself. If
// Initialize or Shutdown calls a module, name it in DependsOn so that it is
// running.
func (c Config) Call(module string, r *http.Request) (*http.Response, error) {
	if c.Caller == nil {
		return nil, fmt.Errorf("modules: call %s: %w", module, ErrNotRunning)
	}
	return c.Caller(module, r)
}
