//go:build unix

package develop_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestEditorsWays saves one file in the ways that editors do. Each save becomes
// the running code with one reload, and no failure is reported.
func TestEditorsWays(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.StartServing()
	file := p.Path("modules/hello/hello.go")
	dir := filepath.Dir(file)
	for i, way := range []struct {
		name string
		save func(text []byte) error
	}{
		{"in place", func(text []byte) error { return os.WriteFile(file, text, 0o644) }},
		{"truncated, and written a moment later", func(text []byte) error {
			if err := os.Truncate(file, 0); err != nil {
				return err
			}
			<-time.After(30 * time.Millisecond) // the editor's pace
			return os.WriteFile(file, text, 0o644)
		}},
		{"in two halves", func(text []byte) error {
			f, err := os.Create(file)
			if err != nil {
				return err
			}
			defer f.Close()
			f.Write(text[:len(text)/2])
			<-time.After(30 * time.Millisecond)
			_, err = f.Write(text[len(text)/2:])
			return err
		}},
		{"renamed over", func(text []byte) error {
			if err := os.WriteFile(file+".tmp", text, 0o644); err != nil {
				return err
			}
			return os.Rename(file+".tmp", file)
		}},
		{"vim: a probe, a backup, a new file", func(text []byte) error {
			os.WriteFile(dir+"/4913", nil, 0o644)
			os.Remove(dir + "/4913")
			if err := os.Rename(file, file+"~"); err != nil {
				return err
			}
			err := os.WriteFile(file, text, 0o644)
			os.Remove(file + "~")
			return err
		}},
		{"emacs: a lock, an auto-save, a backup", func(text []byte) error {
			os.Symlink("user@host.1:2", dir+"/.#hello.go")
			os.WriteFile(dir+"/#hello.go#", text, 0o644)
			os.Rename(file, file+"~")
			err := os.WriteFile(file, text, 0o644)
			os.Remove(dir + "/.#hello.go")
			os.Remove(dir + "/#hello.go#")
			return err
		}},
		{"JetBrains: a safe write", func(text []byte) error {
			os.WriteFile(file+"___jb_tmp___", text, 0o644)
			os.Rename(file, file+"___jb_old___")
			err := os.Rename(file+"___jb_tmp___", file)
			os.Remove(file + "___jb_old___")
			return err
		}},
		{"removed, and written again", func(text []byte) error {
			os.Remove(file)
			<-time.After(30 * time.Millisecond)
			return os.WriteFile(file, text, 0o644)
		}},
		{"another inode with an old time", func(text []byte) error {
			os.WriteFile(file+".tmp", text, 0o644)
			os.Chtimes(file+".tmp", time.Unix(1e9, 0), time.Unix(1e9, 0))
			return os.Rename(file+".tmp", file)
		}},
	} {
		want := fmt.Sprint("Hello, ", way.name)
		before, failures := p.Status(), strings.Count(p.Printed(), "build failed")
		p.Check(way.save([]byte(e2etest.Says(p, want))))
		p.Wait("the new code, saved "+way.name, func() bool { return p.Get("/hello/") == want })
		if s := p.Idle(); s.Generation <= before.Generation || s.Generation > before.Generation+2 || s.LastReload.Generation != s.Generation {
			t.Errorf("%s: generation %d, was %d", way.name, s.Generation, before.Generation)
		}
		if i > 2 && strings.Count(p.Printed(), "build failed") > failures {
			t.Fatalf("%s: a failure was told", way.name)
		}
	}
}

