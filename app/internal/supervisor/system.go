//go:build unix

package supervisor

import (
	"context"
	"net"
	"os"
	"time"

	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/sources"
)

// system is the seam between the loop and the operating system. Tests put
// their own functions here.
type system struct {
	// start runs binary with args as generation n, which has no predecessor.
	// It inherits listening sockets with these keys. exited receives its status
	// once.
	start func(binary string, args []string, n int, keys []string, sockets []*os.File) (pid int, exited <-chan proc.Status, err error)

	terminate func(pid int) // SIGTERM
	kill      func(pid int) // SIGKILL
	killGroup func(group int)
	groupGone func(group int) bool // no process is in it

	// exited returns how a child ended; ok is false if that is unknown.
	exited    func(pid int) (status proc.Status, ok bool)
	childless func() bool

	// image returns a file with the code that a process runs. The process was
	// started from binary.
	image func(pid int, binary string) string

	// lock keeps a second supervisor out of the run_dir until release is
	// called. While it waits for workers of an earlier run it calls rest; false
	// makes it give up with errInterrupted.
	lock func(rest func(time.Duration) bool) (release func(), err error)

	// listen makes the control socket, replacing one that is already there.
	listen func() (net.Listener, error)

	builder func(ctx context.Context) (build.Builder, error)
	watch   func(sources.Set) watcher

	signals  <-chan os.Signal
	terminal func() bool // reports whether there is a controlling terminal
}

// watcher says when to look at the sources: see [sources.Watcher].
type watcher interface {
	Watch(sources.Set)
	Changed() <-chan struct{}
	Close()
}
