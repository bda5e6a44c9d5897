package sources

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

// pollInterval is how often to look where the system gives no events.
var pollInterval = time.Second

// Watcher says when to look at a [Set] again.
type Watcher struct {
	look  chan struct{} // has room for one
	rearm chan struct{} // has room for one
	log   *slog.Logger
	fs    *fsnotify.Watcher // nil: poll only
	close chan struct{}
	tasks sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	set     Set
	polling bool
}

// New returns a watcher of nothing.
func New(log *slog.Logger) *Watcher {
	look := make(chan struct{}, 1)
	w := &Watcher{look: look, rearm: make(chan struct{}, 1), log: log, close: make(chan struct{})}
	var err error
	if w.fs, err = fsnotify.NewWatcher(); err != nil {
		w.fs = nil
		w.poll("", err)
	} else {
		w.tasks.Go(w.run)
		w.tasks.Go(w.armAgain)
	}
	return w
}

// Changed receives when something may have changed since it was received last.
func (w *Watcher) Changed() <-chan struct{} { return w.look }

// Watch replaces the watched set. Directories that do not exist yet are noticed
// when they appear.
func (w *Watcher) Watch(s Set) {
	w.mu.Lock()
	w.set = s
	w.mu.Unlock()
	w.arm()
	w.notify()
}

// Close ends the watching and waits for it.
func (w *Watcher) Close() {
	close(w.close)
	if w.fs != nil {
		w.fs.Close()
	}
	w.tasks.Wait()
}

func (w *Watcher) notify() {
	select {
	case w.look <- struct{}{}:
	default:
	}
}

// arm adds a watch for each directory of the set, or for its nearest ancestor
// that exists, and removes watches that are no longer wanted. A directory that
// appears after arm has looked for it and before its parent is watched gives no
// event, so arm looks again until nothing is new.
func (w *Watcher) arm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fs == nil {
		return
	}
	armed := map[string]bool{}
	for {
		wanted := w.wantedLocked()
		if maps.Equal(wanted, armed) {
			return
		}
		for _, dir := range w.fs.WatchList() {
			if !wanted[dir] {
				w.fs.Remove(dir)
			}
		}
		for dir := range wanted {
			if name := withoutEvents(dir); name != "" {
				w.startPollingLocked(dir, fmt.Errorf("%s gives no events", name))
			}
			if err := w.fs.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				w.startPollingLocked(dir, err)
			}
		}
		armed = wanted
	}
}

// wantedLocked returns the directories whose events say when to look. w.mu is held.
func (w *Watcher) wantedLocked() map[string]bool {
	dirs := map[string]bool{}
	for _, dir := range slices.Concat(w.set.PackageDirs, w.set.EmbedDirs) {
		dirs[existing(dir)] = true
		for _, target := range linked(dir) {
			dirs[target] = true
		}
	}
	for _, file := range w.set.Files {
		dirs[existing(filepath.Dir(file))] = true
		if target, err := filepath.EvalSymlinks(file); err == nil && target != file {
			dirs[filepath.Dir(target)] = true
		}
	}
	for _, tree := range w.set.EmbedTrees {
		filepath.WalkDir(tree, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs[path] = true
			}
			return nil
		})
	}
	return dirs
}

// linked returns the directories in which the targets of the symbolic links in
// dir can change, and the parent of dir if dir itself is a link.
func linked(dir string) (dirs []string) {
	if info, err := os.Lstat(dir); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		dirs = append(dirs, filepath.Dir(dir))
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 || !Compiled(e.Name()) {
			continue
		}
		if target, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name())); err == nil {
			dirs = append(dirs, filepath.Dir(target))
		}
	}
	return dirs
}

// existing returns dir or its nearest ancestor that is a directory.
func existing(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// armAgain calls arm when run asks for it: run must never wait for fsnotify,
// which waits for run.
func (w *Watcher) armAgain() {
	for {
		select {
		case <-w.rearm:
			w.arm()
			w.notify()
		case <-w.close:
			return
		}
	}
}

// run passes events on. Which file they are about does not matter: a look is
// cheap, and the content decides.
func (w *Watcher) run() {
	for {
		select {
		case e, ok := <-w.fs.Events:
			if !ok {
				return
			}
			if e.Has(fsnotify.Create) || e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
				select { // a directory may have come or gone
				case w.rearm <- struct{}{}:
				default:
				}
			}
			if e.Op != fsnotify.Chmod {
				w.notify()
			}
		case err, ok := <-w.fs.Errors:
			if !ok {
				return
			}
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				w.log.Warn("watching the sources", "err", err)
			}
			w.notify() // whatever was lost, a look finds it
		}
	}
}

func (w *Watcher) poll(dir string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.startPollingLocked(dir, err)
}

// startPollingLocked starts polling, once. w.mu is held.
func (w *Watcher) startPollingLocked(dir string, err error) {
	if w.polling {
		return
	}
	w.polling = true
	hint := ""
	switch {
	case errors.Is(err, syscall.ENOSPC):
		hint = "raise it: sysctl fs.inotify.max_user_watches=524288"
	case errors.Is(err, syscall.EMFILE):
		hint = "raise it: sysctl fs.inotify.max_user_instances=512, or the limit of open files"
	}
	w.log.Warn("cannot watch, looking once a second instead", "dir", dir, "err", err, "hint", hint)
	w.tasks.Go(func() {
		tick := time.NewTicker(pollInterval)
		defer tick.Stop()
		var before Sum
		for {
			select {
			case <-tick.C:
				w.mu.Lock()
				set := w.set
				w.mu.Unlock()
				if now := set.stamp(); now != before {
					before = now
					w.arm()
					w.notify()
				}
			case <-w.close:
				return
			}
		}
	})
}
