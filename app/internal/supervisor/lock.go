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

// lockRunDir makes and locks a run_dir. ours says that whatever is in it was put
// there by this program: the folder was removed while it ran.
func lockRunDir(dir string, ours bool, rest func(time.Duration) bool, say func(line string)) (*locks, error) {
	if err := claimRunDir(dir, ours); err != nil {
		return nil, fmt.Errorf("run_dir: %w", err)
	}
	own, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("run_dir: %w", err)
	}
	if err := syscall.Flock(int(own.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
		own.Close()
		return nil, fmt.Errorf("run_dir: %s cannot be locked on this file system: %w; choose an app.run_dir on another one", own.Name(), err)
	} else if err != nil {
		pid, _ := os.ReadFile(own.Name())
		own.Close()
		return nil, fmt.Errorf("already running here: process %s holds %s; use reload, or another app.run_dir", strings.TrimSpace(string(pid)), own.Name())
	}
	own.Truncate(0)
	if _, err := own.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
		own.Close()
		return nil, fmt.Errorf("run_dir: %w", err)
	}
	workers, err := os.OpenFile(filepath.Join(dir, workersLock), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		own.Close()
		return nil, fmt.Errorf("run_dir: %w", err)
	}
	said := false
	for end := time.Now().Add(lockWait); ; {
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
		if !rest(20 * time.Millisecond) {
			own.Close()
			workers.Close()
			return nil, errInterrupted
		}
	}
}

// errInterrupted says that a signal has ended the wait for a lock.
var errInterrupted = errors.New("interrupted")

const (
	workersLock = "workers.lock"

	// marker is a file that says that a folder is a run_dir: what is in builds, tmp,
	// objects and frozen below it may be removed.
	marker     = "RUN_DIR"
	markerText = "This folder belongs to a running program (app.run_dir). Its content may be removed at any time.\n"

	// longestSocket is as long as the longest name of a socket in a run_dir, and
	// maxSocketPath as the longest path that every system allows.
	longestSocket = len("handoff-4194304-999999.sock")
	maxSocketPath = 103
)

// claimRunDir makes dir, or makes sure that it is a run_dir that only this user can
// change: whoever can put files there decides what this program runs.
func claimRunDir(dir string, ours bool) error {
	if n := len(dir) + 1 + longestSocket; n > maxSocketPath {
		return fmt.Errorf("%s is too long by %d bytes: sockets are made in it; choose a shorter app.run_dir", dir, n-maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat, _ := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode(); {
	case mode&os.ModeSymlink != 0:
		return fmt.Errorf("%s is a symbolic link: whoever can change it decides what this program runs; name the folder itself as app.run_dir", dir)
	case !mode.IsDir():
		return fmt.Errorf("%s is not a folder", dir)
	case stat != nil && int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, and this program runs as user %d: choose another app.run_dir, or remove that one", dir, stat.Uid, os.Geteuid())
	case mode.Perm()&0o022 != 0 && !isEmpty(dir): // an empty one, such as a fresh volume, is closed below
		return fmt.Errorf("%s can be written to by others (%v): whoever does decides what this program runs; chmod 700 %[1]s, after a look at what is in it", dir, mode.Perm())
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	return mark(dir, ours)
}

func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) == 0
}

// mark marks dir as a run_dir, if it is one or is empty.
func mark(dir string, ours bool) error {
	path := filepath.Join(dir, marker)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	_, older := os.Lstat(filepath.Join(dir, workersLock)) // of a build that did not mark it
	if len(entries) > 0 && older != nil && !ours {
		return fmt.Errorf("%s is not empty (%s): files in it could be removed; choose a folder of its own as app.run_dir", dir, entries[0].Name())
	}
	return os.WriteFile(path, []byte(markerText), 0o600)
}

func (l *locks) release() {
	l.supervisor.Close()
	l.workers.Close()
}
