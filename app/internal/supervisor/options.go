// Package supervisor is the stable process of an orchestrator: the one that
// the terminal, systemd or a container sees. It starts the first generation,
// has each following one replace the one before, restarts the program when it
// crashes, and in development watches the sources and builds. It runs no code
// of modules.
//
// One goroutine, the loop of [Run], owns all state. Everything that happens
// reaches it as a value of a type in happenings.go; what that means depends on
// its state, see state.go. The system is behind a seam, see system.go, so that
// the loop itself runs in tests with workers, processes and time of their own.
//
// The parts of the state have owners: queue.go the reloads that wait, plan.go
// what the sources want, builds.go the binaries, crashes.go what crashes call
// for, eventlog.go the events. What became of a reload is said in one place,
// conclude.go.
package supervisor

import (
	"io"
	"log/slog"
)

// Options are what a supervisor needs to know.
type Options struct {
	ConfigFile string
	RunDir     string
	HotReload  bool
	Binary     string   // of this program, absolute
	Package    string   // import path of the main package it was built from
	Flags      []string // of go build, beside our own
	Debug      bool     // keep what debuggers need in what is built
	Direct     bool     // build without the go command where that is possible
	WorkerArgs []string // arguments that make the binary a worker
	Log        *slog.Logger
	Out        io.Writer // for people; it must not block
}
