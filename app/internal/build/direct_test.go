package build_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/sources"
)

// run is a runner for tests.
func run(ctx context.Context, c proc.Command) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, &proc.ExitError{Command: c.Args[0], Status: proc.Status{Code: exit.ExitCode()}, Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
	}
	return stdout.Bytes(), err
}

// tree is a small program whose files depend on a few numbers, each of
// which an edit may change.
type tree struct {
	constant, inlined, body, generic, field, blank, use, embedded, tag int
	wide, stale                                                        bool // Big has two parameters; its caller was not changed with it
	extra, renamed, importsA, nonsense                                 bool
}

func (s tree) files() map[string]string {
	fields := ""
	for i := range s.field {
		fields += fmt.Sprintf("\tF%d int\n", i)
	}
	parameters, arguments := "x int", "1"
	if s.wide {
		parameters = "x, y int"
	}
	if s.wide != s.stale {
		arguments = "1, 2"
	}
	importA, useA := "", ""
	if s.importsA {
		importA, useA = "\n\t\"edits/a\"", "+ a.Gen(\"c\")"
	}
	c := "c/c.go"
	if s.renamed {
		c = "c/renamed.go"
	}
	files := map[string]string{
		"go.mod":  "module edits\n\ngo 1.26\n",
		"main.go": "package main\n\nimport (\n\t\"fmt\"\n\n\t\"edits/b\"\n\t\"edits/c\"\n\t\"edits/d\"\n)\n\nfunc main() { fmt.Println(b.B(), c.C(), d.Data, d.List) }\n",
		"a/a.go": strings.Repeat("\n", s.blank) + fmt.Sprintf(`package a

import "fmt"

const C = %d

type T struct {
	X int
%s}

func Inline(x int) int { return x + %d }

func Big(%s) string {
	text := ""
	for i := range x { // too much to be inlined
		for j := range i {
			text += fmt.Sprint(i*j, %d)
		}
	}
	return text
}

func Gen[V any](v V) string { return fmt.Sprint(v, %d) }
`, s.constant, fields, s.inlined, parameters, s.body, s.generic),
		"b/b.go":     fmt.Sprintf("package b\n\nimport (\n\t\"fmt\"\n\n\t\"edits/a\"\n)\n\nfunc B() string { return fmt.Sprint(a.C, a.Inline(%d), a.Gen(a.T{X: 1}), a.Big(%s)) }\n", s.use, arguments),
		c:            "package c\n\nimport (\n\t\"edits/b\"" + importA + "\n)\n\nfunc C() string { return b.B() " + useA + " }\n",
		"d/d.go":     "package d\n\nimport _ \"embed\"\n\n//go:embed data.txt\nvar Data string\n\nvar List []string\n",
		"d/data.txt": fmt.Sprint("data ", s.embedded, "\n"),
		"b/tag.go":   fmt.Sprintf("package b\n\n// Tag is here to be edited alone.\nvar Tag = %d\n", s.tag),
	}
	if s.extra {
		files["d/extra.go"] = "package d\n\nfunc init() { List = append(List, \"extra\") }\n"
	}
	if s.nonsense {
		files["b/tag.go"] = "package b\n\nvar Tag int = \"no number\"\n\nfunc ( {\n"
	}
	return files
}

// edit changes one thing, or a few.
func (s tree) edit(r *rand.Rand) tree {
	s.stale, s.nonsense = false, false // the next edit repairs mistakes
	for range 1 + r.IntN(3)/2 {
		switch n := r.IntN(1000); r.IntN(17) {
		case 0, 1:
			s.constant = n
		case 2, 3:
			s.inlined = n
		case 4, 5:
			s.body = n
		case 6:
			s.generic = n
		case 7:
			s.field = n % 4
		case 8:
			s.blank = n % 5
		case 9:
			s.use = n
		case 10:
			s.embedded = n
		case 11:
			s.tag = n
		case 12:
			s.wide = !s.wide
			s.stale = n%4 == 0
		case 13:
			s.extra = !s.extra
		case 14:
			s.renamed = !s.renamed
		case 15:
			s.importsA = !s.importsA
		case 16:
			s.nonsense = n%2 == 0
		}
	}
	return s
}

// write replaces the files old in the working directory with now.
func write(t *testing.T, old, now map[string]string) {
	t.Helper()
	for name := range old {
		if _, ok := now[name]; !ok {
			os.Remove(name)
		}
	}
	for name, text := range now {
		if have, ok := old[name]; ok && have == text {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// newDirect builds the main package of the working directory, directly once
// it has learned how.
func newDirect(t *testing.T) (*build.Direct, *build.Go) {
	t.Helper()
	work := t.TempDir()
	b, err := build.NewGo(t.Context(), ".", filepath.Join(work, "tmp"), run)
	if err != nil {
		t.Fatal(err)
	}
	d, err := build.NewDirect(b, filepath.Join(work, "objects"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d, b
}

// TestRandomEdits makes random edits of every kind and compares each direct
// build with the go command's: the same binary, or the same complaints. $EDITS
// is the number of edits, $SEED the seed.
func TestRandomEdits(t *testing.T) {
	edits, seed := 40, uint64(time.Now().UnixNano())
	if n, err := strconv.Atoi(os.Getenv("EDITS")); err == nil {
		edits = n
	}
	if n, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	t.Chdir(t.TempDir())
	s := tree{importsA: true}
	files := s.files()
	write(t, nil, files)
	d, reference := newDirect(t)
	direct, failed := 0, 0
	reasons := map[string]int{}
	for i := range edits + 1 {
		note, err := d.Build(t.Context(), job(d, "direct.bin"))
		_, want := reference.Build(t.Context(), build.Spec{Out: "go.bin"})
		switch {
		case fmt.Sprint(err) != fmt.Sprint(want):
			t.Fatalf("edit %d, SEED=%d (%q): the direct build says\n%v\ngo build says\n%v", i, seed, note, err, want)
		case err != nil:
			failed++
		default:
			have, err := build.Sum("direct.bin")
			if err != nil {
				t.Fatal(err)
			}
			if want, err := build.Sum("go.bin"); err != nil || have != want {
				t.Fatalf("edit %d, SEED=%d (%q): the direct build differs from that of go build", i, seed, note)
			}
		}
		if note == "" {
			direct++
		} else {
			reasons[note]++
			d.Learned() // as it has by the time somebody edits
		}
		s = s.edit(r)
		next := s.files()
		write(t, files, next)
		files = next
	}
	t.Logf("%d edits, %d built directly, %d did not compile; others: %v", edits, direct, failed, slices.Sorted(maps.Keys(reasons)))
	if direct < edits/3 {
		t.Errorf("%d of %d builds were direct", direct, edits)
	}
}

// job is a build of what the sources say now.
func job(d *build.Direct, out string) build.Spec {
	in, _ := d.Inputs(context.Background()) // after an error it is a superset
	return build.Spec{Out: out, Sources: sources.Take(in.Set())}
}
