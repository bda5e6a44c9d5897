// Package sources knows what a build reads, the content of those files, and
// when to look at them again.
//
// [Inputs] is what a build reads, [Set] where that is, [Snapshot] its content
// at one moment. Watching is level-triggered: two snapshots are compared. A
// [Watcher] only says that something may have changed; whatever events are
// lost, doubled or meaningless, the next look finds the truth.
package sources

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Sum identifies the content of a file.
type Sum [sha256.Size]byte

// Snapshot is the content of a set at one moment. It does not change, so it can
// be handed on: each file is read and hashed only once per save. A nil Snapshot
// has no files.
type Snapshot struct {
	files map[string]file
	data  map[string][]byte // content of a few files; see [Snapshot.Content]
	taken time.Time         // before the first file was read
}

// file is one file as a snapshot saw it.
type file struct {
	sum   Sum
	stamp stamp
}

// stamp is what a file system says about a file's content without reading it.
type stamp struct {
	size              int64
	modified, changed time.Time // changed is the inode's; zero where there is none
	inode             uint64
}

func newSnapshot() *Snapshot {
	return &Snapshot{files: map[string]file{}, data: map[string][]byte{}, taken: time.Now()}
}

// Take reads every file of the set. What cannot be read, or is not a regular
// file, counts as absent.
func Take(s Set) *Snapshot { return TakeAfter(s, nil) }

// maxData bounds the bytes that a snapshot keeps of changed files.
const maxData = 1 << 20

// TakeAfter is [Take], and also keeps the content of files that differ from
// older, for callers that read them.
func TakeAfter(s Set, older *Snapshot) *Snapshot {
	snap, room := newSnapshot(), maxData
	s.each(func(path string) {
		data, info, ok := read(path)
		if !ok {
			return
		}
		snap.add(path, data, info)
		if sum, known := older.Sum(path); older != nil && (!known || sum != snap.files[path].sum) && len(data) <= room {
			snap.data[path] = data
			room -= len(data)
		}
	})
	return snap
}

// Content returns the content of a file in the snapshot; ok is false if the
// snapshot does not have the file, or has not kept its content and the file has
// changed since. The caller
// must not change data.
func (s *Snapshot) Content(path string) (data []byte, ok bool) {
	sum, ok := s.Sum(path)
	if !ok {
		return nil, false
	}
	if data, ok := s.data[path]; ok {
		return data, true
	}
	data, _, ok = read(path)
	return data, ok && sha256.Sum256(data) == sum
}

// reads counts the files that were read, for tests.
var reads atomic.Int64

// read reads a regular file. info is from before the read.
func read(path string) (data []byte, info fs.FileInfo, ok bool) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() { // reading a pipe would block
		return nil, nil, false
	}
	reads.Add(1)
	data, err = os.ReadFile(path)
	return data, info, err == nil
}

func (s *Snapshot) add(path string, data []byte, info fs.FileInfo) {
	s.files[path] = file{sha256.Sum256(data), stampOf(info)}
}

// Sum returns the sum of a file; ok is false if the snapshot does not have it.
func (s *Snapshot) Sum(path string) (sum Sum, ok bool) {
	if s == nil {
		return Sum{}, false
	}
	f, ok := s.files[path]
	return f.sum, ok
}

// Names lists the files of the package's folder dir that a Go build may read:
// those directly in it, and those that patterns embed. They are sorted and
// relative to dir.
func (s *Snapshot) Names(dir string, patterns []string) []string {
	names := []string{}
	for path := range s.files {
		name, err := filepath.Rel(dir, path)
		if err != nil || strings.HasPrefix(name, "..") {
			continue
		}
		direct := filepath.Base(name) == name && Compiled(name)
		if direct || slices.ContainsFunc(patterns, func(pattern string) bool { return embeds(pattern, name) }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// embeds reports whether a pattern of //go:embed matches a file or a folder
// above it.
func embeds(pattern, name string) bool {
	pattern = strings.TrimPrefix(pattern, "all:")
	for ; name != "."; name = filepath.Dir(name) {
		if ok, err := filepath.Match(pattern, name); ok || err != nil {
			return true
		}
	}
	return false
}

// Equal reports whether both have the same files with the same content.
func (s *Snapshot) Equal(other *Snapshot) bool { return len(s.Diff(other)) == 0 }

// Diff lists the paths that differ between s and other, sorted.
func (s *Snapshot) Diff(other *Snapshot) []string {
	var paths []string
	for path, f := range s.all() {
		if sum, ok := other.Sum(path); !ok || f.sum != sum {
			paths = append(paths, path)
		}
	}
	for path := range other.all() {
		if _, ok := s.Sum(path); !ok {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

func (s *Snapshot) all() map[string]file {
	if s == nil {
		return nil
	}
	return s.files
}

// Current reports whether the set still has the content of s. It reads only the
// files whose size or times differ, or are too recent to be trusted.
func (s *Snapshot) Current(set Set) bool {
	n, same := 0, true
	set.each(func(path string) {
		if _, ok := s.Sum(path); ok {
			n++
			same = same && s.Holds(path)
		} else if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			_, _, readable := read(path)
			same = same && !readable
		}
	})
	return same && n == len(s.all())
}

// timestampMargin is how old the last change of a file must be, when a snapshot is
// taken, for equal times to mean equal content: some file systems store whole
// seconds, and some only even ones.
const timestampMargin = 2*time.Second + 100*time.Millisecond

// Holds reports whether a file still has the content that s saw. It may miss
// what a program writes through a memory mapping, as long as the page is dirty.
func (s *Snapshot) Holds(path string) bool {
	f, known := s.files[path]
	if !known {
		return false
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	now := stampOf(info)
	safe := s.taken.Add(-timestampMargin)
	if now == f.stamp && !now.changed.IsZero() && now.modified.Before(safe) && now.changed.Before(safe) && withoutEvents(path) == "" {
		return true
	}
	data, _, ok := read(path)
	return ok && sha256.Sum256(data) == f.sum
}

// stamp returns a hash of the names, sizes and times of everything in s: it is
// cheaper than the content, and says when to look at the content.
func (s Set) stamp() (sum Sum) {
	h := sha256.New()
	s.each(func(path string) {
		if info, err := os.Stat(path); err == nil {
			fmt.Fprintf(h, "%s %d %d\n", path, info.Size(), info.ModTime().UnixNano())
		}
	})
	h.Sum(sum[:0])
	return sum
}

// ChangedSince reports whether a file was written at t or later, as far as its
// time shows that: a time in the future shows nothing.
func (s Set) ChangedSince(t time.Time) (changed bool) {
	now := time.Now()
	s.each(func(path string) {
		if info, err := os.Stat(path); err == nil && !info.ModTime().Before(t) && !info.ModTime().After(now) {
			changed = true
		}
	})
	return changed
}
