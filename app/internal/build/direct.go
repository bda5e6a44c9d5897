package build

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.org/orchestrator/app/internal/sources"
)

// Direct builds with the compiler and the linker alone, which saves the go
// command's bookkeeping: it compiles exactly the packages that changed and
// those that import a package with a changed exported part, and links. The
// result is what go build would give, byte for byte except for the build ID.
//
// It gets the packages from a listing (go list), made in the background after a
// go build. Whatever it does not fully understand goes through go build:
// changed imports, files that appear or disappear, build constraints, cgo,
// assembly, embedded files, PGO, modules, other flags. Each build looks at the
// content of the sources, so a change that was missed cannot make it stale.
type Direct struct {
	*Go
	dir      string       // folder of object files
	building sync.Mutex   // held during a build
	objects  atomic.Int64 // number of files made in dir, which names the next
	tasks    sync.WaitGroup
	cancel   context.CancelFunc                   // of the tasks
	do       func(task func(ctx context.Context)) // as a task

	mu         sync.Mutex // guards the fields below
	graph      *graph     // packages in use by builds; nil: not known yet
	fresh      *graph     // packages for the next build
	off        string     // why direct builds are disabled; "" if they are not
	why        string     // why the packages are not known
	mismatches int        // how often the binary differed from go build's
	modinfo    string     // module information of the last go build
	checked    bool       // a direct build was compared with go build's
	asking     bool       // a listing is under way
}

var _ Builder = (*Direct)(nil)

// NewDirect returns a builder that builds directly where it can and uses b
// otherwise. It keeps object files in dir, which it wipes. The caller must
// close it.
func NewDirect(b *Go, dir string) (*Direct, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("build: wipe the folder of objects: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("build: make a folder for objects: %w", err)
	}
	d := &Direct{Go: b, dir: sources.Absolute(dir)}
	ctx, cancel := context.WithCancel(context.Background()) // for the work between builds
	d.cancel = cancel
	d.do = func(task func(context.Context)) { d.tasks.Go(func() { task(ctx) }) }
	return d, nil
}

// Close ends the work in the background.
func (d *Direct) Close() {
	d.mu.Lock()
	d.off = "closed"
	d.mu.Unlock()
	d.cancel()
	d.tasks.Wait()
}

// errUseless is for reasons that do not change while the program runs.
var errUseless = errors.New("direct builds are disabled")

// notDirectError says why a build goes through go build.
type notDirectError struct{ why string }

func (e *notDirectError) Error() string { return e.why }

func notDirect(format string, args ...any) error {
	return &notDirectError{fmt.Sprintf(format, args...)}
}

// Build implements [Builder]. note says why the build was not direct.
func (d *Direct) Build(ctx context.Context, job Spec) (note string, err error) {
	d.building.Lock()
	defer d.building.Unlock()
	d.mu.Lock()
	if d.fresh != nil {
		d.graph.forget(d.dir)
		d.graph, d.fresh = d.fresh, nil
	}
	g, off, why := d.graph, d.off, d.why
	d.mu.Unlock()
	switch {
	case off != "":
		note = off
	case job.Overlay != nil:
		note = "from copies, because the sources kept changing"
	case g == nil:
		note = cmp.Or(why, "the packages are not known yet")
	default:
		err := g.build(ctx, d, job)
		var not *notDirectError
		if !errors.As(err, &not) {
			return "", err
		}
		note = not.why
	}
	began := time.Now()
	if _, err := d.Go.Build(ctx, job); err != nil {
		return note, err
	}
	if off == "" && job.Overlay == nil {
		d.learn(job.Out, began)
	}
	return note, nil
}

// learn makes a listing in the background, after a build to out that began at
// began.
func (d *Direct) learn(out string, began time.Time) {
	sum, err := sumOf(out)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	modinfo, err := modinfoOf(out)
	if err != nil {
		d.off = err.Error()
	}
	d.modinfo = modinfo
	if d.off != "" || d.asking {
		return // direct builds are disabled, or the next build makes another listing
	}
	d.asking = true
	checked := d.checked
	d.do(func(ctx context.Context) {
		g, err := d.load(ctx, modinfo)
		if err == nil && !checked {
			err = g.check(ctx, d, sum, began)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.asking = false
		var not *notDirectError
		switch {
		case d.off != "" || modinfo != d.modinfo: // it lists other modules than those built meanwhile
			g.forget(d.dir)
		case errors.Is(err, errUseless):
			d.off = err.Error()
		case errors.As(err, &not):
			d.why = not.why
			g.forget(d.dir)
		case err != nil:
			d.why = ""
			g.forget(d.dir)
		default:
			d.fresh, d.checked, d.why = g, true, ""
		}
	})
}

// unit is a package as it was last compiled.
type unit struct {
	listed
	local        bool
	needsGoBuild string                 // why a change of it goes through go build; "" if it need not
	names        []string               // files in its folder that a build may read
	imports      map[string][]string    // imports of each file
	source       [sha256.Size]byte      // hash of the files that object was compiled from
	sums         map[string]sources.Sum // hash of each file that object was compiled from
	hasDirective map[string]bool        // files that had a directive when object was compiled
	depends      [sha256.Size]byte      // hash of what its imports export
	export       [sha256.Size]byte      // hash of what it exports
	object       string                 // object file; "" if it has to be compiled
}

// candidates returns the files of a package that a build reads, or may read
// once their constraints hold, but not the tests that constraints exclude.
func (u *unit) candidates() []string {
	ignored := slices.DeleteFunc(slices.Concat(u.IgnoredGoFiles, u.IgnoredOtherFiles), func(name string) bool { return !sources.Compiled(name) })
	return append(u.files(), ignored...)
}

// sourceIn returns a hash of the package's files as they are in snap.
func (u *unit) sourceIn(snap *sources.Snapshot) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	for _, name := range u.candidates() {
		file, ok := snap.Sum(filepath.Join(u.Dir, name))
		if !ok {
			return sum, notDirect("%s is gone", filepath.Join(u.Dir, name))
		}
		fmt.Fprintf(h, "%s %x\n", name, file)
	}
	h.Sum(sum[:0])
	return sum, nil
}

