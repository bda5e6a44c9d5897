// Package watch tells what the sources are and when to look again.
//
// It is level-triggered: a [Snapshot] is the content of everything a build
// reads, and two of them are compared. A [Watcher] only says that something
// may have changed; whatever events are lost, doubled or meaningless, the
// next look finds the truth.
package watch

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Set is what to look at.
type Set struct {
	Dirs    []string // every file in them that a Go build may read, tests excepted
	Folders []string // every file in them
	Trees   []string // every file below them
	Files   []string // whether they exist or not
}

// Snapshot is the content of a set: a hash for each file there is.
type Snapshot map[string][sha256.Size]byte

// Take reads everything in s. What cannot be read counts as not there.
func Take(s Set) Snapshot {
	snap := Snapshot{}
	s.each(func(path string) { snap.add(path) })
	return snap
}

func (s Snapshot) add(path string) {
	if data, err := os.ReadFile(path); err == nil {
		s[path] = sha256.Sum256(data)
	}
}

// Copy copies everything in s below dir, so that it holds still, and returns
// where each file is now and the snapshot of the copies.
func Copy(s Set, dir string) (where map[string]string, snap Snapshot, err error) {
	where, snap = map[string]string{}, Snapshot{}
	s.each(func(path string) {
		data, readErr := os.ReadFile(path)
		if readErr != nil || err != nil {
			return
		}
		to := filepath.Join(dir, path)
		if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
			err = os.WriteFile(to, data, 0o644)
		}
		where[path], snap[path] = to, sha256.Sum256(data)
	})
	return where, snap, err
}

// stamp identifies names, sizes and times of everything in s: it is cheaper
// than the content, and tells when to look at that.
func (s Set) stamp() (sum [sha256.Size]byte) {
	h := sha256.New()
	s.each(func(path string) {
		if info, err := os.Stat(path); err == nil {
			fmt.Fprintf(h, "%s %d %d\n", path, info.Size(), info.ModTime().UnixNano())
		}
	})
	h.Sum(sum[:0])
	return sum
}

// ChangedSince tells whether a file was written at t or later, as far as its
// time tells: one in the future tells nothing.
func (s Set) ChangedSince(t time.Time) (changed bool) {
	now := time.Now()
	s.each(func(path string) {
		if info, err := os.Stat(path); err == nil && !info.ModTime().Before(t) && !info.ModTime().After(now) {
			changed = true
		}
	})
	return changed
}

// each calls f with the path of each file of the set once.
func (s Set) each(f func(path string)) {
	seen := map[string]bool{}
	once := func(path string) {
		if !seen[path] {
			seen[path] = true
			f(path)
		}
	}
	for _, dir := range s.Dirs {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if !e.IsDir() && compiled(e.Name()) {
				once(filepath.Join(dir, e.Name()))
			}
		}
	}
	for _, dir := range s.Folders {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if !e.IsDir() {
				once(filepath.Join(dir, e.Name()))
			}
		}
	}
	for _, tree := range s.Trees {
		filepath.WalkDir(tree, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				once(path)
			}
			return nil
		})
	}
	for _, file := range s.Files {
		once(file)
	}
}

// extensions of the files that a Go build may read.
var extensions = []string{".go", ".c", ".cc", ".cpp", ".cxx", ".m", ".h", ".hh", ".hpp", ".hxx", ".f", ".F", ".for", ".f90", ".s", ".S", ".sx", ".swig", ".swigcxx", ".syso"}

func compiled(name string) bool {
	return slices.Contains(extensions, filepath.Ext(name)) && !strings.HasSuffix(name, "_test.go") && name[0] != '.' && name[0] != '_'
}

// Equal tells whether both have the same files with the same content.
func (s Snapshot) Equal(other Snapshot) bool { return len(s.Diff(other)) == 0 }

// Diff lists the paths that differ between s and other, sorted.
func (s Snapshot) Diff(other Snapshot) []string {
	var paths []string
	for path, sum := range s {
		if have, ok := other[path]; !ok || have != sum {
			paths = append(paths, path)
		}
	}
	for path := range other {
		if _, ok := s[path]; !ok {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}