// TestNothingElseBuilds changes files that are not in the build, and touches
// files that are: neither has any effect.
func TestNothingElseBuilds(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.Write("elsewhere/elsewhere.go", "package elsewhere\n")
	p.StartServing()
	file := p.Path("modules/hello/hello.go")
	source := p.Read("modules/hello/hello.go")
	p.Write("README.md", "new")
	p.Write("modules/hello/more_test.go", "package hello\n\nnonsense")
	p.Write("modules/hello/notes.txt", "new")
	p.Write("elsewhere/elsewhere.go", "package elsewhere\n\nnonsense")
	p.Check(os.Chtimes(file, time.Now(), time.Now()))
	p.Check(os.Chmod(file, 0o600))
	p.Check(os.WriteFile(file, []byte(source), 0o600))
	p.Check(os.MkdirAll(p.Path("modules/hello/empty"), 0o755))

	// A comment is built, but the binary is the one that serves.
	p.Write("modules/hello/hello.go", source+"\n// A comment.\n")
	p.Wait("it to say that nothing changed", func() bool { return strings.Contains(p.Printed(), "unchanged: the build is the one that serves") })
	if s := p.Status(); s.Generation != 1 || s.LastReload.Verdict != "unchanged" {
		t.Errorf("generation %d, last reload %+v; want 1, unchanged", s.Generation, s.LastReload)
	}
	p.Write("modules/hello/hello.go", e2etest.Says(p, "Hello, moon"))
	p.Wait("the new code", func() bool { return p.Get("/hello/") == "Hello, moon" })
	if s := p.Idle(); s.Generation != 2 || strings.Contains(p.Printed(), "build failed") || strings.Count(p.Printed(), "unchanged:") != 1 {
		t.Errorf("generation %d: something has built in between", s.Generation)
	}
	// By now the packages are known, so the go command is not needed.
	p.Wait("a direct build", func() bool {
		p.Write("modules/hello/hello.go", e2etest.Says(p, fmt.Sprint("Hello, ", time.Now().UnixNano())))
		want := p.Status().Generation + 1
		p.Wait("its outcome", func() bool { s := p.Status(); return s.LastReload != nil && s.LastReload.Generation >= want })
		return len(p.Status().LastReload.Notes) == 0
	})
}

// TestABranchSwitch changes ten thousand files at once, then back, then again.
// The last content serves, after few builds and with little memory.
func TestABranchSwitch(t *testing.T) {
	t.Parallel()
	const packages, files = 100, 100
	p := e2etest.New(t)
	branch := func(name string) {
		var imports, sum strings.Builder
		for i := range packages {
			for j := range files {
				p.Write(fmt.Sprintf("many/p%d/f%d.go", i, j), fmt.Sprintf("package p%d\n\nconst C%d = %q\n", i, j, name))
			}
			fmt.Fprintf(&imports, "\t\"example.org/orchestrator/many/p%d\"\n", i)
			fmt.Fprintf(&sum, " + p%d.C%d", i, i)
		}
		p.Write("modules/hello/many.go", "package hello\n\nimport (\n"+imports.String()+")\n\nconst many = \"\""+sum.String()+"\n")
	}
	branch("a")
	source := strings.Replace(p.Read("modules/hello/hello.go"), "fmt.Fprintln(w, message)", "fmt.Fprintln(w, message, many)", 1)
	if !strings.Contains(source, "many") {
		t.Fatal("hello.go has no such line any more")
	}
	p.Write("modules/hello/hello.go", source)
	p.StartServing()
	p.Wait("the many packages to serve", func() bool { return p.Get("/hello/") == "Hello, world "+strings.Repeat("a", packages) })
	before := p.Status()
	began := time.Now()
	for _, name := range []string{"b", "a", "b", "a", "c"} {
		branch(name)
	}
	builds := 3 + int(time.Since(began)/(2*time.Second)) // while the files are written, one may finish every 2 s
	want := "Hello, world " + strings.Repeat("c", packages)
	p.Wait("the last content to serve", func() bool { return p.Get("/hello/") == want })
	after := p.Idle()
	if after.LastReload == nil || after.LastReload.Generation != after.Generation || after.Generation > before.Generation+builds || strings.Contains(p.Printed(), "build failed") {
		t.Errorf("generation %d after %d: too many builds", after.Generation, before.Generation)
	}
	if peak := e2etest.StatusField(after.SupervisorPID, "VmHWM:"); peak > 256 {
		t.Errorf("the supervisor has taken %d MiB", peak)
	}
	t.Logf("%d files, five times: generation %d after %d; the supervisor took at most %d MiB", packages*files, after.Generation, before.Generation, e2etest.StatusField(after.SupervisorPID, "VmHWM:"))
}

