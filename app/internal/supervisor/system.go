//go:build unix

package supervisor

import (
	"context"
	"net"
	"os"

	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/sources"
)

// system is the seam between the loop and the operating system. Tests put
// their own functions here.
type system struct {
	// start runs binary as generation n, the first of its line, with these
	// arguments. exited receives once.
	start func(binary string, args []string, n int) (pid int, exited <-chan proc.Status, err error)

	terminate func(pid int) // SIGTERM
	kill      func(pid int) // SIGKILL
	killGroup func(group int)

	// exited returns how a child ended; ok is false if that is not known.
	exited    func(pid int) (status proc.Status, ok bool)
	childless func() bool

	// image is a file with the code that a process runs, which was started
	// from binary.
	image func(pid int, binary string) string

	// lock keeps a second supervisor out of the run_dir. What it returns is
	// released with the program.
	lock func() (release func(), err error)

	// listen makes the control socket, in the place of one that is there.
	listen func() (net.Listener, error)

	builder func(ctx context.Context) (build.Builder, error)
	watch   func(sources.Set) watcher

	signals  <-chan os.Signal
	terminal func() bool // whether there is a controlling terminal
}

// watcher says when to look at the sources: see [sources.Watcher].
type watcher interface {
	Watch(sources.Set)
	Changed() <-chan struct{}
	Close()
}
