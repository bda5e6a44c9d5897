//go:build unix

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// locks keeps a second supervisor out of the run_dir. Only the supervisor holds
// the first lock; its file contains the PID. All workers inherit the second, so
// it is free only when the last process of a program has exited.
type locks struct{ supervisor, workers *os.File }

// lockWait is how long the workers of a dead supervisor may take to exit.
const lockWait = 30 * time.Second

func lockRunDir(dir string, say func(line string)) (*locks, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("run_dir: %w", err)
	}
	own, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("run_dir: %w", err)
	}
	if err := syscall.Flock(int(own.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(own.Name())
		own.Close()
		return nil, fmt.Errorf("already running here: process %s holds %s; use reload, or another app.run_dir", strings.TrimSpace(string(pid)), own.Name())
	}
	own.Truncate(0)
	if _, err := own.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
		own.Close()
		return nil, fmt.Errorf("run_dir: %w", err)
	}
	workers, err := os.OpenFile(filepath.Join(dir, "workers.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		own.Close()
		return nil, fmt.Errorf("run_dir: %w", err)
	}
	said := false
	for end := time.Now().Add(lockWait); ; time.Sleep(20 * time.Millisecond) {
		err := syscall.Flock(int(workers.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return &locks{own, workers}, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(end) {
			own.Close()
			workers.Close()
			return nil, fmt.Errorf("run_dir: the workers of an earlier run have not exited: %w", err)
		}
		if !said {
			said = true
			say("waiting for the workers of an earlier run to finish")
		}
	}
}

func (l *locks) release() {
	l.supervisor.Close()
	l.workers.Close()
}
