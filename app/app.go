// Package app is everything that the command line calls, and the map of the
// rooms behind it.
//
// An orchestrator is several processes of one binary:
//
//	Supervise   the stable process: app/internal/supervisor
//	Work        one generation of the program: app/internal/worker
//	Check       neither: it looks at a configuration
//
// The rooms of app/internal, from top to bottom; arrows between them point down
// only:
//
//	supervisor   starts generations, has one replace the other, watches, builds
//	worker       runs modules, hands over to the next generation
//	contract     what is asked of a module: the table of hooks, states, panics
//	control      what supervisor and worker say to each other
//	serve        listeners, connections, HTTP
//	build        sources -> binary
//	sources      what a build reads, what it says, when to look
//	proc         starts and reaps processes
//	wire         JSON lines between processes of different builds
//	console      lines for people, which never make anybody wait
//
// Others may use app/client, which talks to a running program, and, in the
// modules they write, app/eventbus and app/apptest.
package app

import (
	"io"
	"log/slog"
	"time"

	"example.org/orchestrator/app/internal/console"
	"example.org/orchestrator/app/internal/supervisor"
	"example.org/orchestrator/app/internal/worker"
	"example.org/orchestrator/modules"
)

// SupervisorOptions are what a supervisor needs to know. Out and Log are set by
// [Supervise].
type SupervisorOptions = supervisor.Options

// WorkerOptions are what a generation is made of. Out and Log are set by [Work].
type WorkerOptions = worker.Options

// flushTime is how long the last lines may take to be printed.
const flushTime = time.Second

// Supervise is the life of the stable process. It returns the program's exit
// code. It prints to stderr, and to a logger that log makes, and never waits
// for whoever reads that.
func Supervise(opts SupervisorOptions, stderr io.Writer, log func(io.Writer) *slog.Logger) (int, error) {
	out := console.New(stderr)
	defer out.Flush(flushTime)
	opts.Out, opts.Log = out, log(out)
	return supervisor.Run(opts)
}

// Work is the life of one generation's process. It returns its exit code, and
// prints as [Supervise] does.
func Work(opts WorkerOptions, stderr io.Writer, log func(io.Writer) *slog.Logger) int {
	out := console.New(stderr)
	defer out.Flush(flushTime)
	opts.Out, opts.Log = out, log(out)
	return worker.Run(opts)
}

// Check finds what is wrong with a configuration and a list of modules before
// anything is started. Factories are called, nothing else of a module is.
func Check(file string, list modules.List) error { return worker.Check(file, list) }

// Version is that of this orchestrator. CHANGELOG.md and config/main.yaml name
// the same one, which a test checks.
const Version = "0.1.0"
