package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/sources"
)

// graph is the packages of a program as go list describes them, with their
// object files.
type graph struct {
	env      goEnv
	root     string // working directory
	trimpath bool
	modinfo  string // what go build links in about modules and flags
	modules  [sha256.Size]byte
	inputs   *sources.Inputs
	snap     *sources.Snapshot // the sources being built, or those of the listing
	main     *unit
	local    []*unit // packages that may change, imports first
	units    map[string]*unit
}

// goEnv is the go command's settings that matter to its tools.
type goEnv struct{ GOROOT, GOTOOLDIR, GOVERSION, GOFLAGS, GOOS, GOARCH, CC, GOEXPERIMENT, GO386, GOAMD64, GOARM, GOARM64, GOMIPS, GOMIPS64, GOPPC64, GORISCV64, GOWASM, GOFIPS140, GOENV string }

// load makes a listing. It fails if the sources do not stay the same during it.
func (d *Direct) load(ctx context.Context, modinfo string) (*graph, error) {
	g := &graph{modinfo: modinfo, units: map[string]*unit{}}
	g.root, _ = os.Getwd()
	out, err := d.Run(ctx, proc.Command{Args: []string{"go", "env", "-json"}})
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(out, &g.env); err != nil {
		return nil, err
	}
	if err := g.flags(d); err != nil {
		return nil, err
	}
	if g.inputs, err = d.Inputs(ctx); err != nil {
		return nil, err
	}
	g.modules = g.moduleFiles()
	set := g.inputs.Set()
	before := sources.Take(set)
	fields := "ImportPath,Dir,Standard,Module,GoFiles,CgoFiles,CFiles,CXXFiles,HFiles,SFiles,SysoFiles,EmbedFiles,EmbedPatterns,Imports,Export,ImportMap,Name,DefaultGODEBUG,FFiles,MFiles,SwigFiles,SwigCXXFiles,Incomplete,IgnoredGoFiles,IgnoredOtherFiles"
	tmp := filepath.Join(d.dir, "tmp") // a killed go command leaves its work there
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	copies, _, err := sources.Copy(set, filepath.Join(tmp, "frozen")) // it compiles: see Spec.Freeze
	if err != nil {
		return nil, err
	}
	overlay, err := overlayFlags(tmp, copies)
	if err != nil {
		return nil, err
	}
	args := append([]string{"go", "list", "-export", "-deps", "-buildvcs=false", "-json=" + fields}, overlay...)
	args = append(args, d.Flags...)
	if out, err = d.Run(ctx, proc.Command{Args: append(args, d.Package), Env: []string{"GOTMPDIR=" + tmp}}); err != nil {
		return nil, err
	}
	g.snap = sources.Take(set)
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		u := &unit{}
		if err := dec.Decode(&u.listed); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		if err := g.add(u); err != nil {
			return nil, err
		}
	}
	if g.main == nil || !g.main.local || g.main.needsGoBuild != "" {
		return nil, notDirect("the main package is not plain Go of this module")
	}
	if _, err := os.Stat(filepath.Join(g.main.Dir, "default.pgo")); err == nil {
		return nil, notDirect("the program is built with a profile (default.pgo)")
	}
	for _, u := range g.local {
		u.depends = g.depends(u)
		if g.changedIn(u, before) { // the object may be of the old or the new content
			u.object, u.source = "", [sha256.Size]byte{}
			for name := range u.hasDirective {
				if u.hasDirective[name] { // a directive may decide which files there are
					return nil, errors.New("build: the sources changed during the listing")
				}
			}
		}
	}
	if g.moduleFiles() != g.modules {
		return nil, errors.New("build: the modules changed while they were listed")
	}
	return g, nil
}

// changedIn reports whether a file of the package differs between before and
// the listed sources, or one appeared or disappeared beside it.
func (g *graph) changedIn(u *unit, before *sources.Snapshot) bool {
	if !slices.Equal(u.namesIn(before), u.names) {
		return true
	}
	sum, err := u.sourceIn(before)
	return err != nil || sum != u.source
}

// flags records which of the go command's flags are in use, and refuses those
// that change more than this package handles.
func (g *graph) flags(d *Direct) error {
	for _, f := range slices.Concat(strings.Fields(g.env.GOFLAGS), d.Flags) {
		name, _, _ := strings.Cut(strings.TrimLeft(f, "-"), "=")
		switch name {
		case "trimpath":
			g.trimpath = true
		case "tags", "mod", "modcacherw", "p":
		case "buildvcs":
			if slices.Contains(d.Flags, f) && !strings.HasSuffix(f, "=false") {
				return fmt.Errorf("%w: the flag %s is in use", errUseless, f)
			}
		default:
			return fmt.Errorf("%w: the flag %s is in use", errUseless, f)
		}
	}
	if strings.ContainsAny(g.env.CC, " \t") {
		return fmt.Errorf("%w: the C compiler %q has arguments", errUseless, g.env.CC)
	}
	return nil
}

