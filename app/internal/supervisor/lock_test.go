//go:build unix

package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRunDir: nobody else can decide what is in it, and nothing of anybody's is
// removed.
func TestRunDir(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: a folder of somebody else is not tried")
	}
	for _, tt := range []struct {
		name string
		make func(dir string) error
		want string // in the error; "" for none
	}{
		{"a new one", func(string) error { return nil }, ""},
		{"an empty one", func(dir string) error { return os.Mkdir(dir, 0o755) }, ""},
		{"one of an older build", func(dir string) error {
			return errorsOf(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, workersLock), nil, 0o644), os.Mkdir(filepath.Join(dir, "builds"), 0o755))
		}, ""},
		{"a folder with files", func(dir string) error {
			return errorsOf(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "main.go"), nil, 0o644))
		}, "is not empty (main.go)"},
		{"a link", func(dir string) error { return errorsOf(os.Mkdir(dir+"2", 0o700), os.Symlink(dir+"2", dir)) }, "symbolic link"},
		{"a file", func(dir string) error { return os.WriteFile(dir, nil, 0o600) }, "is not a folder"},
		{"others may write", func(dir string) error {
			return errorsOf(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, workersLock), nil, 0o600), os.Chmod(dir, 0o777))
		}, "can be written to by others"},
		{"a fresh volume", func(dir string) error { return errorsOf(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777|os.ModeSticky)) }, ""},
		{"somebody else's", func(dir string) error {
			if os.Geteuid() != 0 {
				return os.Mkdir(dir, 0o777|os.ModeSticky)
			}
			return errorsOf(os.Mkdir(dir, 0o700), os.Chown(dir, 65534, 65534))
		}, " "},
	} {
		dir := filepath.Join(t.TempDir(), "d")
		if err := tt.make(dir); err != nil {
			t.Fatal(err)
		}
		l, err := lockRunDir(dir, false, patient, func(string) {})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if err != nil {
			continue
		}
		for _, name := range []string{"", marker, "lock", workersLock} {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm()&0o077 != 0 && tt.name != "one of an older build" {
				t.Errorf("%s: %q has %v, %v; want it for this user alone", tt.name, name, info.Mode(), err)
			}
		}
		if _, err := lockRunDir(dir, false, patient, func(string) {}); err == nil || !strings.Contains(err.Error(), "already running here") {
			t.Errorf("%s: a second one: %v", tt.name, err)
		}
		l.release()
	}
	if _, err := lockRunDir(filepath.Join(t.TempDir(), strings.Repeat("x", 90)), false, patient, func(string) {}); err == nil || !strings.Contains(err.Error(), "too long by") {
		t.Errorf("a long path: %v", err)
	}
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// patient waits for as long as it takes.
func patient(d time.Duration) bool { time.Sleep(d); return true }

// TestAStopWhileItWaitsForTheLock: workers of an earlier run, or anybody who holds their
// lock, do not keep a program that is to stop.
func TestAStopWhileItWaitsForTheLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	l, err := lockRunDir(dir, false, patient, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	l.supervisor.Close()
	defer l.workers.Close()
	for _, tt := range []struct {
		name     string
		sig      syscall.Signal
		terminal bool // there was one, and it has gone
		ends     bool
	}{
		{"Ctrl-C", syscall.SIGINT, false, true},
		{"a stop", syscall.SIGTERM, false, true},
		{"a reload", syscall.SIGHUP, false, false},
		{"a terminal that was closed", syscall.SIGHUP, true, true},
	} {
		signals := make(chan os.Signal, 1)
		s := &supervisor{sys: system{signals: signals, terminal: func() bool { return false }}}
		s.stop.terminal = tt.terminal
		waited := 0
		_, err := lockRunDir(dir, false, func(d time.Duration) bool {
			if waited++; waited == 2 {
				signals <- tt.sig
			}
			return waited < 5 && s.restBeforeStart(d)
		}, func(string) {})
		if !errors.Is(err, errInterrupted) || (waited < 5) != tt.ends {
			t.Errorf("%s: %v after %d rests", tt.name, err, waited)
		}
	}
}