// TestABuildDiesWithTheSupervisor kills the supervisor in the middle of a build.
func TestABuildDiesWithTheSupervisor(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.StartServing()
	p.Write("modules/hello/slow.go", "package hello\n\nimport _ \"go/types\"\n") // a new import, so go build runs
	p.Wait("the build to begin", func() bool { return builds(p) > 0 })
	p.Check(p.Cmd.Process.Kill())
	<-p.Exit
	p.Done = true
	p.Wait("everything to end", func() bool { return len(p.Processes()) == 0 })
}

// TestIdleCostsNothing measures the processor time of both processes while
// nothing happens.
func TestIdleCostsNothing(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.StartServing()
	s := p.Status()
	used := func(pid int) int { // in hundredths of a second
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Skip("there is no /proc here")
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		return e2etest.Atoi(fields[11]) + e2etest.Atoi(fields[12])
	}
	p.Wait("3 s in which neither works: what it does after the start has an end", func() bool {
		before := [2]int{used(s.SupervisorPID), used(s.PID)}
		<-time.After(3 * time.Second) // of idleness
		after := [2]int{used(s.SupervisorPID), used(s.PID)}
		t.Logf("in 3 s of idleness the supervisor used %d ms, the worker %d ms", 10*(after[0]-before[0]), 10*(after[1]-before[1]))
		return after[0]-before[0] <= 1 && after[1]-before[1] <= 1
	})
	t.Logf("memory: supervisor %d MiB, worker %d MiB", e2etest.Memory(s.SupervisorPID), e2etest.Memory(s.PID))
}

// TestBuildSettings builds another main package with a flag, with what debuggers
// need and with the go command only.
func TestBuildSettings(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.Write("modules/hello/hello.go", strings.Replace(p.Read("modules/hello/hello.go"), `const message = "Hello, world"`, "", 1))
	p.Write("modules/hello/moon.go", "//go:build moon\n\npackage hello\n\nconst message = \"Hello, moon\"\n")
	p.Write("modules/hello/world.go", "//go:build !moon\n\npackage hello\n\nconst message = \"Hello, world\"\n")
	p.Write("cmd/another/main.go", p.Read("cmd/orchestrator/main.go"))
	p.Write("cmd/another/modules.go", p.Read("cmd/orchestrator/modules.go"))
	p.Edit("config/main.yaml", "modules:", "build: {package: ./cmd/another, flags: [-tags=moon], debug: true, direct: false}\nmodules:")
	p.StartServing()
	if got := p.Get("/hello/"); got != "Hello, moon" {
		t.Errorf("GET /hello/ = %q: the flag does not count", got)
	}
	p.Write("modules/hello/moon.go", strings.Replace(p.Read("modules/hello/moon.go"), "moon\"", "full moon\"", 1))
	p.Wait("the new code", func() bool { return p.Get("/hello/") == "Hello, full moon" })
	if s := p.Idle(); len(s.LastReload.Notes) != 0 {
		t.Errorf("last reload = %+v, want no note", *s.LastReload)
	}
	out, err := exec.Command("go", "version", "-m", fmt.Sprintf("/proc/%d/exe", p.Status().PID)).CombinedOutput()
	p.Check(err)
	if !strings.Contains(string(out), "cmd/another") || !strings.Contains(string(out), "-tags=moon") || strings.Contains(string(out), "-ldflags") {
		t.Errorf("what serves was built as\n%s", out)
	}
	if strings.Contains(p.Printed(), "debuggers need") {
		t.Error("the terminal says how to turn on what is on")
	}
}

// TestASharedPackageNamesItsModules edits a package that two of three modules
// import.
func TestASharedPackageNamesItsModules(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.Write("shared/shared.go", "package shared\n\nconst Text = \"one\"\n")
	for _, name := range []string{"hello", "counter"} {
		p.Write("modules/"+name+"/shared.go", "package "+name+"\n\nimport \"example.org/orchestrator/shared\"\n\nfunc init() { println(shared.Text) }\n")
	}
	p.StartServing()
	p.Write("shared/shared.go", "package shared\n\nconst Text = \"two\"\n")
	p.Wait("the reload", func() bool { s := p.Status(); return s.LastReload != nil && s.LastReload.Generation == 2 })
	if got := strings.Join(p.Status().LastReload.Modules, " "); got != "hello counter" {
		t.Errorf("the reload names %q, want hello counter", got)
	}
}

