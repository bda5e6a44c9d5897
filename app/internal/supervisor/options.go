// Package supervisor is the stable process of an orchestrator: the one that
// the terminal, systemd or a container sees. It starts the first generation,
// replaces each generation with the next, restarts the program when it crashes,
// and in development watches the sources and builds. It runs no code of
// modules.
//
// One goroutine, the loop of [Run], owns all state. Everything that happens
// reaches it as a value of a type in happenings.go; what that means depends on
// its state, see state.go. The operating system is behind a seam, see
// system.go, so tests run the real loop with their own workers, processes and
// time.
//
// Each part of the state has a file of its own: queue.go has the waiting
// reload, plan.go what the sources call for, builds.go the binaries, crashes.go
// what to do after crashes, eventlog.go the events. Only conclude.go decides the
// outcome of a reload.
package supervisor

import (
	"io"
	"log/slog"
)

// Options configure a supervisor.
type Options struct {
	ConfigFile string
	RunDir     string
	HotReload  bool
	Binary     string   // path of this program, absolute
	Package    string   // import path of the main package it was built from
	Flags      []string // additional flags for go build
	Debug      bool     // build with what debuggers need
	Direct     bool     // build without the go command where possible
	WorkerArgs []string // arguments that make the binary a worker
	Log        *slog.Logger
	Out        io.Writer // for people; it must not block
}
