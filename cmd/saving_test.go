package cmd_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orchestrator/app/control"
)

// says edits the message of hello.
func says(p *project, text string) string {
	source := p.read("modules/hello/hello.go")
	before, rest, _ := strings.Cut(source, `const message = "`)
	_, after, _ := strings.Cut(rest, `"`)
	return before + `const message = "` + text + `"` + after
}

// TestEditorsWays saves one file as editors do: each becomes the running code
// with one reload, and no failure is told.
func TestEditorsWays(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.startServing()
	file := p.path("modules/hello/hello.go")
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
		before, failures := p.status(), strings.Count(p.printed(), "build failed")
		p.check(way.save([]byte(says(p, want))))
		p.wait("the new code, saved "+way.name, func() bool { return p.get("/hello/") == want })
		if s := p.settled(); s.Generation <= before.Generation || s.Generation > before.Generation+2 || s.LastReload.Generation != s.Generation {
			t.Errorf("%s: generation %d, was %d", way.name, s.Generation, before.Generation)
		}
		if i > 2 && strings.Count(p.printed(), "build failed") > failures {
			t.Fatalf("%s: a failure was told", way.name)
		}
	}
}

// TestNothingElseBuilds changes all that is not in the build, and what is but
// not in its content: none of it does anything.
func TestNothingElseBuilds(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.write("elsewhere/elsewhere.go", "package elsewhere\n")
	p.startServing()
	file := p.path("modules/hello/hello.go")
	source := p.read("modules/hello/hello.go")
	p.write("README.md", "new")
	p.write("modules/hello/more_test.go", "package hello\n\nnonsense")
	p.write("modules/hello/notes.txt", "new")
	p.write("elsewhere/elsewhere.go", "package elsewhere\n\nnonsense")
	p.check(os.Chtimes(file, time.Now(), time.Now()))
	p.check(os.Chmod(file, 0o600))
	p.check(os.WriteFile(file, []byte(source), 0o600))
	p.check(os.MkdirAll(p.path("modules/hello/empty"), 0o755))

	// A comment builds, but what comes out is what serves.
	p.write("modules/hello/hello.go", source+"\n// A comment.\n")
	p.wait("it to say that nothing changed", func() bool { return strings.Contains(p.printed(), "unchanged: the build is the one that serves") })
	if s := p.status(); s.Generation != 1 || s.LastReload.Outcome != "unchanged" {
		t.Errorf("generation %d, last reload %+v; want 1, unchanged", s.Generation, s.LastReload)
	}
	p.write("modules/hello/hello.go", says(p, "Hello, moon"))
	p.wait("the new code", func() bool { return p.get("/hello/") == "Hello, moon" })
	if s := p.settled(); s.Generation != 2 || strings.Contains(p.printed(), "build failed") || strings.Count(p.printed(), "unchanged:") != 1 {
		t.Errorf("generation %d: something has built in between", s.Generation)
	}
	// By now the packages are known: no go command was needed.
	p.wait("a direct build", func() bool {
		p.write("modules/hello/hello.go", says(p, fmt.Sprint("Hello, ", time.Now().UnixNano())))
		want := p.status().Generation + 1
		p.wait("its outcome", func() bool { s := p.status(); return s.LastReload != nil && s.LastReload.Generation >= want })
		return len(p.status().LastReload.Notes) == 0
	})
}

// TestABranchSwitch changes ten thousand files at once, there and back and
// there again: the last content serves, after few builds and in little memory.
func TestABranchSwitch(t *testing.T) {
	t.Parallel()
	const packages, files = 100, 100
	p := testProject(t)
	branch := func(name string) {
		var imports, sum strings.Builder
		for i := range packages {
			for j := range files {
				p.write(fmt.Sprintf("many/p%d/f%d.go", i, j), fmt.Sprintf("package p%d\n\nconst C%d = %q\n", i, j, name))
			}
			fmt.Fprintf(&imports, "\t\"orchestrator/many/p%d\"\n", i)
			fmt.Fprintf(&sum, " + p%d.C%d", i, i)
		}
		p.write("modules/hello/many.go", "package hello\n\nimport (\n"+imports.String()+")\n\nconst many = \"\""+sum.String()+"\n")
	}
	branch("a")
	source := strings.Replace(p.read("modules/hello/hello.go"), "fmt.Fprintln(w, message)", "fmt.Fprintln(w, message, many)", 1)
	if !strings.Contains(source, "many") {
		t.Fatal("hello.go has no such line any more")
	}
	p.write("modules/hello/hello.go", source)
	p.startServing()
	p.wait("the many packages to serve", func() bool { return p.get("/hello/") == "Hello, world "+strings.Repeat("a", packages) })
	before := p.status()
	began := time.Now()
	for _, name := range []string{"b", "a", "b", "a", "c"} {
		branch(name)
	}
	builds := 3 + int(time.Since(began)/(2*time.Second)) // while it is written, one may finish each 2 s
	want := "Hello, world " + strings.Repeat("c", packages)
	p.wait("the last content to serve", func() bool { return p.get("/hello/") == want })
	after := p.settled()
	if after.LastReload == nil || after.LastReload.Generation != after.Generation || after.Generation > before.Generation+builds || strings.Contains(p.printed(), "build failed") {
		t.Errorf("generation %d after %d: too many builds", after.Generation, before.Generation)
	}
	if peak := statusField(after.SupervisorPID, "VmHWM:"); peak > 256 {
		t.Errorf("the supervisor has taken %d MiB", peak)
	}
	t.Logf("%d files, five times: generation %d after %d; the supervisor took at most %d MiB", packages*files, after.Generation, before.Generation, statusField(after.SupervisorPID, "VmHWM:"))
}

