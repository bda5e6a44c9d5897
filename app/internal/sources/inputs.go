package sources

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Inputs is what a build reads, apart from the standard library and modules
// in the module cache, which do not change.
type Inputs struct {
	Root     string             // directory of the main module
	Packages map[string]Package // by import path
	Files    []string           // go.mod and the like
	Missing  []string           // directories of imported packages that do not exist
}

// Package is one package of the build.
type Package struct {
	ImportPath string
	Dir        string
	Files      []string // names of the files that are compiled or embedded
	Patterns   []string // patterns of embedded files
	Imports    []string
	Main       bool // it is a program
}

// Set returns where the inputs are, and others, such as the configuration.
func (in *Inputs) Set(others ...string) Set {
	set := Set{Files: slices.Concat(in.Files, others), PackageDirs: slices.Clone(in.Missing)}
	for _, p := range in.Packages {
		set.PackageDirs = append(set.PackageDirs, p.Dir)
		for _, f := range p.Files {
			if dir := filepath.Dir(f); dir != "." {
				set.EmbedTrees = append(set.EmbedTrees, filepath.Join(p.Dir, dir))
			} else if len(p.Patterns) > 0 {
				set.Files = append(set.Files, filepath.Join(p.Dir, f))
			}
		}
		for _, pattern := range p.Patterns { // files that are not embedded yet
			pattern = strings.TrimPrefix(pattern, "all:")
			if meta := strings.IndexAny(pattern, "*?["); meta >= 0 {
				set.EmbedDirs = append(set.EmbedDirs, filepath.Join(p.Dir, filepath.Dir(pattern[:meta]+"x")))
			} else if info, err := os.Stat(filepath.Join(p.Dir, pattern)); err == nil && info.IsDir() {
				set.EmbedTrees = append(set.EmbedTrees, filepath.Join(p.Dir, pattern))
			}
		}
	}
	slices.Sort(set.EmbedTrees)
	set.EmbedTrees = slices.Compact(set.EmbedTrees)
	return set
}

// Stale reports whether a change of these files may change what a build of snap
// reads, so that the go command must be asked again before that build.
func (in *Inputs) Stale(snap *Snapshot, changed []string) bool {
	if len(changed) > 0 && len(in.Missing) > 0 {
		return true
	}
	byDir := map[string]Package{}
	for _, p := range in.Packages {
		byDir[p.Dir] = p
	}
	for _, file := range changed {
		p, known := byDir[filepath.Dir(file)]
		if slices.Contains(in.Files, file) || !known || !slices.Contains(p.Files, filepath.Base(file)) {
			return true
		}
		if filepath.Ext(file) == ".go" && p.otherImports(snap, file) {
			return true
		}
	}
	return false
}

// otherImports reports whether a file of the package may now read what the
// package did not read before.
func (p Package) otherImports(snap *Snapshot, file string) bool {
	src, ok := snap.Content(file)
	if !ok || len(p.Patterns) > 0 || bytes.Contains(src, []byte("//go:")) || bytes.Contains(src, []byte("// +build")) {
		return true
	}
	f, err := parser.ParseFile(token.NewFileSet(), file, src, parser.ImportsOnly)
	if err != nil {
		return false // the compiler will report it
	}
	return slices.ContainsFunc(f.Imports, func(spec *ast.ImportSpec) bool {
		path, err := strconv.Unquote(spec.Path.Value)
		return err != nil || !slices.Contains(p.Imports, path)
	})
}

// Affected returns the packages whose code changes with these files, including
// those that import them; unknown is true when they cannot be determined.
func (in *Inputs) Affected(changed []string) (packages []string, unknown bool) {
	importers := in.importers()
	seen := map[string]bool{}
	for _, file := range changed {
		path, ok := in.PackageOf(file)
		if !ok {
			return nil, true
		}
		reach(path, importers, seen)
	}
	return slices.Sorted(maps.Keys(seen)), false
}

// PackageOf returns the package that a file belongs to. An embedded file may be
// in a folder below it.
func (in *Inputs) PackageOf(file string) (importPath string, ok bool) {
	byDir := map[string]string{}
	for path, p := range in.Packages {
		byDir[p.Dir] = path
	}
	for dir := filepath.Dir(file); len(dir) >= len(in.Root); dir = filepath.Dir(dir) {
		if path, ok := byDir[dir]; ok {
			return path, true
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	return "", false
}

// Related returns the package called path, those that it depends on, and those
// that depend on it; programs are left out.
func (in *Inputs) Related(path string) map[string]bool {
	imports := map[string][]string{}
	for from, p := range in.Packages {
		imports[from] = p.Imports
	}
	all := map[string]bool{}
	reach(path, imports, all)
	reach(path, in.importers(), all)
	for path := range all {
		if p, ok := in.Packages[path]; !ok || p.Main {
			delete(all, path)
		}
	}
	return all
}

// importers maps each package to those that import it.
func (in *Inputs) importers() map[string][]string {
	by := map[string][]string{}
	for path, p := range in.Packages {
		for _, i := range p.Imports {
			by[i] = append(by[i], path)
		}
	}
	return by
}

// reach marks path and everything that can be reached from it along arrows.
func reach(path string, arrows map[string][]string, seen map[string]bool) {
	next := []string{path}
	done := map[string]bool{}
	for len(next) > 0 {
		path, next = next[0], next[1:]
		if !done[path] {
			done[path], seen[path] = true, true
			next = append(next, arrows[path]...)
		}
	}
}
