package sources

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Set is the files of a program, described by where they are. It includes files
// that do not exist yet.
type Set struct {
	PackageDirs []string // folders of packages: every file that a Go build may read, except tests
	EmbedDirs   []string // folders of embedded files: every file in them
	EmbedTrees  []string // folders of embedded files: every file in and below them
	Files       []string // single files
}

// extensions of the files that a Go build may read.
var extensions = []string{".go", ".c", ".cc", ".cpp", ".cxx", ".m", ".h", ".hh", ".hpp", ".hxx", ".f", ".F", ".for", ".f90", ".s", ".S", ".sx", ".swig", ".swigcxx", ".syso"}

// Compiled reports whether a Go build may read a file of this name. It does
// not read tests, nor files that begin with a dot or an underscore.
func Compiled(name string) bool {
	return slices.Contains(extensions, filepath.Ext(name)) && !strings.HasSuffix(name, "_test.go") && name[0] != '.' && name[0] != '_'
}

// each calls f once with the path of each file of the set.
func (s Set) each(f func(path string)) {
	seen := map[string]bool{}
	once := func(path string) {
		if !seen[path] {
			seen[path] = true
			f(path)
		}
	}
	for _, dir := range s.PackageDirs {
		for _, name := range files(dir) {
			if Compiled(name) {
				once(filepath.Join(dir, name))
			}
		}
	}
	for _, dir := range s.EmbedDirs {
		for _, name := range files(dir) {
			once(filepath.Join(dir, name))
		}
	}
	for _, tree := range s.EmbedTrees {
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

// files lists the names in dir that are not directories.
func files(dir string) []string {
	entries, _ := os.ReadDir(dir)
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// Copy copies every file of the set below dir, so that a build can read files
// that no longer change. It returns the path of each copy by the path of its
// original, and a snapshot of the copies under the paths of the originals.
func Copy(s Set, dir string) (copies map[string]string, snap *Snapshot, err error) {
	copies, snap = map[string]string{}, newSnapshot()
	s.each(func(path string) {
		if err != nil {
			return
		}
		data, info, ok := read(path)
		if !ok {
			return
		}
		to := filepath.Join(dir, path)
		if err = os.MkdirAll(filepath.Dir(to), 0o700); err == nil {
			err = os.WriteFile(to, data, 0o600)
		}
		copies[path] = to
		snap.add(path, data, info)
	})
	return copies, snap, err
}

// Absolute is path from the root, or path itself where that is not known.
func Absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
