package build_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/sources"
)

// TestDirectWithSettings edits a package that others import, under several
// flags and layouts of modules: the direct build equals that of go build.
func TestDirectWithSettings(t *testing.T) {
	const (
		main  = "package main\n\nimport \"edits/lib\"\n\nfunc main() { println(lib.Text(), lib.Tagged) }\n"
		lib   = "package lib\n\n//go:noinline\nfunc Text() string { return %q }\n"
		tagOn = "//go:build special\n\npackage lib\n\nconst Tagged = \"on\"\n"
		off   = "//go:build !special\n\npackage lib\n\nconst Tagged = \"off\"\n"
		other = "package other\n\n//go:noinline\nfunc Text() string { return %q }\n"
	)
	plain := map[string]string{
		"go.mod":     "module edits\n\ngo 1.26\n",
		"main.go":    main,
		"lib/lib.go": lib,
		"lib/on.go":  tagOn,
		"lib/off.go": off,
	}
	elsewhere := map[string]string{
		"main.go":        strings.Replace(strings.Replace(main, "edits/lib", "elsewhere/other", 1), "lib.Text(), lib.Tagged", "other.Text()", 1),
		"other/go.mod":   "module elsewhere/other\n\ngo 1.25\n",
		"other/other.go": other,
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		edit  string // the file whose %q is replaced
		flags []string
		debug bool
		env   []string
		want  string // why it is not direct, "" if it is
	}{
		{name: "plain", files: plain, edit: "lib/lib.go"},
		{name: "trimpath", files: plain, edit: "lib/lib.go", flags: []string{"-trimpath"}},
		{name: "tags", files: plain, edit: "lib/lib.go", flags: []string{"-tags=special"}},
		{name: "debug", files: plain, edit: "lib/lib.go", debug: true},
		{name: "gcflags", files: plain, edit: "lib/lib.go", flags: []string{"-gcflags=-N"}, want: "direct builds are disabled: the flag -gcflags=-N is in use"},
		{name: "GOFLAGS", files: plain, edit: "lib/lib.go", env: []string{"GOFLAGS=-ldflags=-w"}, want: "direct builds are disabled: the flag -ldflags=-w is in use"},
		{name: "trimpath of a replaced module", files: with(elsewhere, "go.mod", "module edits\n\ngo 1.26\n\nrequire elsewhere/other v0.0.0\n\nreplace elsewhere/other => ./other\n"), edit: "other/other.go", flags: []string{"-trimpath"}},
		{name: "no go directive", files: with(with(elsewhere, "go.mod", "module edits\n\ngo 1.26\n\nrequire elsewhere/other v0.0.0\n\nreplace elsewhere/other => ./other\n"), "other/go.mod", "module elsewhere/other\n"), edit: "other/other.go"},
		{name: "architecture", files: plain, edit: "lib/lib.go", env: []string{"GOAMD64=v2", "GOARM64=v8.1"}},
		{name: "godebug", files: with(plain, "go.mod", "module edits\n\ngo 1.26\n\ngodebug panicnil=1\n"), edit: "lib/lib.go"},
		{name: "profile", files: with(plain, "default.pgo", ""), edit: "lib/lib.go", want: "the program is built with a profile (default.pgo)"},
		{name: "workspace", files: with(with(elsewhere, "go.mod", "module edits\n\ngo 1.26\n"), "go.work", "go 1.26\n\nuse (\n\t.\n\t./other\n)\n"), edit: "other/other.go"},
		{name: "replace", files: with(elsewhere, "go.mod", "module edits\n\ngo 1.26\n\nrequire elsewhere/other v0.0.0\n\nreplace elsewhere/other => ./other\n"), edit: "other/other.go"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			for _, pair := range tt.env {
				name, value, _ := strings.Cut(pair, "=")
				t.Setenv(name, value)
			}
			save := func(text string) {
				files := map[string]string{}
				for name, content := range tt.files {
					files[name] = strings.Replace(content, "%q", `"`+text+`"`, 1)
				}
				write(t, nil, files)
			}
			save("one")
			d, reference := newDirect(t)
			reference.Flags, reference.Debug = tt.flags, tt.debug
			in, err := d.Inputs(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			file, _ := filepath.Abs(tt.edit)
			if resolved, err := filepath.EvalSymlinks(file); err == nil {
				file = resolved
			}
			if changed, unknown := in.Affected([]string{file}); unknown || len(changed) != 2 {
				t.Errorf("an edit of %s concerns %v, %t; want it and the main package", tt.edit, changed, unknown)
			}
			if _, err := d.Build(t.Context(), job(d, "direct.bin")); err != nil {
				t.Fatal(err)
			}
			d.Learned()
			for _, text := range []string{"two", "three", "one"} {
				save(text)
				note, err := d.Build(t.Context(), job(d, "direct.bin"))
				if err != nil || note != tt.want {
					t.Fatalf("the build of %q = %q, %v; want %q", text, note, err, tt.want)
				}
				if _, err := reference.Build(t.Context(), build.Spec{Out: "go.bin"}); err != nil {
					t.Fatal(err)
				}
				have, err := build.Sum("direct.bin")
				if want, wantErr := build.Sum("go.bin"); err != nil || wantErr != nil || have != want {
					t.Fatalf("the direct build of %q differs: %v %v", text, err, wantErr)
				}
				d.Learned()
			}
		})
	}
}

