// Package build turns sources into a binary and knows which files it read to
// do so.
//
// A [Builder] builds one main package. It runs the go command and its tools
// through a [proc.Runner], because package proc reaps every child of the process.
package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/sources"
)

// CompileError is the complete output of a compiler or linker that failed.
type CompileError struct{ Output string }

func (e *CompileError) Error() string { return e.Output }

// Builder makes binaries of one main package.
type Builder interface {
	// Inputs returns what a build reads. On error it returns a superset: every
	// folder of the module.
	Inputs(ctx context.Context) (*sources.Inputs, error)

	// Build makes the binary. A mistake in the sources is a [*CompileError].
	// When ctx ends, nothing of the build is left running. note says what
	// people may want to know about how it was built, or is "".
	Build(ctx context.Context, job Spec) (note string, err error)

	// Close ends the work between builds and waits for it.
	Close()
}

// Spec says what to build, and where to.
type Spec struct {
	Out     string            // where the binary goes
	Sources *sources.Snapshot // content of the sources; the caller discards the build if they change meanwhile
	Overlay map[string]string // files to read instead, by the absolute path of the original; nil for none

	// Freeze copies the sources and returns the copies like Overlay. The go
	// command is given copies whenever it compiles: it hashes a file and compiles
	// it a moment later, so that a save in between would leave an object of the
	// new content in its cache under the name of the old one, for ever. nil if the
	// sources do not change.
	Freeze func() (map[string]string, error)
}

// Go builds with the go command.
type Go struct {
	Package string // import path or ./path of the main package
	TempDir string // for the go command's work; NewGo wipes it
	Run     proc.Runner
	Flags   []string // flags for the go command, beside its own
	Debug   bool     // keep what debuggers need
	root    string
}

var _ Builder = (*Go)(nil)

// NewGo returns a builder of the main package pkg in the working directory.
// It fails when there is no go command or no module.
func NewGo(ctx context.Context, pkg, tempDir string, run proc.Runner) (*Go, error) {
	b := &Go{Package: pkg, TempDir: tempDir, Run: run}
	if err := os.RemoveAll(tempDir); err != nil {
		return nil, fmt.Errorf("build: wipe the temporary directory: %w", err)
	}
	if err := os.MkdirAll(tempDir, 0o700); err != nil {
		return nil, fmt.Errorf("build: make the temporary directory: %w", err)
	}
	out, err := run(ctx, proc.Command{Args: []string{"go", "env", "GOMOD"}})
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

// Build runs go build. A killed go command leaves its work behind, so that is
// wiped.
func (b *Go) Build(ctx context.Context, job Spec) (note string, err error) {
	if err := os.MkdirAll(b.TempDir, 0o700); err != nil {
		return "", fmt.Errorf("build: make the temporary directory: %w", err)
	}
	defer b.wipe()
	args := []string{"go", "build", "-buildvcs=false", "-o", job.Out} // as make build does
	if !b.Debug {
		args = append(args, "-ldflags=-s -w")
	}
	overlay := job.Overlay
	if overlay == nil && job.Freeze != nil {
		if overlay, err = job.Freeze(); err != nil {
			return "", fmt.Errorf("build: copy the sources: %w", err)
		}
	}
	flags, err := overlayFlags(b.TempDir, overlay)
	if err != nil {
		return "", err
	}
	args = append(append(args, flags...), b.Flags...)
	_, err = b.Run(ctx, proc.Command{Args: append(args, b.Package), Env: []string{"GOTMPDIR=" + sources.Absolute(b.TempDir)}})
	var exit *proc.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		return "", &CompileError{strings.TrimSpace(string(exit.Stderr))}
	}
	if err != nil {
		return "", fmt.Errorf("build: %w", err)
	}
	return "", nil
}

// overlayFlags writes an overlay to dir and returns the flags for it; none if it is
// empty.
func overlayFlags(dir string, overlay map[string]string) ([]string, error) {
	if len(overlay) == 0 {
		return nil, nil
	}
	file := filepath.Join(dir, "overlay.json")
	data, err := json.Marshal(map[string]any{"Replace": overlay})
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("build: write the overlay: %w", err)
	}
	return []string{"-overlay", file}, nil
}

// Close does nothing: between builds the go command does nothing either.
func (b *Go) Close() {}

// wipe removes what builds have left.
func (b *Go) wipe() {
	entries, _ := os.ReadDir(b.TempDir)
	for _, e := range entries {
		os.RemoveAll(filepath.Join(b.TempDir, e.Name()))
	}
}

// listed is a package as go list describes it.
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

// files names what a build reads of the package.
func (p *listed) files() []string {
	return slices.Concat(p.GoFiles, p.CgoFiles, p.CFiles, p.CXXFiles, p.MFiles, p.HFiles, p.FFiles, p.SFiles, p.SwigFiles, p.SwigCXXFiles, p.SysoFiles, p.EmbedFiles)
}

// immutable reports whether a package belongs to the standard library or is in
// the module cache. root is the directory of the main module.
func (p *listed) immutable(root string) bool {
	return p.Standard || p.Module != nil && !p.Module.Main && p.Module.Version != "" && (p.Module.Replace == nil || p.Module.Replace.Version != "") && !strings.HasPrefix(p.Dir, root+string(filepath.Separator))
}

// Inputs implements [Builder]. It asks go list.
func (b *Go) Inputs(ctx context.Context) (*sources.Inputs, error) {
	fields := "ImportPath,Name,Dir,Standard,Module,GoFiles,CgoFiles,CFiles,CXXFiles,HFiles,SFiles,SysoFiles,EmbedFiles,EmbedPatterns,Imports,FFiles,MFiles,SwigFiles,SwigCXXFiles"
	args := append([]string{"go", "list", "-e", "-deps", "-json=" + fields}, b.Flags...)
	out, err := b.Run(ctx, proc.Command{Args: append(args, b.Package)})
	if err != nil {
		return b.everything(), fmt.Errorf("build: list the sources: %w", err)
	}
	in := &sources.Inputs{Root: b.root, Packages: map[string]sources.Package{}}
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
		in.Packages[p.ImportPath] = sources.Package{
			ImportPath: p.ImportPath,
			Dir:        p.Dir,
			Files:      p.files(),
			Patterns:   p.EmbedPatterns,
			Imports:    p.Imports,
			Main:       p.Name == "main",
		}
	}
	if last != "" { // the main package
		mods[filepath.Join(last, "default.pgo")] = true
	}
	if work, err := b.Run(ctx, proc.Command{Args: []string{"go", "env", "GOWORK"}}); err == nil {
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

// modFiles returns the files that define the module. Some may not exist yet.
func (b *Go) modFiles() []string {
	return []string{filepath.Join(b.root, "go.mod"), filepath.Join(b.root, "go.sum"), filepath.Join(b.root, "go.work")}
}

// everything returns every folder of the module that may have a package in it.
func (b *Go) everything() *sources.Inputs {
	in := &sources.Inputs{Root: b.root, Packages: map[string]sources.Package{}, Files: b.modFiles()}
	filepath.WalkDir(b.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil
		}
		if name := e.Name(); path != b.root && (name[0] == '.' || name[0] == '_' || name == "testdata" || name == "node_modules") {
			return filepath.SkipDir
		}
		in.Packages[path] = sources.Package{Dir: path}
		return nil
	})
	return in
}
