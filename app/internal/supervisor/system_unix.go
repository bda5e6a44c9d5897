//go:build unix

package supervisor

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/sources"
	"example.org/orchestrator/app/internal/wire"
	"example.org/orchestrator/handoff"
)

// Run runs a supervisor until the program ends, and returns the program's exit
// code.
func Run(opts Options) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)
	terminal := func() bool { return false }
	if !signal.Ignored(syscall.SIGHUP) {
		terminal = hasTerminal
	}
	return newSupervisor(opts, realSystem(opts, signals, terminal)).run()
}

func realSystem(opts Options, signals <-chan os.Signal, terminal func() bool) system {
	reaper := proc.NewReaper()
	var workers *os.File // the lock that workers inherit
	return system{
		start: func(binary string, args []string, n int, keys []string, sockets []*os.File) (int, <-chan proc.Status, error) {
			null, err := os.Open(os.DevNull)
			if err != nil {
				return 0, nil, err
			}
			defer null.Close()
			const lockFD = 3 // after the three standard files
			spec := proc.Spec{Path: binary, Args: args, Env: handoff.FirstEnv(n, lockFD, keys)}
			return reaper.Start(spec, append([]*os.File{null, os.Stdout, os.Stderr, workers}, sockets...)...)
		},
		terminate: proc.Terminate,
		kill:      proc.Kill,
		killGroup: proc.KillGroup,
		groupGone: proc.GroupGone,
		exited:    reaper.Exited,
		childless: reaper.Childless,
		image:     proc.Image,
		lock: func(rest func(time.Duration) bool) (func(), error) {
			l, err := lockRunDir(opts.RunDir, workers != nil, rest, func(line string) { fmt.Fprintln(opts.Out, line) })
			if err != nil {
				return nil, err
			}
			workers = l.workers
			return l.release, nil
		},
		listen: func() (net.Listener, error) { return listenControl(opts.RunDir) },
		builder: func(ctx context.Context) (build.Builder, error) {
			return newBuilder(ctx, opts, reaper.Run)
		},
		watch: func(set sources.Set) watcher {
			w := sources.New(opts.Log)
			w.Watch(set)
			return w
		},
		signals:  signals,
		terminal: terminal,
	}
}

func newBuilder(ctx context.Context, opts Options, run proc.Runner) (build.Builder, error) {
	b, err := build.NewGo(ctx, opts.Package, filepath.Join(opts.RunDir, "tmp"), run)
	if err != nil {
		return nil, err
	}
	b.Flags, b.Debug = opts.Flags, opts.Debug
	if !opts.Direct {
		return b, nil
	}
	d, err := build.NewDirect(b, filepath.Join(opts.RunDir, "objects"))
	if err != nil {
		return nil, err // not d: a nil pointer in an interface is not nil
	}
	return d, nil
}

// hasTerminal reports whether there is a controlling terminal.
func hasTerminal() bool {
	f, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// listenControl makes the control socket, which only this user may use. It
// replaces one that is already there: the run_dir is locked, so no other
// supervisor listens on that.
func listenControl(runDir string) (net.Listener, error) {
	path := wire.Socket(runDir)
	os.Remove(path)
	mask := syscall.Umask(0o177)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(mask)
	if err != nil {
		return nil, fmt.Errorf("run_dir: control socket %s: %w", sources.Absolute(path), err)
	}
	return ln, nil
}
