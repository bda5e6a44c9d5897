package build

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"go/version"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// graph is the packages of a program as go list tells them, with the object
// files that they were compiled to.
type graph struct {
	env      goEnv
	root     string // working directory
	trimpath bool
	modinfo  string // what go build links in about modules and flags
	modules  [sha256.Size]byte
	inputs   *Inputs
	main     *unit
	local    []*unit // those that may change, imports first
	units    map[string]*unit
}

// goEnv is what the go command passes to its tools.
type goEnv struct{ GOROOT, GOTOOLDIR, GOVERSION, GOFLAGS, GOOS, GOARCH, CC, CXX, GOEXPERIMENT, GO386, GOAMD64, GOARM, GOARM64, GOMIPS, GOMIPS64, GOPPC64, GORISCV64, GOWASM, GOFIPS140 string }

// buildID stands in the place of the one that go build computes, as long.
var buildID = strings.Join([]string{strings.Repeat("d", 20), strings.Repeat("i", 20), strings.Repeat("r", 20), strings.Repeat("t", 20)}, "/")

// load asks for the packages. They are those of the sources at one moment, or
// it is an error.
func (d *Direct) load(ctx context.Context, modinfo string) (*graph, error) {
	g := &graph{modinfo: modinfo, units: map[string]*unit{}}
	g.root, _ = os.Getwd()
	out, err := d.Run(ctx, Command{Args: []string{"go", "env", "-json"}})
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
	before := g.contents()
	fields := "ImportPath,Dir,Standard,Module,GoFiles,CgoFiles,CFiles,CXXFiles,HFiles,SFiles,SysoFiles,EmbedFiles,EmbedPatterns,Imports,Export,ImportMap,Name,DefaultGODEBUG,FFiles,MFiles,SwigFiles,SwigCXXFiles,Incomplete"
	args := append([]string{"go", "list", "-export", "-deps", "-buildvcs=false", "-json=" + fields}, d.Flags...)
	if out, err = d.Run(ctx, Command{Args: append(args, d.Package)}); err != nil {
		return nil, err
	}
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
	if g.main == nil || !g.main.local || g.main.special != "" {
		return nil, notDirect("the main package is not plain Go of this module")
	}
	if _, err := os.Stat(filepath.Join(g.main.Dir, "default.pgo")); err == nil {
		return nil, notDirect("the program is built with a profile (default.pgo)")
	}
	for _, u := range g.local {
		u.depends = g.depends(u)
		if before[u.Dir] != g.contentsOf(u.Dir) { // the object may be of either
			u.object, u.source = "", [sha256.Size]byte{}
		}
	}
	if g.moduleFiles() != g.modules {
		return nil, errors.New("build: the modules changed while they were listed")
	}
	return g, nil
}

// contents identifies what is in each folder of the sources.
func (g *graph) contents() map[string][sha256.Size]byte {
	all := map[string][sha256.Size]byte{}
	for _, p := range g.inputs.Packages {
		all[p.Dir] = g.contentsOf(p.Dir)
	}
	return all
}

func (g *graph) contentsOf(dir string) (sum [sha256.Size]byte) {
	h := sha256.New()
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); slices.Contains(sourceExtensions, ext) {
			data, _ := os.ReadFile(filepath.Join(dir, e.Name()))
			fmt.Fprintf(h, "%s %d\n", e.Name(), len(data))
			h.Write(data)
		}
	}
	h.Sum(sum[:0])
	return sum
}

// flags tells which of the go command's flags are in use, and refuses those
// that change more than this package knows of.
func (g *graph) flags(d *Direct) error {
	for _, f := range slices.Concat(strings.Fields(g.env.GOFLAGS), d.Flags) {
		name, _, _ := strings.Cut(strings.TrimLeft(f, "-"), "=")
		switch name {
		case "trimpath":
			g.trimpath = true
		case "tags", "mod", "modcacherw", "buildvcs", "p":
		default:
			return notDirect("the flag %s is in use", f)
		}
	}
	if strings.ContainsAny(g.env.CC, " \t") {
		return notDirect("the C compiler %q has arguments", g.env.CC)
	}
	return nil
}

