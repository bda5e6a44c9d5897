// Package build turns sources into a binary and knows which files it read to
// do so.
//
// A [Builder] builds one main package. It runs no process by itself: the
// supervisor reaps every child of its process, so it hands in a [Runner].
package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Command is a process to run to its end.
type Command struct {
	Args []string
	Env  []string // in addition to this process's
}

// Runner runs a command in a process group of its own and kills the whole
// group when ctx ends. A process that fails is an [*ExitError].
type Runner func(ctx context.Context, c Command) (stdout []byte, err error)

// ExitError is a command that ended with an exit code other than 0.
type ExitError struct {
	Command string
	Status  string
	Stdout  []byte
	Stderr  []byte
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: %s\n%s", e.Command, e.Status, bytes.TrimSpace(e.Stderr))
}

// CompileError is what the compiler or the linker complained about, complete.
type CompileError struct{ Output string }

func (e *CompileError) Error() string { return e.Output }

// Builder makes binaries of one main package.
type Builder interface {
	// Inputs tells what a build reads, with an error whatever it may read.
	Inputs(ctx context.Context) (*Inputs, error)
	// Build writes the binary to out. overlay names files to be read instead
	// of others, by absolute path. A mistake in the sources is a
	// [*CompileError]; when ctx ends nothing of the build is left running.
	// note says what people may want to know of how it was done, or is "".
	Build(ctx context.Context, out string, overlay map[string]string) (note string, err error)
}

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
	Patterns   []string // of embedded files
	Imports    []string
}

// Go builds with the go command.
type Go struct {
	Package string // import path or ./path of the main package
	TempDir string // for the go command's work, wiped by New
	Run     Runner
	Flags   []string // for the go command, beside its own
	Debug   bool     // keep what debuggers need
	root    string
}

var _ Builder = (*Go)(nil)

// NewGo returns a builder of the main package pkg in the working directory.
// It fails when there is no go command or no module.
func NewGo(ctx context.Context, pkg, tempDir string, run Runner) (*Go, error) {
	b := &Go{Package: pkg, TempDir: tempDir, Run: run}
	if err := os.RemoveAll(tempDir); err != nil {
		return nil, fmt.Errorf("build: wipe the temporary directory: %w", err)
	}
	if err := os.MkdirAll(tempDir, 0o755); err != nil {
		return nil, fmt.Errorf("build: make the temporary directory: %w", err)
	}
	out, err := run(ctx, Command{Args: []string{"go", "env", "GOMOD"}})
	if err != nil {
		return nil, fmt.Errorf("build: the go command does not run: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		wd, _ := os.Getwd()
		return nil, fmt.Errorf("build: %s is not within a Go module (no go.mod)", wd)
	}
	b.root = filepath.Dir(mod)
	return b, nil
}

// Build runs go build. A killed one leaves its work behind, so that is wiped.
func (b *Go) Build(ctx context.Context, out string, overlay map[string]string) (note string, err error) {
	if err := os.MkdirAll(b.TempDir, 0o755); err != nil {
		return "", fmt.Errorf("build: make the temporary directory: %w", err)
	}
	defer b.wipe()
	args := []string{"go", "build", "-buildvcs=false", "-o", out} // as make build does
	if !b.Debug {
		args = append(args, "-ldflags=-s -w")
	}
	if overlay != nil {
		file := filepath.Join(b.TempDir, "overlay.json")
		data, err := json.Marshal(map[string]any{"Replace": overlay})
		if err == nil {
			err = os.WriteFile(file, data, 0o644)
		}
		if err != nil {
			return "", fmt.Errorf("build: write the overlay: %w", err)
		}
		args = append(args, "-overlay", file)
	}
	args = append(args, b.Flags...)
	_, err = b.Run(ctx, Command{Args: append(args, b.Package), Env: []string{"GOTMPDIR=" + absolute(b.TempDir)}})
	var exit *ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		return "", &CompileError{strings.TrimSpace(string(exit.Stderr))}
	}
	if err != nil {
		return "", fmt.Errorf("build: %w", err)
	}
	return "", nil
}