// namesIn lists the files in the package's folder that a build may read or
// embed.
func (u *unit) namesIn(snap *sources.Snapshot) []string {
	return snap.Names(u.Dir, u.EmbedPatterns)
}

// directives lists the ones that the compiler alone does not understand. All
// others that begin with //go: are the compiler's.
var directives = []string{"//go:build", "+build", "//go:embed", "//go:debug", "//go:linkname", "//go:cgo_", "//go:wasm", "//export "}

// directive returns a directive that a file contains, "" if there is none.
func directive(data []byte) string {
	for _, d := range directives {
		if bytes.Contains(data, []byte(d)) {
			return strings.TrimSpace(d)
		}
	}
	return ""
}

// understood returns an error if the package's files changed in a way that has
// to go through go build.
func (u *unit) understood(snap *sources.Snapshot) error {
	if u.needsGoBuild != "" {
		return notDirect("%s %s", u.ImportPath, u.needsGoBuild)
	}
	for _, name := range u.candidates() {
		path := filepath.Join(u.Dir, name)
		if sum, _ := snap.Sum(path); sum == u.sums[name] {
			continue
		}
		if !slices.Contains(u.GoFiles, name) {
			return notDirect("%s changed and is not a compiled Go file", path)
		}
		data, ok := snap.Content(path)
		if !ok {
			return notDirect("the sources changed during the build")
		}
		if d := directive(data); d != "" || u.hasDirective[name] {
			return notDirect("%s has or had %s", path, cmp.Or(d, "a directive"))
		}
		imports, err := importsOf(name, data)
		if err == nil && !slices.Equal(imports, u.imports[name]) {
			return notDirect("the imports of %s changed", path)
		}
	}
	return nil
}

// importsOf returns the imports of a file and its package clause, sorted.
func importsOf(name string, data []byte) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), name, data, parser.ImportsOnly)
	if err != nil {
		return nil, err // the compiler will report it
	}
	imports := []string{"package " + f.Name.Name}
	for _, spec := range f.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		imports = append(imports, path)
	}
	slices.Sort(imports)
	return imports, nil
}

// build brings every package up to date and links.
func (g *graph) build(ctx context.Context, d *Direct, job Spec) error {
	g.snap = job.Sources
	if g.moduleFiles() != g.modules {
		return notDirect("go.mod, go.sum or go.work changed")
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return notDirect("the folder of objects is gone: %v", err)
	}
	type state struct {
		u   *unit
		sum [sha256.Size]byte
	}
	var states []state
	for _, u := range g.local {
		if !slices.Equal(u.namesIn(g.snap), u.names) {
			return notDirect("files were added or removed in %s", u.Dir)
		}
		sum, err := u.sourceIn(g.snap)
		if err == nil && sum != u.source {
			err = u.understood(g.snap)
		}
		if err != nil {
			return err
		}
		states = append(states, state{u, sum})
	}
	var complaints []string
	broken := map[string]bool{} // packages that do not compile, or import one that does not
	for _, s := range states {
		if slices.ContainsFunc(s.u.Imports, func(path string) bool { return broken[g.resolve(s.u, path)] }) {
			broken[s.u.ImportPath] = true
			continue
		}
		depends := g.depends(s.u)
		if s.u.object != "" && s.u.source == s.sum && s.u.depends == depends {
			continue
		}
		if s.u.needsGoBuild != "" {
			return notDirect("%s %s", s.u.ImportPath, s.u.needsGoBuild)
		}
		err := g.compile(ctx, d, s.u, g.snap, depends)
		var compiler *CompileError
		if errors.As(err, &compiler) {
			broken[s.u.ImportPath] = true
			complaints = append(complaints, compiler.Output)
		} else if err != nil {
			return err
		}
	}
	if len(complaints) > 0 {
		return &CompileError{strings.Join(complaints, "\n")}
	}
	return g.link(ctx, d, job.Out)
}

// depends returns a hash of what a package's imports export.
func (g *graph) depends(u *unit) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, path := range u.Imports {
		dep := g.units[g.resolve(u, path)]
		if dep == nil {
			continue // unsafe
		}
		fmt.Fprintf(h, "%s %x\n", path, dep.export)
	}
	h.Sum(sum[:0])
	return sum
}

// forget removes the object files that this builder made.
func (g *graph) forget(dir string) {
	if g == nil {
		return
	}
	for _, u := range g.local {
		if strings.HasPrefix(u.object, dir) {
			os.Remove(u.object)
		}
	}
}
