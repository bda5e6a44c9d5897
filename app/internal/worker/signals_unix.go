//go:build unix

package worker

import (
	"os"
	"os/signal"
	"syscall"
)

// catchSignals keeps signals that mean the whole program from ending this process:
// a service manager, pkill and a terminal send them to every process. It returns
// those that ask the program to stop.
func catchSignals() <-chan os.Signal {
	stop := make(chan os.Signal, 8)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // dropped: the supervisor reloads
	// A worker is in the background of its terminal. Unless it ignores these, it is
	// stopped when it writes a line (stty tostop).
	signal.Ignore(syscall.SIGTTOU, syscall.SIGTTIN)
	return stop
}