// add adds a listed package to the graph.
func (g *graph) add(u *unit) error {
	g.units[u.ImportPath] = u
	u.object = u.Export
	if u.Name == "main" {
		g.main = u
	}
	_, u.local = g.inputs.Packages[u.ImportPath]
	if !u.local && !u.immutable(g.inputs.Root) {
		return errors.New("build: a package appeared during the listing")
	}
	if !u.local {
		u.export = sha256.Sum256([]byte(u.Export)) // it never changes
		return nil
	}
	g.local = append(g.local, u)
	switch {
	case u.Incomplete || u.Export == "" && u.Name != "main":
		return errors.New("build: the sources do not compile")
	case len(u.CgoFiles)+len(u.CFiles)+len(u.CXXFiles)+len(u.FFiles)+len(u.MFiles)+len(u.SwigFiles)+len(u.SwigCXXFiles) > 0:
		u.needsGoBuild = "uses cgo"
	case len(u.SFiles)+len(u.SysoFiles)+len(u.HFiles) > 0:
		u.needsGoBuild = "has files that are not Go"
	case len(u.EmbedPatterns) > 0:
		u.needsGoBuild = "embeds files"
	case u.Module == nil || strings.Contains(u.Dir, string(filepath.Separator)+"vendor"+string(filepath.Separator)):
		u.needsGoBuild = "is not of a module, or vendored"
	}
	u.names = u.namesIn(g.snap)
	if err := u.note(g.snap); err != nil {
		return err
	}
	var err error
	if err := u.importsMatch(); err != nil || u.object == "" {
		return err
	}
	u.export, err = exportOf(u.object)
	return err
}

// note records what the object is compiled from. Files that have not changed
// are not read again.
func (u *unit) note(snap *sources.Snapshot) error {
	source, err := u.sourceIn(snap)
	if err != nil { // not a notDirectError: only the listing is out of date
		return fmt.Errorf("build: the sources changed during the listing: %v", err)
	}
	sums, marked, imports := map[string]sources.Sum{}, map[string]bool{}, map[string][]string{}
	for _, name := range u.candidates() {
		path := filepath.Join(u.Dir, name)
		sums[name], _ = snap.Sum(path)
		if before, ok := u.sums[name]; ok && before == sums[name] {
			marked[name], imports[name] = u.hasDirective[name], u.imports[name]
			continue
		}
		data, ok := snap.Content(path)
		if !ok {
			return fmt.Errorf("build: the sources changed during the listing: %s", path)
		}
		marked[name] = directive(data) != ""
		if strings.HasSuffix(name, ".go") {
			if imports[name], err = importsOf(name, data); err != nil && slices.Contains(u.GoFiles, name) {
				return err
			}
		}
	}
	u.source, u.sums, u.hasDirective, u.imports = source, sums, marked, imports
	return nil
}

// importsMatch returns an error if the files do not import what the listing
// says, because they have changed since.
func (u *unit) importsMatch() error {
	found := map[string]bool{}
	for name, imports := range u.imports {
		if slices.Contains(u.GoFiles, name) || slices.Contains(u.CgoFiles, name) {
			for _, path := range imports {
				if !strings.HasPrefix(path, "package ") && path != "C" {
					found[path] = true
				}
			}
		}
	}
	if u.needsGoBuild == "" && !slices.Equal(slices.Sorted(maps.Keys(found)), slices.Sorted(slices.Values(u.Imports))) {
		return errors.New("build: the sources changed during the listing")
	}
	return nil
}

// moduleFiles returns a hash of what decides which modules there are: go.mod,
// go.sum and go.work, wherever they are or may appear, and the go command's
// settings.
func (g *graph) moduleFiles() (sum [sha256.Size]byte) {
	files := append(slices.Clone(g.inputs.Files), filepath.Join(g.inputs.Root, "vendor", "modules.txt"), g.env.GOENV)
	for dir := g.root; ; dir = filepath.Dir(dir) {
		files = append(files, filepath.Join(dir, "go.work"))
		if dir == filepath.Dir(dir) {
			break
		}
	}
	for _, p := range g.inputs.Packages {
		for dir := p.Dir; strings.HasPrefix(dir, g.inputs.Root); dir = filepath.Dir(dir) {
			files = append(files, filepath.Join(dir, "go.mod"))
		}
	}
	for _, name := range files {
		files = append(files, neighbours(name)...)
	}
	slices.Sort(files)
	h := sha256.New()
	for _, name := range slices.Compact(files) {
		data, err := os.ReadFile(name)
		fmt.Fprintf(h, "%s %d %t\n", name, len(data), err == nil)
		h.Write(data)
	}
	h.Sum(sum[:0])
	return sum
}

// neighbours returns the go.mod files of the folders that a go.mod or go.work
// names.
func neighbours(file string) (files []string) {
	if base := filepath.Base(file); base != "go.mod" && base != "go.work" {
		return nil
	}
	data, _ := os.ReadFile(file)
	for _, word := range strings.Fields(string(data)) {
		word = strings.Trim(word, "\"`")
		if !filepath.IsAbs(word) {
			if !strings.HasPrefix(word, ".") {
				continue
			}
			word = filepath.Join(filepath.Dir(file), word)
		}
		files = append(files, filepath.Join(word, "go.mod"))
	}
	return files
}

// resolve returns the package that an import path means in u.
func (g *graph) resolve(u *unit, path string) string {
	if mapped, ok := u.ImportMap[path]; ok {
		return mapped
	}
	return path
}
