// Package app is everything that the command line calls, and a map of the
// packages behind it.
//
// An orchestrator is several processes of one binary:
//
//	Supervise   the stable process: app/internal/supervisor
//	Work        one generation of the program: app/internal/worker
//	Check       no process: it checks a configuration
//
// The packages of app/internal, from top to bottom; imports point down only:
//
//	supervisor   starts generations, replaces one with the next, watches, builds
//	worker       runs modules, hands over to the next generation
//	contract     what is asked of a module: the table of hooks, states, panics
//	control      the messages between supervisor and worker
//	serve        listeners, connections, HTTP
//	build        makes a binary from the sources
//	sources      the files that a build reads: which, their content, when to look
//	proc         starts and reaps processes
//	wire         JSON lines between processes of different builds
//	console      lines for people; printing never blocks
//
// Other repositories may import app/client, which talks to a running program,
// and for the modules they write app/eventbus and app/apptest.
package app

import (
	"io"
	"log/slog"
	"time"

	"example.org/orchestrator/app/internal/console"
	"example.org/orchestrator/app/internal/supervisor"
	"example.org/orchestrator/app/internal/worker"
	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

// SupervisorOptions configure a supervisor. [Supervise] sets Out and Log.
type SupervisorOptions = supervisor.Options

// WorkerOptions configure a generation. [Work] sets Out and Log.
type WorkerOptions = worker.Options

// flushTime is how long printing the last lines may take.
const flushTime = time.Second

// Supervise runs the stable process until the program ends, and returns the
// program's exit code. It prints to stderr and to the logger that log returns,
// and never waits for their readers.
func Supervise(opts SupervisorOptions, stderr io.Writer, log func(io.Writer) *slog.Logger) (int, error) {
	out := console.New(stderr)
	defer out.Flush(flushTime)
	opts.Out, opts.Log = out, log(out)
	return supervisor.Run(opts)
}

// Work runs one generation until it ends, and returns its process's exit code.
// It prints as [Supervise] does.
func Work(opts WorkerOptions, stderr io.Writer, log func(io.Writer) *slog.Logger) int {
	out := console.New(stderr)
	defer out.Flush(flushTime)
	opts.Out, opts.Log = out, log(out)
	return worker.Run(opts)
}

// Check checks a configuration and a list of modules without starting anything.
// Of a module it calls only the factory, Settings, State and DependsOn.
func Check(file string, list modules.List) error { return worker.Check(file, list) }

// Settings returns every setting of a configuration that [Check] accepts, with those of
// its modules.
func Settings(file string, list modules.List) ([]config.Setting, error) {
	return worker.Settings(file, list)
}

// Version is the version of this orchestrator. A test checks that CHANGELOG.md
// and config/main.yaml have the same.
const Version = "0.1.0"