// TestABuildDiesWithTheSupervisor kills it in the middle of one.
func TestABuildDiesWithTheSupervisor(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.startServing()
	p.write("modules/hello/slow.go", "package hello\n\nimport _ \"go/types\"\n") // not there yet: go build
	p.wait("the build to begin", func() bool { return builds(p) > 0 })
	p.check(p.cmd.Process.Kill())
	<-p.exit
	p.done = true
	p.wait("everything to end", func() bool { return len(p.processes()) == 0 })
}

// TestIdleCostsNothing looks at the processor time of both processes while
// nobody asks for anything.
func TestIdleCostsNothing(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.startServing()
	s := p.status()
	used := func(pid int) int { // in hundredths of a second
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Skip("there is no /proc here")
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		return atoi(fields[11]) + atoi(fields[12])
	}
	p.wait("3 s in which neither works: what it does after the start has an end", func() bool {
		before := [2]int{used(s.SupervisorPID), used(s.PID)}
		<-time.After(3 * time.Second) // of idleness
		after := [2]int{used(s.SupervisorPID), used(s.PID)}
		t.Logf("in 3 s of idleness the supervisor used %d ms, the worker %d ms", 10*(after[0]-before[0]), 10*(after[1]-before[1]))
		return after[0]-before[0] <= 1 && after[1]-before[1] <= 1
	})
	t.Logf("memory: supervisor %d MiB, worker %d MiB", memory(s.SupervisorPID), memory(s.PID))
}

// TestBuildSettings builds another main package with a flag and with what
// debuggers need, by the go command alone.
func TestBuildSettings(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.write("modules/hello/hello.go", strings.Replace(p.read("modules/hello/hello.go"), `const message = "Hello, world"`, "", 1))
	p.write("modules/hello/moon.go", "//go:build moon\n\npackage hello\n\nconst message = \"Hello, moon\"\n")
	p.write("modules/hello/world.go", "//go:build !moon\n\npackage hello\n\nconst message = \"Hello, world\"\n")
	p.write("cmd/another/main.go", p.read("cmd/orchestrator/main.go"))
	p.write("cmd/another/modules.go", p.read("cmd/orchestrator/modules.go"))
	p.edit("config/main.yaml", "modules:", "build: {package: ./cmd/another, flags: [-tags=moon], debug: true, direct: false}\nmodules:")
	p.startServing()
	if got := p.get("/hello/"); got != "Hello, moon" {
		t.Errorf("GET /hello/ = %q: the flag does not count", got)
	}
	p.write("modules/hello/moon.go", strings.Replace(p.read("modules/hello/moon.go"), "moon\"", "full moon\"", 1))
	p.wait("the new code", func() bool { return p.get("/hello/") == "Hello, full moon" })
	if s := p.settled(); len(s.LastReload.Notes) != 0 {
		t.Errorf("last reload = %+v, want no note", *s.LastReload)
	}
	out, err := exec.Command("go", "version", "-m", fmt.Sprintf("/proc/%d/exe", p.status().PID)).CombinedOutput()
	p.check(err)
	if !strings.Contains(string(out), "cmd/another") || !strings.Contains(string(out), "-tags=moon") || strings.Contains(string(out), "-ldflags") {
		t.Errorf("what serves was built as\n%s", out)
	}
	if strings.Contains(p.printed(), "debuggers need") {
		t.Error("the terminal says how to turn on what is on")
	}
}

