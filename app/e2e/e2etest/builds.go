//go:build unix

// Package e2etest runs the real program in tests: it builds the program, starts
// it in a folder of its own, talks to it as users do, and cleans up every
// process.
package e2etest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Programs are built once for all test binaries: each into a folder that is
// named after the sources and the build flags.

// maxAge is how long a build may be unused before it is removed.
const maxAge = 24 * time.Hour

// cached returns a folder filled by fill, now or earlier by any process.
func cached(name string, fill func(dir string) error) (dir string, err error) {
	base := filepath.Join(os.TempDir(), fmt.Sprintf("orchestrator-e2e-%d", os.Getuid()))
	if err := os.MkdirAll(base, 0o700); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(base, name+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	entries, _ := os.ReadDir(base)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.IsDir() && strings.HasPrefix(e.Name(), name+"-") && time.Since(info.ModTime()) > maxAge {
			os.RemoveAll(filepath.Join(base, e.Name()))
		}
	}
	key, err := sourceKey()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(base, name+"-"+key)
	if _, err := os.Stat(dir); err == nil {
		return dir, os.Chtimes(dir, time.Now(), time.Now())
	}
	fresh := dir + ".new"
	os.RemoveAll(fresh)
	if err := os.MkdirAll(fresh, 0o700); err != nil {
		return "", err
	}
	if err := fill(fresh); err != nil {
		return "", err
	}
	return dir, os.Rename(fresh, dir)
}

// sourceKey identifies the sources of this repository, those that are only for tests,
// and the build flags.
var sourceKey = sync.OnceValues(func() (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), RaceFlag, Repository())
	add := func(path, rel string) error {
		data, err := os.ReadFile(path)
		fmt.Fprintln(h, rel, len(data))
		h.Write(data)
		return err
	}
	err := eachSource(add)
	if err == nil {
		err = filepath.WalkDir(filepath.Join(Repository(), "app/e2e/e2etest"), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			return add(path, path)
		})
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), err
})

// notSources are folders that no program for tests is built from.
var notSources = []string{"bin", "tmp", "docs", "cmd/bench", "app/e2e"}

// eachSource calls f with each file of this repository that a program for tests
// is built from.
func eachSource(f func(path, rel string) error) error {
	return filepath.WalkDir(Repository(), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(Repository(), path)
		switch {
		case e.IsDir() && (strings.HasPrefix(e.Name(), ".") && rel != "." || e.Name() == "testdata" || slices.Contains(notSources, rel)):
			return filepath.SkipDir
		case e.IsDir() || strings.HasSuffix(rel, "_test.go") || !e.Type().IsRegular():
			return nil
		}
		return f(path, rel)
	})
}

// goBuild builds the orchestrator command of the module in dir.
func goBuild(dir, out string, flags ...string) error {
	args := append([]string{"build", "-buildvcs=false", "-o", out}, flags...)
	c := exec.Command("go", append(args, "./cmd/orchestrator")...)
	c.Dir, c.Env = dir, Environ
	if msg, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, msg)
	}
	return nil
}

// Shipped returns the program as make build makes it.
var Shipped = sync.OnceValues(func() (string, error) {
	dir, err := cached("shipped", func(dir string) error {
		return goBuild(Repository(), filepath.Join(dir, "orchestrator"), "-ldflags=-s -w")
	})
	return filepath.Join(dir, "orchestrator"), err
})

// Pair is two builds of the program with different answers to POST /counter/: Old
// answers a number, New answers "new" and a number. Both contain failpoints. If
// the working directory has a file called failing, the counter of New fails in the
// hook that the file names: in Initialize, in Healthy once it has been healthy;
// in Shutdown and in its factory it hangs.
type Pair struct{ Old, New string }

// PairOfBuilds returns the pair.
var PairOfBuilds = sync.OnceValues(func() (Pair, error) {
	dir, err := cached("pair", makePair)
	return Pair{filepath.Join(dir, "old"), filepath.Join(dir, "new")}, err
})

func makePair(dir string) error {
	flags := append([]string{"-tags=failpoints"}, RaceFlag...)
	if err := goBuild(Repository(), filepath.Join(dir, "old"), flags...); err != nil {
		return err
	}
	return buildEdited(dir, "new", map[string][][2]string{"modules/counter/counter.go": newCounter}, flags...)
}

// buildEdited builds this repository with some files edited: each edit is an old and a
// new text. The result is dir/name.
func buildEdited(dir, name string, files map[string][][2]string, flags ...string) error {
	replace := map[string]string{}
	for file, edits := range files {
		source := filepath.Join(Repository(), file)
		text, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		edited := string(text)
		for _, edit := range edits {
			was := edited
			if edited = strings.Replace(was, edit[0], edit[1], 1); !strings.Contains(was, edit[0]) {
				return fmt.Errorf("%s has no %q any more", file, edit[0])
			}
		}
		changed := filepath.Join(dir, name+"-"+filepath.Base(file))
		if err := os.WriteFile(changed, []byte(edited), 0o644); err != nil {
			return err
		}
		replace[source] = changed
	}
	overlay := filepath.Join(dir, name+"-overlay.json")
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	if err := os.WriteFile(overlay, data, 0o644); err != nil {
		return err
	}
	return goBuild(Repository(), filepath.Join(dir, name), append(flags, "-overlay", overlay)...)
}