// TestAFirstBuildThatCannotBegin: the program is started as it is, this is said,
// and it is built once the cause is gone. A reload asked for meanwhile waits.
func TestAFirstBuildThatCannotBegin(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	mod := p.Read("go.mod")
	p.Write("go.mod", "<<<<<<< HEAD\n"+mod)
	p.Start()
	outcome := make(chan *client.Outcome, 1)
	p.Wait("the control socket", func() bool { _, err := os.Stat(p.Path(".orchestrator/control.sock")); return err == nil })
	go func() {
		o, _ := p.Upgrade(client.ReloadRequest{Binary: p.Path("bin/orchestrator"), TimeoutMS: 15_000})
		outcome <- o
	}()
	p.Wait("it to serve", func() bool { return p.Serving() && p.Get("/hello/") == "Hello, world" })
	if !strings.Contains(p.Printed(), "the build failed; starting") || !strings.Contains(p.Printed(), "go.mod:1") {
		t.Error("it does not say why it does not serve what the sources say")
	}
	if o := <-outcome; o == nil || o.Verdict != client.Reloaded {
		t.Errorf("the reload that was asked for first = %+v, want reloaded", o)
	}
	p.Write("go.mod", mod)
	p.Write("modules/hello/hello.go", e2etest.Says(p, "Hello, moon"))
	p.Wait("the sources to be built", func() bool { return p.Get("/hello/") == "Hello, moon" })
}

// TestAHalfWrittenConfiguration saves main.yaml like an editor that truncates it
// first. An empty file would be valid, without any module: it must not be taken
// for what the author means, nor lose a state.
func TestAHalfWrittenConfiguration(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.StartServing()
	if got, _, err := e2etest.Increment(p.Address()); err != nil || got != 1 {
		t.Fatalf("POST /counter/ = %d, %v", got, err)
	}
	for i, judged := 0, 0; judged < 5; i++ {
		text := strings.Replace(e2etest.StandardConfig, "  - name: hello\n", fmt.Sprintf("  - name: hello\n    path: /hello%d/\n", i), 1)
		before := p.Status().Generation
		began := time.Now()
		p.Check(os.Truncate(p.Path("config/main.yaml"), 0))
		<-time.After(30 * time.Millisecond) // the editor's pace
		p.Write("config/main.yaml", text)
		slow := time.Since(began) > 200*time.Millisecond // slower than any editor: it may be believed
		if slow && i == 50 {
			t.Fatal("this machine is too slow to be an editor")
		}
		p.Wait("the new path", func() bool { return p.Get(fmt.Sprintf("/hello%d/", i)) == "Hello, world" })
		s := p.Idle()
		if slow {
			continue
		}
		judged++
		if s.Generation != before+1 || strings.Join(s.LastReload.Modules, " ") != "hello" {
			t.Errorf("save %d: generation %d after %d, last reload %+v", i, s.Generation, before, *s.LastReload)
		}
	}
	if got := p.Get("/counter/"); got != "1" {
		t.Errorf("the counter is %q, want 1", got)
	}

	// An author who means it is told how.
	p.Check(os.Truncate(p.Path("config/main.yaml"), 0))
	if o, code := p.Reload(); code != 3 || o.Stage != "config" || !strings.Contains(o.Error, "is empty") {
		t.Errorf("reload with an empty main.yaml: exit %d, %+v; want 3, and that it is empty", code, o)
	}
	if got := p.Get("/counter/"); got != "1" {
		t.Errorf("after it the counter is %q, want 1", got)
	}
	p.Write("config/main.yaml", strings.TrimSuffix(e2etest.StandardConfig, "\n")) // no newline at the end, on purpose
	p.Wait("the old path", func() bool { return p.Get("/hello/") == "Hello, world" })
}