// with returns files and one more.
func with(files map[string]string, name, text string) map[string]string {
	more := map[string]string{name: text}
	for n, t := range files {
		more[n] = t
	}
	more[name] = text
	return more
}

// TestABuildThatIsCancelledLeavesNothingStale cancels builds at all moments.
func TestABuildThatIsCancelledLeavesNothingStale(t *testing.T) {
	t.Chdir(t.TempDir())
	s := tree{importsA: true}
	files := s.files()
	write(t, nil, files)
	d, reference := newDirect(t)
	if _, err := d.Build(t.Context(), job(d, "direct.bin")); err != nil {
		t.Fatal(err)
	}
	d.Learned()
	for i := range 30 {
		s.constant, s.body = i+1, i+1
		next := s.files()
		write(t, files, next)
		files = next
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*5*time.Millisecond)
		d.Build(ctx, job(d, "direct.bin"))
		cancel()
		if i%5 != 4 {
			continue
		}
		if note, err := d.Build(t.Context(), job(d, "direct.bin")); err != nil || note != "" {
			t.Fatalf("build %d after cancelled ones = %q, %v", i, note, err)
		}
		reference.Build(t.Context(), build.Spec{Out: "go.bin"})
		have, _ := build.Sum("direct.bin")
		if want, err := build.Sum("go.bin"); err != nil || have != want {
			t.Fatalf("build %d after cancelled ones differs from that of go build", i)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(d.TempDir, "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestWhatWasLeftOutIsNoticed changes files so that a build begins to read
// them, and removes what a direct build needs: no build is stale.
func TestWhatWasLeftOutIsNoticed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, objects string)
	}{
		{"a constraint is removed", func(t *testing.T, _ string) {
			write(t, nil, map[string]string{"lib/more.go": "package lib\n\nfunc init() { Text = \"more\" }\n"})
		}},
		{"a constraint is added", func(t *testing.T, _ string) {
			write(t, nil, map[string]string{"lib/init.go": "//go:build ignore\n\npackage lib\n\nfunc init() { Text = \"init\" }\n"})
		}},
		{"an old constraint is added", func(t *testing.T, _ string) {
			write(t, nil, map[string]string{"lib/init.go": "//+build ignore\n\npackage lib\n\nfunc init() { Text = \"init\" }\n"})
		}},
		{"a workspace comes", func(t *testing.T, _ string) {
			write(t, nil, map[string]string{"go.work": "go 1.26\n\nuse .\n"})
		}},
		{"the objects go", func(t *testing.T, objects string) {
			if err := os.RemoveAll(objects); err != nil {
				t.Fatal(err)
			}
			write(t, nil, map[string]string{"lib/lib.go": "package lib\n\nvar Text = \"new\"\n"})
		}},
		{"the cache goes", func(t *testing.T, _ string) {
			if err := os.RemoveAll(os.Getenv("GOCACHE")); err != nil {
				t.Fatal(err)
			}
			write(t, nil, map[string]string{"lib/lib.go": "package lib\n\nvar Text = \"new\"\n"})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			if tt.name == "the cache goes" { // with all of the standard library
				t.Setenv("GOCACHE", t.TempDir())
			}
			write(t, nil, map[string]string{
				"go.mod":      "module edits\n\ngo 1.26\n",
				"main.go":     "package main\n\nimport \"edits/lib\"\n\nfunc main() { println(lib.Text) }\n",
				"lib/lib.go":  "package lib\n\nvar Text = \"lib\"\n",
				"lib/init.go": "package lib\n\nfunc init() { Text = \"init\" }\n",
				"lib/more.go": "//go:build ignore\n\npackage lib\n\nfunc init() { Text = \"more\" }\n",
			})
			d, reference := newDirect(t)
			if _, err := d.Build(t.Context(), job(d, "direct.bin")); err != nil {
				t.Fatal(err)
			}
			d.Learned()
			if note, err := d.Build(t.Context(), job(d, "direct.bin")); err != nil || note != "" {
				t.Fatalf("build = %q, %v; want a direct one", note, err)
			}
			tt.change(t, d.Objects())
			for range 3 {
				if _, err := d.Build(t.Context(), job(d, "direct.bin")); err != nil {
					t.Fatal(err)
				}
				if _, err := reference.Build(t.Context(), build.Spec{Out: "go.bin"}); err != nil {
					t.Fatal(err)
				}
				have, _ := build.Sum("direct.bin")
				if want, err := build.Sum("go.bin"); err != nil || have != want {
					t.Fatalf("the build differs from that of go build, %v", err)
				}
				d.Learned()
			}
			if note, err := d.Build(t.Context(), job(d, "direct.bin")); err != nil || note != "" {
				t.Errorf("afterwards a build = %q, %v; want a direct one", note, err)
			}
		})
	}
}