// wipe removes what builds have left.
func (b *Go) wipe() {
	entries, _ := os.ReadDir(b.TempDir)
	for _, e := range entries {
		os.RemoveAll(filepath.Join(b.TempDir, e.Name()))
	}
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// listed is what go list tells of a package.
type listed struct {
	ImportPath string
	Name       string
	Dir        string
	Standard   bool
	Incomplete bool
	Module     *struct {
		Path, Dir, GoMod, Version, GoVersion string
		Main                                 bool
		Replace                              *struct{ Version string }
	}
	GoFiles, CgoFiles, CFiles, CXXFiles, HFiles, SFiles, SysoFiles, EmbedFiles []string
	FFiles, MFiles, SwigFiles, SwigCXXFiles, IgnoredGoFiles, IgnoredOtherFiles []string
	EmbedPatterns, Imports                                                     []string
	ImportMap                                                                  map[string]string
	Export, DefaultGODEBUG                                                     string
}

// immutable tells whether a package is the standard library's, or in the
// module cache. root is the directory of the main module.
func (p *listed) immutable(root string) bool {
	return p.Standard || p.Module != nil && !p.Module.Main && p.Module.Version != "" && (p.Module.Replace == nil || p.Module.Replace.Version != "") && !strings.HasPrefix(p.Dir, root+string(filepath.Separator))
}

// Inputs asks go list.
func (b *Go) Inputs(ctx context.Context) (*Inputs, error) {
	fields := "ImportPath,Dir,Standard,Module,GoFiles,CgoFiles,CFiles,CXXFiles,HFiles,SFiles,SysoFiles,EmbedFiles,EmbedPatterns,Imports"
	args := append([]string{"go", "list", "-e", "-deps", "-json=" + fields}, b.Flags...)
	out, err := b.Run(ctx, Command{Args: append(args, b.Package)})
	if err != nil {
		return b.everything(), fmt.Errorf("build: list the sources: %w", err)
	}
	in := &Inputs{Root: b.root, Packages: map[string]Package{}}
	mods := map[string]bool{}
	for _, file := range b.modFiles() {
		mods[file] = true
	}
	module, last := "", ""
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return b.everything(), fmt.Errorf("build: read go list: %w", err)
		}
		if p.Module != nil && p.Module.Main {
			module = p.Module.Path
		}
		if p.immutable(b.root) {
			continue
		}
		if p.Dir == "" {
			if rest, ok := strings.CutPrefix(p.ImportPath, module+"/"); ok && module != "" {
				in.Missing = append(in.Missing, filepath.Join(b.root, rest))
			}
			continue
		}
		last = p.Dir
		if p.Module != nil && p.Module.GoMod != "" {
			mods[p.Module.GoMod] = true
		}
		in.Packages[p.ImportPath] = Package{
			ImportPath: p.ImportPath,
			Dir:        p.Dir,
			Files:      slices.Concat(p.GoFiles, p.CgoFiles, p.CFiles, p.CXXFiles, p.HFiles, p.SFiles, p.SysoFiles, p.EmbedFiles),
			Patterns:   p.EmbedPatterns,
			Imports:    p.Imports,
		}
	}
	if last != "" { // the main package
		mods[filepath.Join(last, "default.pgo")] = true
	}
	if work, err := b.Run(ctx, Command{Args: []string{"go", "env", "GOWORK"}}); err == nil {
		if file := strings.TrimSpace(string(work)); file != "" && file != "off" {
			mods[file], mods[file+".sum"] = true, true
		}
	}
	for file := range mods {
		in.Files = append(in.Files, file)
	}
	slices.Sort(in.Files)
	return in, nil
}

// modFiles says what the module is made of. Some may yet come.
func (b *Go) modFiles() []string {
	return []string{filepath.Join(b.root, "go.mod"), filepath.Join(b.root, "go.sum"), filepath.Join(b.root, "go.work")}
}

// everything is each folder of the module that may have a package in it.
func (b *Go) everything() *Inputs {
	in := &Inputs{Root: b.root, Packages: map[string]Package{}, Files: b.modFiles()}
	filepath.WalkDir(b.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil
		}
		if name := e.Name(); path != b.root && (name[0] == '.' || name[0] == '_' || name == "testdata" || name == "node_modules") {
			return filepath.SkipDir
		}
		in.Packages[path] = Package{Dir: path}
		return nil
	})
	return in
}

// Stale tells whether a change of these files may change what a build reads,
// so that Inputs must be asked again before the next build.
func (in *Inputs) Stale(changed []string) bool {
	byDir := map[string]Package{}
	for _, p := range in.Packages {
		byDir[p.Dir] = p
	}
	for _, file := range changed {
		p, known := byDir[filepath.Dir(file)]
		if slices.Contains(in.Files, file) || !known || !slices.Contains(p.Files, filepath.Base(file)) {
			return true
		}
		if filepath.Ext(file) != ".go" {
			continue
		}
		src, err := os.ReadFile(file)
		if err != nil || len(p.Patterns) > 0 || bytes.Contains(src, []byte("//go:")) || bytes.Contains(src, []byte("// +build")) {
			return true
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, src, parser.ImportsOnly)
		if err != nil {
			continue // the compiler will say
		}
		for _, spec := range f.Imports {
			if path, err := strconv.Unquote(spec.Path.Value); err != nil || !slices.Contains(p.Imports, path) {
				return true
			}
		}
	}
	return false
}

// Affected names the packages whose code changes with these files, including
// those that import them; unknown when that cannot be told.
func (in *Inputs) Affected(changed []string) (packages []string, unknown bool) {
	byDir := map[string]string{}
	importers := map[string][]string{}
	for path, p := range in.Packages {
		byDir[p.Dir] = path
		for _, i := range p.Imports {
			importers[i] = append(importers[i], path)
		}
	}
	seen := map[string]bool{}
	var add func(path string)
	add = func(path string) {
		if !seen[path] {
			seen[path] = true
			for _, i := range importers[path] {
				add(i)
			}
		}
	}
	for _, file := range changed {
		path := ""
		for dir := filepath.Dir(file); path == "" && len(dir) >= len(in.Root); dir = filepath.Dir(dir) {
			path = byDir[dir] // an embedded file may lie deeper
		}
		if path == "" {
			return nil, true
		}
		add(path)
	}
	for path := range seen {
		packages = append(packages, path)
	}
	slices.Sort(packages)
	return packages, false
}