// add makes a package of the list part of the graph.
func (g *graph) add(u *unit) error {
	g.units[u.ImportPath] = u
	u.object = u.Export
	if u.Name == "main" {
		g.main = u
	}
	_, u.local = g.inputs.Packages[u.ImportPath]
	if !u.local {
		u.export = sha256.Sum256([]byte(u.Export)) // it never changes
		return nil
	}
	g.local = append(g.local, u)
	switch {
	case u.Incomplete || u.Export == "" && u.Name != "main":
		return errors.New("build: the sources do not compile")
	case len(u.CgoFiles)+len(u.CFiles)+len(u.CXXFiles)+len(u.FFiles)+len(u.MFiles)+len(u.SwigFiles)+len(u.SwigCXXFiles) > 0:
		u.special = "uses cgo"
	case len(u.SFiles)+len(u.SysoFiles)+len(u.HFiles) > 0:
		u.special = "has files that are not Go"
	case len(u.EmbedPatterns) > 0:
		u.special = "embeds files"
	case u.Module == nil || strings.Contains(u.Dir, string(filepath.Separator)+"vendor"+string(filepath.Separator)):
		u.special = "is not of a module, or vendored"
	}
	var err error
	if u.names, err = u.folder(); err != nil {
		return err
	}
	files, sum, err := u.content()
	if err != nil { // for the moment: this is about the list, not about a build
		return fmt.Errorf("build: the sources changed while they were listed: %v", err)
	}
	u.source, u.imports = sum, map[string][]string{}
	for name, data := range files {
		if strings.HasSuffix(name, ".go") {
			if u.imports[name], err = importsOf(name, data); err != nil {
				return err
			}
		}
		if u.special == "" {
			for _, directive := range directives {
				if bytes.Contains(data, []byte(directive)) {
					u.special = "has " + strings.TrimSpace(directive)
				}
			}
		}
	}
	if err := u.importsMatch(); err != nil || u.object == "" {
		return err
	}
	u.export, err = exportOf(u.object)
	return err
}

// importsMatch tells, by an error, whether the files do not import what the
// list says: they have changed since.
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
	if u.special == "" && !slices.Equal(slices.Sorted(maps.Keys(found)), slices.Sorted(slices.Values(u.Imports))) {
		return errors.New("build: the sources changed while they were listed")
	}
	return nil
}

// moduleFiles identifies go.mod and the like.
func (g *graph) moduleFiles() (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, name := range append(slices.Clone(g.inputs.Files), filepath.Join(g.inputs.Root, "vendor", "modules.txt")) {
		data, err := os.ReadFile(name)
		fmt.Fprintf(h, "%s %d %t\n", name, len(data), err == nil)
		h.Write(data)
	}
	h.Sum(sum[:0])
	return sum
}

// resolve is the package that an import means in u.
func (g *graph) resolve(u *unit, path string) string {
	if mapped, ok := u.ImportMap[path]; ok {
		return mapped
	}
	return path
}

// environ is what the tools need to know of the go command's settings.
func (g *graph) environ(goroot string) []string {
	e := g.env
	return []string{
		"GOROOT=" + goroot, "GOOS=" + e.GOOS, "GOARCH=" + e.GOARCH, "GOEXPERIMENT=" + e.GOEXPERIMENT, "GO386=" + e.GO386,
		"GOAMD64=" + e.GOAMD64, "GOARM=" + e.GOARM, "GOARM64=" + e.GOARM64, "GOMIPS=" + e.GOMIPS, "GOMIPS64=" + e.GOMIPS64,
		"GOPPC64=" + e.GOPPC64, "GORISCV64=" + e.GORISCV64, "GOWASM=" + e.GOWASM, "GOFIPS140=" + e.GOFIPS140,
		"GOGC=off", // they are short-lived
	}
}

// compile makes the object file of one package.
func (g *graph) compile(ctx context.Context, d *Direct, u *unit, source, depends [sha256.Size]byte) error {
	work := filepath.Join(d.dir, strconv.Itoa(int(d.objects.Add(1))))
	var cfg strings.Builder
	for _, path := range u.Imports {
		resolved := g.resolve(u, path)
		if resolved != path {
			fmt.Fprintf(&cfg, "importmap %s=%s\n", path, resolved)
		}
		if dep := g.units[resolved]; dep != nil && dep.object != "" {
			fmt.Fprintf(&cfg, "packagefile %s=%s\n", resolved, dep.object)
		}
	}
	if err := os.WriteFile(work+".cfg", []byte(cfg.String()), 0o644); err != nil {
		return fmt.Errorf("build: write the compiler's configuration: %w", err)
	}
	path, trim := u.ImportPath, work+"=>"
	if u.Name == "main" {
		path = "main"
	}
	if g.trimpath {
		trim = u.Dir + "=>" + u.ImportPath + ";" + trim
	}
	args := []string{filepath.Join(g.env.GOTOOLDIR, "compile"), "-o", work + ".a", "-trimpath", trim, "-p", path}
	if u.Module.GoVersion != "" {
		args = append(args, "-lang="+version.Lang("go"+u.Module.GoVersion))
	}
	args = append(args, "-complete", "-buildid", "direct", "-goversion", g.env.GOVERSION, "-nolocalimports", "-importcfg", work+".cfg", "-pack")
	for _, name := range u.GoFiles {
		args = append(args, g.short(filepath.Join(u.Dir, name)))
	}
	if strings.HasPrefix(u.object, d.dir) {
		os.Remove(u.object)
	}
	u.object = ""
	defer os.Remove(work + ".cfg")
	if _, err := d.Run(ctx, Command{Args: args, Env: g.environ(g.env.GOROOT)}); err != nil {
		var exit *ExitError
		if errors.As(err, &exit) && ctx.Err() == nil {
			return &CompileError{"# " + u.ImportPath + "\n" + complaint(append(exit.Stdout, exit.Stderr...))}
		}
		return fmt.Errorf("build: compile %s: %w", u.ImportPath, err)
	}
	if _, now, err := u.content(); err != nil || now != source {
		return notDirect("the sources changed during the build")
	}
	export, err := exportOf(work + ".a")
	if err != nil {
		return fmt.Errorf("build: read the object of %s: %w", u.ImportPath, err)
	}
	u.object, u.source, u.depends, u.export = work+".a", source, depends, export
	return nil
}