// TestASharedPackageNamesItsModules edits one that two of three modules import.
func TestASharedPackageNamesItsModules(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.write("shared/shared.go", "package shared\n\nconst Text = \"one\"\n")
	for _, name := range []string{"hello", "counter"} {
		p.write("modules/"+name+"/shared.go", "package "+name+"\n\nimport \"orchestrator/shared\"\n\nfunc init() { println(shared.Text) }\n")
	}
	p.startServing()
	p.write("shared/shared.go", "package shared\n\nconst Text = \"two\"\n")
	p.wait("the reload", func() bool { s := p.status(); return s.LastReload != nil && s.LastReload.Generation == 2 })
	if got := strings.Join(p.status().LastReload.Modules, " "); got != "hello counter" {
		t.Errorf("the reload names %q, want hello counter", got)
	}
}

// TestAFirstBuildThatCannotBegin starts the program as it is, says so, and
// builds once the cause is gone; a reload that is asked for meanwhile waits.
func TestAFirstBuildThatCannotBegin(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	mod := p.read("go.mod")
	p.write("go.mod", "<<<<<<< HEAD\n"+mod)
	p.start()
	outcome := make(chan *control.Outcome, 1)
	p.wait("the control socket", func() bool { _, err := os.Stat(p.path(".orchestrator/control.sock")); return err == nil })
	go func() {
		o, _ := p.upgrade(control.ReloadRequest{Binary: p.path("bin/orchestrator"), TimeoutMS: 15_000})
		outcome <- o
	}()
	p.wait("it to serve", func() bool { return p.serving() && p.get("/hello/") == "Hello, world" })
	if !strings.Contains(p.printed(), "the build failed; starting") || !strings.Contains(p.printed(), "go.mod:1") {
		t.Error("it does not say why it does not serve what the sources say")
	}
	if o := <-outcome; o == nil || o.Outcome != control.Reloaded {
		t.Errorf("the reload that was asked for first = %+v, want reloaded", o)
	}
	p.write("go.mod", mod)
	p.write("modules/hello/hello.go", says(p, "Hello, moon"))
	p.wait("the sources to be built", func() bool { return p.get("/hello/") == "Hello, moon" })
}

// TestAHalfWrittenConfiguration saves main.yaml as an editor does that truncates
// it first. An empty file would be a valid one, without any module: it must
// not be taken for what the author means, nor cost a state.
func TestAHalfWrittenConfiguration(t *testing.T) {
	t.Parallel()
	p := testProject(t)
	p.startServing()
	if got, _, err := increment(p.address()); err != nil || got != 1 {
		t.Fatalf("POST /counter/ = %d, %v", got, err)
	}
	for i, judged := 0, 0; judged < 5; i++ {
		text := strings.Replace(standardConfig, "  - name: hello\n", fmt.Sprintf("  - name: hello\n    path: /hello%d/\n", i), 1)
		before := p.status().Generation
		began := time.Now()
		p.check(os.Truncate(p.path("config/main.yaml"), 0))
		<-time.After(30 * time.Millisecond) // the editor's pace
		p.write("config/main.yaml", text)
		slow := time.Since(began) > 200*time.Millisecond // no editor is: it may be believed
		if slow && i == 50 {
			t.Fatal("this machine is too slow to be an editor")
		}
		p.wait("the new path", func() bool { return p.get(fmt.Sprintf("/hello%d/", i)) == "Hello, world" })
		s := p.settled()
		if slow {
			continue
		}
		judged++
		if s.Generation != before+1 || strings.Join(s.LastReload.Modules, " ") != "hello" {
			t.Errorf("save %d: generation %d after %d, last reload %+v", i, s.Generation, before, *s.LastReload)
		}
	}
	if got := p.get("/counter/"); got != "1" {
		t.Errorf("the counter is %q, want 1", got)
	}

	// Whoever means it is told how.
	p.check(os.Truncate(p.path("config/main.yaml"), 0))
	if o, code := p.reload(); code != 3 || o.Stage != "config" || !strings.Contains(o.Error, "is empty") {
		t.Errorf("reload with an empty main.yaml: exit %d, %+v; want 3, and that it is empty", code, o)
	}
	if got := p.get("/counter/"); got != "1" {
		t.Errorf("after it the counter is %q, want 1", got)
	}
	p.write("config/main.yaml", strings.TrimSuffix(standardConfig, "\n")) // no line end, and meant so
	p.wait("the old path", func() bool { return p.get("/hello/") == "Hello, world" })
}
