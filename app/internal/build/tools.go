package build

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"errors"
	"fmt"
	"go/version"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/sources"
)

// buildID takes the place of the one that go build computes, and is as long.
var buildID = strings.Join([]string{strings.Repeat("d", 20), strings.Repeat("i", 20), strings.Repeat("r", 20), strings.Repeat("t", 20)}, "/")

// environ returns the go command's settings that the tools need.
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
func (g *graph) compile(ctx context.Context, d *Direct, u *unit, snap *sources.Snapshot, depends [sha256.Size]byte) error {
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
	if err := os.WriteFile(work+".cfg", []byte(cfg.String()), 0o600); err != nil {
		return notDirect("the compiler's configuration cannot be written: %v", err)
	}
	path, trim := u.ImportPath, work+"=>"
	if u.Name == "main" {
		path = "main"
	}
	if g.trimpath {
		name := u.ImportPath
		if v := u.Module.Version; v != "" {
			name = u.Module.Path + "@" + v + strings.TrimPrefix(u.ImportPath, u.Module.Path)
		}
		trim = u.Dir + "=>" + name + ";" + trim
	}
	args := []string{filepath.Join(g.env.GOTOOLDIR, "compile"), "-o", work + ".a", "-trimpath", trim, "-p", path}
	args = append(args, "-lang="+version.Lang("go"+cmp.Or(u.Module.GoVersion, "1.16")), "-complete", "-buildid", "direct", "-goversion", g.env.GOVERSION, "-nolocalimports", "-importcfg", work+".cfg", "-pack")
	for _, name := range u.GoFiles {
		args = append(args, g.short(filepath.Join(u.Dir, name)))
	}
	if strings.HasPrefix(u.object, d.dir) {
		os.Remove(u.object)
	}
	u.object = ""
	defer os.Remove(work + ".cfg")
	defer func() {
		if u.object == "" {
			os.Remove(work + ".a")
		}
	}()
	if _, err := d.Run(ctx, proc.Command{Args: args, Env: g.environ(g.env.GOROOT)}); err != nil {
		var exit *proc.ExitError
		if errors.As(err, &exit) && ctx.Err() == nil {
			if why := g.outdated(u, exit); why != "" {
				return notDirect("%s", why)
			}
			return &CompileError{"# " + u.ImportPath + "\n" + complaint(append(exit.Stdout, exit.Stderr...))}
		}
		return fmt.Errorf("build: compile %s: %w", u.ImportPath, err)
	}
	for _, name := range u.candidates() { // else the object may be of other content
		if !snap.Holds(filepath.Join(u.Dir, name)) {
			return notDirect("the sources changed during the build")
		}
	}
	export, err := exportOf(work + ".a")
	if err != nil {
		return fmt.Errorf("build: read the object of %s: %w", u.ImportPath, err)
	}
	if err := u.note(snap); err != nil {
		return notDirect("%v", err)
	}
	u.object, u.depends, u.export = work+".a", depends, export
	return nil
}

// outdated returns why a failure of the compiler may not be the sources' fault,
// or "": the go command cleans its cache, and may be replaced.
func (g *graph) outdated(u *unit, exit *proc.ExitError) string {
	for _, path := range u.Imports {
		dep := g.units[g.resolve(u, path)]
		if dep == nil || dep.object == "" {
			continue
		}
		if _, err := os.Stat(dep.object); err != nil {
			return "the object of " + path + " is gone"
		}
	}
	if bytes.Contains(slices.Concat(exit.Stdout, exit.Stderr), []byte("does not match go tool version")) {
		return "the go command was replaced"
	}
	return ""
}

// short returns path as go build would name it.
func (g *graph) short(path string) string {
	if rel, err := filepath.Rel(g.root, path); err == nil && len(rel) < len(path) && !strings.HasPrefix(rel, "..") {
		return "." + string(filepath.Separator) + rel
	}
	return path
}

// complaint returns the compiler's output as go build shows it.
func complaint(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "./")
	}
	return strings.Join(lines, "\n")
}

// link links the program to out.
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
	if err := os.WriteFile(file, []byte(cfg.String()), 0o600); err != nil {
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
	_, err := d.Run(ctx, proc.Command{Args: args, Env: g.environ(goroot)})
	var exit *proc.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		return notDirect("the linker refused: %s", strings.TrimSpace(string(append(exit.Stdout, exit.Stderr...))))
	}
	if err != nil {
		return fmt.Errorf("build: link: %w", err)
	}
	return nil
}

// check compares a direct build with the go build of the same sources that
// began at began; want is the hash of its binary.
func (g *graph) check(ctx context.Context, d *Direct, want [sha256.Size]byte, began time.Time) error {
	again := errors.New("build: the sources changed during the check")
	for _, u := range g.local {
		if u.object == "" {
			return again
		}
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	out := filepath.Join(d.dir, "check")
	defer os.Remove(out)
	if err := g.compile(ctx, d, g.main, g.snap, g.main.depends); err != nil {
		return again
	}
	if err := g.link(ctx, d, out); err != nil {
		return err
	}
	if have, err := sumOf(out); err != nil || have != want {
		for _, u := range g.local {
			for _, name := range u.candidates() {
				if info, err := os.Stat(filepath.Join(u.Dir, name)); err != nil || info.ModTime().After(began.Add(-time.Second)) {
					return again
				}
			}
		}
		if d.mismatches++; d.mismatches >= 3 {
			return fmt.Errorf("%w: direct builds differ from go build", errUseless)
		}
		return again
	}
	return nil
}

// exportOf returns a hash of the exported part of an object file, without its
// build ID.
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

// modinfoOf returns what go build has linked into a binary about modules and
// flags.
func modinfoOf(binary string) (string, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return "", err
	}
	info.GoVersion = ""
	const begin, end = "0w\xaf\f\x92t\b\x02A\xe1\xc1\a\xe6\xd6\x18\xe6", "\xf92C1\x86\x18 r\x00\x82B\x10A\x16\xd8\xf2"
	return begin + info.String() + end, nil
}