// short is path as go build would name it.
func (g *graph) short(path string) string {
	if rel, err := filepath.Rel(g.root, path); err == nil && len(rel) < len(path) && !strings.HasPrefix(rel, "..") {
		return "." + string(filepath.Separator) + rel
	}
	return path
}

// complaint is the compiler's output as go build shows it.
func complaint(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "./")
	}
	return strings.Join(lines, "\n")
}

// link makes the program.
func (g *graph) link(ctx context.Context, d *Direct, out string) error {
	var cfg strings.Builder
	for path, u := range g.units {
		if u.object != "" && u != g.main {
			fmt.Fprintf(&cfg, "packagefile %s=%s\n", path, u.object)
		}
	}
	fmt.Fprintf(&cfg, "packagefile %s=%s\n", g.main.ImportPath, g.main.object)
	fmt.Fprintf(&cfg, "modinfo %q\n", g.modinfo)
	file := filepath.Join(d.dir, strconv.Itoa(int(d.objects.Add(1)))+".link")
	defer os.Remove(file)
	if err := os.WriteFile(file, []byte(cfg.String()), 0o644); err != nil {
		return fmt.Errorf("build: write the linker's configuration: %w", err)
	}
	args := []string{filepath.Join(g.env.GOTOOLDIR, "link"), "-o", out, "-importcfg", file, "-buildmode=exe", "-buildid=" + buildID}
	if g.main.DefaultGODEBUG != "" {
		args = append(args, "-X=runtime.godebugDefault="+g.main.DefaultGODEBUG)
	}
	if !d.Debug {
		args = append(args, "-s", "-w")
	}
	goroot := g.env.GOROOT
	if g.trimpath {
		goroot = ""
	}
	args = append(args, "-extld="+g.env.CC, g.main.object)
	_, err := d.Run(ctx, Command{Args: args, Env: g.environ(goroot)})
	var exit *ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		return notDirect("the linker refused: %s", strings.TrimSpace(string(append(exit.Stdout, exit.Stderr...))))
	}
	if err != nil {
		return fmt.Errorf("build: link: %w", err)
	}
	return nil
}

// check compares what comes out with what a go build, begun then, gave for the
// same sources.
func (g *graph) check(ctx context.Context, d *Direct, want [sha256.Size]byte, began time.Time) error {
	again := errors.New("build: the sources changed during the check")
	for _, u := range g.local {
		if u.object == "" {
			return again
		}
	}
	out := filepath.Join(d.dir, "check")
	defer os.Remove(out)
	if err := g.compile(ctx, d, g.main, g.main.source, g.main.depends); err != nil {
		return again
	}
	if err := g.link(ctx, d, out); err != nil {
		return err
	}
	if have, err := sumOf(out); err != nil || have != want {
		for _, u := range g.local {
			for _, name := range u.GoFiles {
				if info, err := os.Stat(filepath.Join(u.Dir, name)); err != nil || info.ModTime().After(began.Add(-time.Second)) {
					return again
				}
			}
		}
		return notDirect("it gives another binary than go build on this system")
	}
	return nil
}

// exportOf identifies the exported part of an object file, without its build ID.
func exportOf(object string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(object)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	var head [8 + 60]byte
	if _, err := io.ReadFull(r, head[:]); err != nil || !bytes.HasPrefix(head[8:], []byte("__.PKGDEF")) {
		return sum, fmt.Errorf("%s is no object file", object)
	}
	size, err := strconv.ParseInt(strings.TrimSpace(string(head[8+48:8+58])), 10, 64)
	if err != nil {
		return sum, err
	}
	h := sha256.New()
	part := bufio.NewReader(io.LimitReader(r, size))
	for {
		line, err := part.ReadBytes('\n')
		if err != nil {
			return sum, err
		}
		if len(line) == 1 { // the end of the header
			break
		}
		if !bytes.HasPrefix(line, []byte("build id ")) {
			h.Write(line)
		}
	}
	if _, err := io.Copy(h, part); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// modinfoOf is what go build has linked into a binary about modules and flags.
func modinfoOf(binary string) (string, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return "", err
	}
	info.GoVersion = ""
	const begin, end = "0w\xaf\f\x92t\b\x02A\xe1\xc1\a\xe6\xd6\x18\xe6", "\xf92C1\x86\x18 r\x00\x82B\x10A\x16\xd8\xf2"
	return begin + info.String() + end, nil
}
