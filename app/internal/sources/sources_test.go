package sources_test

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"example.org/orchestrator/app/internal/sources"
)

func TestMain(m *testing.M) {
	if os.Getenv("WATCH_LOG") != "" { // in a user namespace without inotify
		sources.PollOften()
	}
	goleak.VerifyTestMain(m)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestAffected_inTheRootOfTheSystem: a module there, and files outside of every package.
func TestAffected_inTheRootOfTheSystem(t *testing.T) {
	in := &sources.Inputs{Root: "/", Packages: map[string]sources.Package{"x": {ImportPath: "x", Dir: "/x"}}}
	for file, want := range map[string]bool{"/x/a.go": false, "/y/z/a.go": true, "/a.go": true} {
		if _, unknown := in.Affected([]string{file}); unknown != want {
			t.Errorf("Affected(%s): unknown = %v, want %v", file, unknown, want)
		}
	}
}

// TestWhatCounts is a table of ways to change a folder: after each, the
// snapshots differ in exactly the wanted paths.
func TestWhatCounts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, dir string)
		want   []string
	}{
		{"nothing", func(*testing.T, string) {}, nil},
		{"an edit in place", func(t *testing.T, dir string) { write(t, dir+"/a.go", "new") }, []string{"a.go"}},
		{"the same content again", func(t *testing.T, dir string) { write(t, dir+"/a.go", "old") }, nil},
		{"a rename over it", func(t *testing.T, dir string) {
			write(t, dir+"/x", "new")
			os.Rename(dir+"/x", dir+"/a.go")
		}, []string{"a.go"}},
		{"a new file", func(t *testing.T, dir string) { write(t, dir+"/b.go", "new") }, []string{"b.go"}},
		{"a removed file", func(_ *testing.T, dir string) { os.Remove(dir + "/a.go") }, []string{"a.go"}},
		{"a touch", func(_ *testing.T, dir string) { os.Chtimes(dir+"/a.go", time.Now(), time.Now()) }, nil},
		{"a chmod", func(_ *testing.T, dir string) { os.Chmod(dir+"/a.go", 0o600) }, nil},
		{"a test", func(t *testing.T, dir string) { write(t, dir+"/a_test.go", "new") }, nil},
		{"editors' backups", func(t *testing.T, dir string) {
			write(t, dir+"/a.go~", "x")
			write(t, dir+"/.a.go.swp", "x")
			write(t, dir+"/.#a.go", "x")
			write(t, dir+"/4913", "x")
		}, nil},
		{"a README", func(t *testing.T, dir string) { write(t, dir+"/README.md", "x") }, nil},
		{"a file deep in a tree", func(t *testing.T, dir string) { write(t, dir+"/static/deep/x.css", "x") }, []string{"static/deep/x.css"}},
		{"a single file", func(t *testing.T, dir string) { write(t, dir+"/go.mod", "new") }, []string{"go.mod"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/a.go", "old")
			write(t, dir+"/go.mod", "old")
			write(t, dir+"/static/index.html", "old")
			set := sources.Set{PackageDirs: []string{dir}, EmbedTrees: []string{dir + "/static"}, Files: []string{dir + "/go.mod"}}
			before := sources.Take(set)
			tt.change(t, dir)
			var got []string
			for _, path := range sources.Take(set).Diff(before) {
				rel, _ := filepath.Rel(dir, path)
				got = append(got, rel)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("Diff = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCopyHoldsStill(t *testing.T) {
	dir, frozen := t.TempDir(), t.TempDir()
	write(t, dir+"/a.go", "old")
	set := sources.Set{PackageDirs: []string{dir}}
	where, snap, err := sources.Copy(set, frozen)
	if err != nil {
		t.Fatal(err)
	}
	if !snap.Equal(sources.Take(set)) {
		t.Error("the snapshot of the copy differs from that of the originals")
	}
	write(t, dir+"/a.go", "new")
	if got, _ := os.ReadFile(where[dir+"/a.go"]); string(got) != "old" {
		t.Errorf("the copy has %q, want old", got)
	}
}

// TestWatcherNotices changes things below watched folders, one after the other,
// including things that did not exist when the watch began.
func TestWatcherNotices(t *testing.T) {
	dir := t.TempDir()
	out := io.Discard
	if os.Getenv("WATCH_LOG") != "" {
		out = os.Stderr
	}
	w := sources.New(slog.New(slog.NewTextHandler(out, nil)))
	defer w.Close()
	elsewhere := t.TempDir()
	write(t, elsewhere+"/first/x.go", "1")
	write(t, elsewhere+"/second/x.go", "2")
	write(t, elsewhere+"/target.go", "1")
	later := filepath.Join(dir, "not", "yet")
	link := filepath.Join(t.TempDir(), "link") // nothing else has watched its folder
	os.Symlink(elsewhere+"/first", link)
	os.Symlink(elsewhere+"/target.go", dir+"/linked.go")
	away := t.TempDir()
	write(t, away+"/main.yaml", "1")
	file := filepath.Join(t.TempDir(), "main.yaml")
	os.Symlink(away+"/main.yaml", file)
	set := sources.Set{PackageDirs: []string{dir, later, link}, Files: []string{file}}
	w.Watch(set)
	seen := sources.Take(set)
	for i, change := range []func(){
		func() { write(t, dir+"/a.go", "1") },
		func() { write(t, dir+"/a.go", "2") },
		func() { write(t, later+"/b.go", "1") },
		func() { write(t, later+"/b.go", "2") },
		func() { os.RemoveAll(filepath.Join(dir, "not")) },
		func() { write(t, later+"/b.go", "3") },
		func() { write(t, elsewhere+"/first/x.go", "3") }, // through the linked folder
		func() { write(t, elsewhere+"/target.go", "2") },  // through the linked file
		func() { write(t, away+"/main.yaml", "2") },       // through a file of its own
		func() { os.Remove(link); os.Symlink(elsewhere+"/second", link) },
		func() { write(t, elsewhere+"/second/x.go", "4") },
		func() { os.RemoveAll(dir) },
		func() { write(t, dir+"/a.go", "again") },
	} {
		for quiet := false; !quiet; { // the rest of the previous change must not count for this one
			select {
			case <-w.Changed():
			case <-time.After(30 * time.Millisecond):
				quiet = true
			}
		}
		change()
		for deadline := time.After(20 * time.Second); ; {
			select {
			case <-w.Changed():
			case <-deadline:
				t.Fatalf("change %d was not noticed", i)
			}
			if now := sources.Take(set); !now.Equal(seen) {
				seen = now
				break
			}
		}
	}
}

// TestLimitsOfInotify runs the test above on a system that has no watch, or no
// instance, left to give: the log names the setting to raise, and changes are
// noticed anyway.
func TestLimitsOfInotify(t *testing.T) {
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skip("needs unshare")
	}
	for limit, hint := range map[string]string{"watches": "sysctl fs.inotify.max_user_watches=", "instances": "sysctl fs.inotify.max_user_instances="} {
		t.Run(limit, func(t *testing.T) {
			script := "echo 0 > /proc/sys/user/max_inotify_" + limit + " && exec \"$0\" -test.run='^TestWatcherNotices$' -test.v"
			cmd := exec.Command("unshare", "--user", "--map-root-user", "sh", "-c", script, os.Args[0])
			cmd.Env = append(os.Environ(), "WATCH_LOG=1")
			out, err := cmd.CombinedOutput()
			if strings.Contains(string(out), "Operation not permitted") || strings.Contains(string(out), "Permission denied") {
				t.Skipf("cannot make a user namespace here: %s", out)
			}
			if err != nil || !strings.Contains(string(out), "PASS") || !strings.Contains(string(out), hint) {
				t.Errorf("%v; want it to pass and to say %q:\n%s", err, hint, out)
			}
		})
	}
}

// TestAFileSystemWithoutEvents is recognized by its kind.
func TestAFileSystemWithoutEvents(t *testing.T) {
	dir := t.TempDir()
	if !sources.PretendNoEvents(t, dir) {
		t.Skip("kinds of file systems are known on Linux only")
	}
	var log bytes.Buffer
	w := sources.New(slog.New(slog.NewTextHandler(&log, nil)))
	w.Watch(sources.Set{PackageDirs: []string{dir}})
	w.Close()
	if !strings.Contains(log.String(), "gives no events") {
		t.Errorf("the log has %q", log.String())
	}
}

// TestChangedSince uses the times of files, as far as they can be trusted.
func TestChangedSince(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.go", "1")
	set, now := sources.Set{PackageDirs: []string{dir}}, time.Now()
	for _, tt := range []struct {
		name string
		time time.Time
		want bool
	}{
		{"before", now.Add(-time.Hour), false},
		{"since", now.Add(-time.Second), true},
		{"in the future", now.Add(time.Hour), false},
	} {
		if err := os.Chtimes(dir+"/a.go", tt.time, tt.time); err != nil {
			t.Fatal(err)
		}
		if got := set.ChangedSince(now.Add(-time.Minute)); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestCurrent changes a set after its snapshot, also in ways that keep the size
// and the settable times of a file.
func TestCurrent(t *testing.T) {
	old := time.Now().Add(-time.Hour)
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, dir string)
		want   bool
	}{
		{"nothing", func(*testing.T, string) {}, true},
		{"other content of the same size and time", func(t *testing.T, dir string) {
			write(t, dir+"/a.go", "new")
			os.Chtimes(dir+"/a.go", old, old)
		}, false},
		{"the same content again", func(t *testing.T, dir string) { write(t, dir+"/a.go", "old") }, true},
		{"a rename over it", func(t *testing.T, dir string) {
			write(t, dir+"/x", "new")
			os.Chtimes(dir+"/x", old, old)
			os.Rename(dir+"/x", dir+"/a.go")
		}, false},
		{"a new file", func(t *testing.T, dir string) { write(t, dir+"/b.go", "new") }, false},
		{"a removed file", func(_ *testing.T, dir string) { os.Remove(dir + "/a.go") }, false},
		{"a touch", func(_ *testing.T, dir string) { os.Chtimes(dir+"/a.go", time.Now(), time.Now()) }, true},
		{"a test", func(t *testing.T, dir string) { write(t, dir+"/a_test.go", "new") }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/a.go", "old")
			os.Chtimes(dir+"/a.go", old, old)
			set := sources.Set{PackageDirs: []string{dir}}
			snap := sources.Take(set)
			tt.change(t, dir)
			if got := snap.Current(set); got != tt.want {
				t.Errorf("Current = %v, want %v", got, tt.want)
			}
		})
	}
}

// TestAPipeIsNoSource: reading one would block.
func TestAPipeIsNoSource(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.go", "1")
	set := sources.Set{PackageDirs: []string{dir}}
	before := sources.Take(set)
	if out, err := exec.Command("mkfifo", dir+"/pipe.go").CombinedOutput(); err != nil {
		t.Skipf("mkfifo: %v: %s", err, out)
	}
	if after := sources.Take(set); !after.Equal(before) || !before.Current(set) {
		t.Errorf("Diff = %q, want none", after.Diff(before))
	}
}

// TestNames lists what may be read of one package, although the snapshot has
// other folders too.
func TestNames(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.go", "a_test.go", "README.md", "page.html", "deep/b.go", "web/dist/app.js", "config/main.yaml"} {
		write(t, dir+"/"+name, "x")
	}
	snap := sources.Take(sources.Set{EmbedTrees: []string{dir}})
	for _, tt := range []struct {
		patterns []string
		want     string
	}{
		{nil, "a.go"},
		{[]string{"*.html"}, "a.go page.html"},
		{[]string{"web/dist"}, "a.go web/dist/app.js"},
		{[]string{"all:web"}, "a.go web/dist/app.js"},
		{[]string{"web/*/*.js"}, "a.go web/dist/app.js"},
	} {
		if got := strings.Join(snap.Names(dir, tt.patterns), " "); got != tt.want {
			t.Errorf("Names(%q) = %s, want %s", tt.patterns, got, tt.want)
		}
	}
}

// TestCoarseTimes: a file that changed within the second before the snapshot is
// read again, whatever its times say, because some file systems store only
// whole seconds.
func TestCoarseTimes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.go", "old")
	set := sources.Set{PackageDirs: []string{dir}}
	snap := sources.Take(set)
	if reads := sources.CountReads(func() { snap.Current(set) }); reads != 1 {
		t.Errorf("a young file was read %d times, want once", reads)
	}
	past := time.Now().Add(-time.Hour)
	os.Chtimes(dir+"/a.go", past, past) // the inode's own time shows it
	if reads := sources.CountReads(func() { snap.Current(set) }); reads != 1 {
		t.Errorf("a file with an old time of a young inode was read %d times, want once", reads)
	}
}