// TestWhatIsNoneOfItsBusiness does not keep a build from being direct: a test
// for another system, and a configuration below a package that embeds files.
func TestWhatIsNoneOfItsBusiness(t *testing.T) {
	t.Chdir(t.TempDir())
	files := tree{}.files()
	files["a/other_test.go"] = "//go:build !linux\n\npackage a\n"
	files["d/main.yaml"] = "app:\n"
	write(t, nil, files)
	d, _ := newDirect(t)
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		in, err := d.Inputs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		snap := sources.Take(in.Set(filepath.Join(wd, "d/main.yaml")))
		note, err := d.Build(t.Context(), build.Spec{Out: "x.bin", Sources: snap})
		if err != nil || i == 2 && note != "" {
			t.Errorf("build %d: %q, %v", i, note, err)
		}
		d.Learned()
	}
}

// TestInputs_areAllThatABuildReads, of every kind that this go command knows: it
// is asked for all of its lists of files.
func TestInputs_areAllThatABuildReads(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, nil, map[string]string{
		"go.mod": "module example.com/x\n\ngo 1.26\n", "default.pgo": "x",
		"x.go":      "package main\n\nimport _ \"example.com/x/e\"\n\nfunc main() {}\n",
		"e/e.go":    "package e\n\nimport \"embed\"\n\n//go:embed one.txt all:pages web/*.html\nvar _ embed.FS\n",
		"c.go":      "package main\n\nimport \"C\"\n",
		"e/one.txt": "x", "e/web/a.html": "x", "e/pages/deep/.hidden": "x",
		"x.c": "x", "x.cc": "x", "x.cpp": "x", "x.cxx": "x", "x.m": "x", "x.h": "x", "x.hh": "x", "x.hpp": "x", "x.hxx": "x",
		"x.f": "x", "y.F": "x", "x.for": "x", "x.f90": "x", "x.s": "x", "y.S": "x", "x.sx": "x", "x.swig": "x", "x.swigcxx": "x", "x.syso": "x",
	})
	_, b := newDirect(t)
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	in, err := b.Inputs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	snap := sources.Take(in.Set())
	lists := 0
	for _, dir := range []string{".", "./e"} {
		out, err := run(t.Context(), proc.Command{Args: []string{"go", "list", "-e", "-json", dir}, Env: []string{"CGO_ENABLED=1"}})
		if err != nil {
			t.Fatal(err)
		}
		var all map[string]any
		if err := json.Unmarshal(out, &all); err != nil {
			t.Fatal(err)
		}
		for kind, list := range all {
			names, ok := list.([]any)
			if !ok || !strings.HasSuffix(kind, "Files") {
				continue
			}
			lists++
			for _, name := range names {
				if _, ok := snap.Sum(filepath.Join(wd, dir, name.(string))); !ok {
					t.Errorf("%s: nobody reads %s", kind, name)
				}
			}
		}
	}
	if lists < 13 {
		t.Errorf("the go command has only %d lists of files", lists)
	}
	for _, name := range []string{"go.mod", "default.pgo"} {
		if _, ok := snap.Sum(filepath.Join(wd, name)); !ok {
			t.Errorf("nobody reads %s", name)
		}
	}
}

// TestThisModule is built directly, from the second build on.
func TestThisModule(t *testing.T) {
	if testing.Short() {
		t.Skip("it links the whole program")
	}
	t.Chdir("../../..")
	dir := t.TempDir()
	b, err := build.NewGo(t.Context(), "./cmd/orchestrator", filepath.Join(dir, "tmp"), run)
	if err != nil {
		t.Fatal(err)
	}
	d, err := build.NewDirect(b, filepath.Join(dir, "objects"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	for i := range 2 {
		note, err := d.Build(t.Context(), job(d, filepath.Join(dir, "bin")))
		if err != nil || i == 1 && note != "" {
			t.Errorf("build %d: %q, %v", i, note, err)
		}
		d.Learned()
	}
}