// Walk are builds of different times: what a program may be upgraded from and to.
type Walk struct {
	Early  string // speaks only the protocol before the present one
	Raised string // its counter has a newer version of the state, and it speaks one more protocol
	Alien  string // speaks only a protocol to come
}

// WalkBuilds returns them.
var WalkBuilds = sync.OnceValues(func() (Walk, error) {
	dir, err := cached("walk", makeWalk)
	return Walk{filepath.Join(dir, "early"), filepath.Join(dir, "raised"), filepath.Join(dir, "alien")}, err
})

func makeWalk(dir string) error {
	speaks := func(newest, oldest int) [][2]string {
		return [][2]string{
			{"\tprotocol    = 2", fmt.Sprintf("\tprotocol    = %d", newest)},
			{"\tminProtocol = 1", fmt.Sprintf("\tminProtocol = %d", oldest)},
		}
	}
	raised := [][2]string{{"Version: 1, Value: &c.state}", "Version: 2, Value: &c.state, Migrate: func(_ int, decode func(any) error) error { return decode(&c.state) }}"}}
	const messages = "handoff/message.go"
	return errors.Join(
		buildEdited(dir, "early", map[string][][2]string{messages: speaks(1, 1)}, "-tags=failpoints"),
		buildEdited(dir, "raised", map[string][][2]string{messages: speaks(3, 1), "modules/counter/counter.go": raised}, "-tags=failpoints"),
		buildEdited(dir, "alien", map[string][][2]string{messages: speaks(4, 4)}, "-tags=failpoints"),
	)
}

// newCounter has the edits that make the second of the pair: old and new text.
var newCounter = [][2]string{
	{"fmt.Fprintln(w, c.add(1))", `fmt.Fprintln(w, "new", c.add(1))`},
	{"\t\"net/http\"\n", "\t\"net/http\"\n\t\"os\"\n"},
	{"\"sync\"\n", "\"sync\"\n\t\"sync/atomic\"\n"},
	{"func (c *Counter) Shutdown(context.Context) error { return nil }", ""},
	{"func New() modules.Module { return", `func New() modules.Module {
	if failing("factory") != nil {
		select {}
	}
	return`},
	{"return &Counter{} }", "return &Counter{}\n}"},
	{"modules.Config) error { return nil }", `modules.Config) error { return failing("Initialize") }

var asked atomic.Int64

func (c *Counter) Healthy(context.Context) error {
	if asked.Add(1) == 1 {
		return nil
	}
	return failing("Healthy")
}

func (c *Counter) Shutdown(context.Context) error {
	if failing("Shutdown") != nil {
		select {}
	}
	return nil
}

func failing(hook string) error {
	if text, err := os.ReadFile("failing"); err != nil || string(text) != hook {
		return nil
	}
	return fmt.Errorf("failing")
}`},
}

// ZooBuild returns the program with the module of fixtures/zoo and failpoints.
var ZooBuild = sync.OnceValues(func() (string, error) { return buildWith("zoo") })

// RudeBuild returns the program with the module of fixtures/rude and failpoints.
// It never has the race detector: what that module does with its state is a race.
var RudeBuild = sync.OnceValues(func() (string, error) { return buildWith("rude") })

// buildWith returns the program with a module of fixtures and failpoints.
func buildWith(module string) (binary string, err error) {
	flags := []string{"-tags=failpoints"}
	if module != "rude" {
		flags = append(flags, RaceFlag...)
	}
	dir, err := cached(module, func(dir string) error {
		p := &Project{T: panics{}, Dir: filepath.Join(dir, "sources")}
		if err := os.MkdirAll(p.Dir, 0o755); err != nil {
			return err
		}
		p.copySources()
		p.AddModule(module)
		return goBuild(p.Dir, filepath.Join(dir, module), flags...)
	})
	return filepath.Join(dir, module), err
}

// panics is a Reporter for builds that no test owns.
type panics struct{}

func (panics) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// AddModule adds a module of fixtures to the program.
func (p *Project) AddModule(name string) {
	source, err := os.ReadFile(filepath.Join(Repository(), "app/e2e/e2etest/fixtures", name, name+".go"))
	p.Check(err)
	p.Write("modules/"+name+"/"+name+".go", string(source))
	module := ModulePath()
	p.Edit("cmd/orchestrator/modules.go", `"`+module+`/modules/kv"`, "\""+module+"/modules/kv\"\n\t\""+module+"/modules/"+name+"\"")
	p.Edit("cmd/orchestrator/modules.go", `{Name: "kv", New: kv.New},`, `{Name: "kv", New: kv.New}, {Name: "`+name+`", New: `+name+`.New},`)
}

// Compile builds the program with failpoints.
func (p *Project) Compile(out string, flags ...string) error {
	return goBuild(p.Dir, p.Path(out), append([]string{"-tags=failpoints"}, flags...)...)
}
