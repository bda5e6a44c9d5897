package cmd_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"orchestrator/app/control"
)

// rejected fails the test unless o is a rejection that says why, and the
// program serves as before.
func (p *project) rejected(o *control.Outcome, err error, why string, before *control.Status) {
	p.check(err)
	if o.Outcome != control.Rejected || !strings.Contains(o.Error, why) {
		p.t.Fatalf("reload = %+v, want rejected, with %q", *o, why)
	}
	after, err := p.peek()
	p.check(err)
	if after.PID != before.PID || after.State != "serving" {
		p.t.Fatalf("process %d is %s, want %d, serving", after.PID, after.State, before.PID)
	}
}

// nextReloadWorks also compares the counter before and after it.
func (p *project) nextReloadWorks(binary string) {
	s, err := p.peek()
	p.check(err)
	was, err := count(s.Listen[0])
	p.check(err)
	o, err := p.upgrade(control.ReloadRequest{Binary: binary, WaitProbation: true})
	p.check(err)
	if o.Outcome != control.Reloaded || o.Probation != control.ProbationPassed {
		p.t.Fatalf("the next reload = %+v, want reloaded", *o)
	}
	if is, err := count(s.Listen[0]); err != nil || is != was {
		p.t.Fatalf("after the next reload the counter is %d, %v; want %d", is, err, was)
	}
}

// reloads once, with success.
func (p *project) reloads(binary string) {
	o, err := p.upgrade(control.ReloadRequest{Binary: binary, TimeoutMS: 60_000, WaitProbation: true})
	if err != nil || o.Outcome != control.Reloaded || o.Probation != control.ProbationPassed {
		p.t.Fatalf("reload = %+v, %v; want reloaded", o, err)
	}
}

// started is a light program that has counted to three.
func started(t *testing.T, edits ...string) (*project, pair, *control.Status) {
	t.Helper()
	p, b := lightTest(t)
	p.configure(edits...)
	p.startWith()
	s, err := p.peek()
	p.check(err)
	for range 3 {
		_, _, err := increment(s.Listen[0])
		p.check(err)
	}
	return p, b, s
}

// copied waits until the program has a copy of its binary.
func (p *project) copied() {
	p.wait("a copy of the binary", func() bool {
		kept, _ := filepath.Glob(p.path(".orchestrator/builds/*/orchestrator"))
		return slices.ContainsFunc(kept, func(path string) bool { return !strings.Contains(path, "/keep-") })
	})
}

func TestADeletedBinary(t *testing.T) {
	t.Parallel()
	p, b, before := started(t)
	p.copied()
	p.check(os.Remove(p.path("bin/orchestrator")))
	o, err := p.upgrade(control.ReloadRequest{})
	p.rejected(o, err, "bin/orchestrator: no such file", before)

	// A crash does not need the file either.
	p.check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.wait("another generation to serve", func() bool {
		s, err := p.peek()
		return err == nil && s.State == "serving" && s.PID != before.PID
	})
	p.nextReloadWorks(b.old)
}

func TestADeletedConfiguration(t *testing.T) {
	t.Parallel()
	p, b, before := started(t)
	p.check(os.Rename(p.path("config/main.yaml"), p.path("config/away")))
	o, err := p.upgrade(control.ReloadRequest{})
	p.rejected(o, err, "main.yaml: there is no such file", before)

	// A crash now cannot be repaired, until the file is back.
	p.check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.wait("a restart to fail", func() bool { return strings.Count(p.printed(), "main.yaml: there is no such file") > 2 })
	p.check(os.Rename(p.path("config/away"), p.path("config/main.yaml")))
	p.wait("another generation to serve", func() bool {
		s, err := p.peek()
		return err == nil && s.State == "serving" && s.PID != before.PID
	})
	p.nextReloadWorks(b.old)
}

// TestADeletedRunDir is what cleaners of temporary folders do. Clients find
// nobody then; SIGHUP makes the folder anew.
func TestADeletedRunDir(t *testing.T) {
	t.Parallel()
	p, b, before := started(t)
	p.check(os.RemoveAll(p.path(".orchestrator")))
	if n, err := count(before.Listen[0]); err != nil || n != 3 {
		t.Fatalf("the counter is %d, %v; want 3", n, err)
	}
	if _, err := p.peek(); err == nil {
		t.Fatal("status works without a control socket")
	}
	p.check(p.cmd.Process.Signal(syscall.SIGHUP))
	p.wait("the reload", func() bool {
		s, err := p.peek()
		return err == nil && s.Generation > before.Generation && s.State == "serving" && s.LastReload.Probation == control.ProbationPassed
	})
	if _, errs, code := p.command("run"); code != 1 || !strings.Contains(errs, "already running here") {
		t.Errorf("a second run: exit %d, %q; want 1, already running", code, errs)
	}
	p.nextReloadWorks(b.old)
}

func TestADeletedWorkingDirectory(t *testing.T) {
	t.Parallel()
	p, _ := lightTest(t)
	logs := t.TempDir() // outlives the folder
	p.log = filepath.Join(logs, "run.log")
	p.startWith()
	before, err := p.peek()
	p.check(err)
	p.check(os.RemoveAll(p.dir))
	p.check(p.cmd.Process.Signal(syscall.SIGHUP))
	p.wait("the refusal", func() bool {
		return strings.Contains(p.printed(), "reload rejected in start") && strings.Contains(p.printed(), "no such file or directory")
	})
	if _, _, err := increment(before.Listen[0]); err != nil {
		t.Errorf("the program does not serve on: %v", err)
	}
	p.check(p.cmd.Process.Signal(sigterm))
	if code := p.ended(); code != 0 {
		t.Errorf("run ended with %d, want 0", code)
	}
	p.wait("every process to end", func() bool { return len(p.processes()) == 0 })
}

// suspend stops a process, and waits until each of its threads has: on a busy
// machine some go on for a while.
func (p *project) suspend(pid int) {
	p.check(syscall.Kill(pid, syscall.SIGSTOP))
	p.wait("every thread to stop", func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, name := range threads {
			text, err := os.ReadFile(name)
			if _, state, ok := strings.Cut(string(text), ") "); err != nil || !ok || state[0] != 'T' {
				return false
			}
		}
		return true
	})
}

// TestAStoppedOldGeneration stops the serving process, as a debugger would.
func TestAStoppedOldGeneration(t *testing.T) {
	t.Parallel()
	p, b, before := started(t)
	p.suspend(before.PID)
	o, err := p.upgrade(control.ReloadRequest{Binary: b.new, TimeoutMS: 500})
	if err != nil || o.Outcome != control.Rejected || !strings.Contains(o.Error, "does not answer; is it stopped?") {
		t.Fatalf("reload = %+v, %v; want rejected, and that it is stopped", o, err)
	}
	p.check(syscall.Kill(before.PID, syscall.SIGCONT))
	p.wait("it to serve again", func() bool {
		s, err := p.peek()
		return err == nil && s.State == "serving" && s.PID == before.PID
	})
	p.nextReloadWorks(b.old)
}

// TestReloadsAtOnce asks for many reloads at the same moment: one runs, one
// waits, and whoever is overtaken is told.
func TestReloadsAtOnce(t *testing.T) {
	t.Parallel()
	p, b, _ := started(t)
	var clients sync.WaitGroup
	outcomes := make([]*control.Outcome, 8)
	for i := range outcomes {
		clients.Go(func() { outcomes[i], _ = p.upgrade(control.ReloadRequest{Binary: b.old}) })
	}
	clients.Wait()
	counts := map[string]int{}
	highest := 0
	for _, o := range outcomes {
		if o == nil {
			t.Fatal("a reload was not answered")
		}
		counts[o.Outcome]++
		highest = max(highest, o.Generation)
	}
	if counts[control.Reloaded] < 2 || counts[control.Reloaded]+counts[control.Superseded] != len(outcomes) {
		t.Errorf("outcomes %v, want at least two reloaded and the others superseded", counts)
	}
	if s, err := p.peek(); err != nil || s.Generation != highest {
		t.Errorf("generation %d serves, %v; want %d", s.Generation, err, highest)
	}
	p.nextReloadWorks(b.old)
}

// TestAFullDiskEverywhereElse: neither what the program prints nor what its
// modules keep has any room.
func TestAFullDiskEverywhereElse(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount")
	}
	p, b := lightTest(t)
	p.check(os.Mkdir(p.path("disk"), 0o755))
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", p.path("disk")).CombinedOutput(); err != nil {
		t.Skipf("cannot mount here: %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "--lazy", p.path("disk")).Run() })
	p.edit("config/main.yaml", "path: kv.db", "path: disk/kv.db")
	log := p.log
	p.log = "/dev/full"
	p.startWith()
	p.log = log
	s, err := p.peek()
	p.check(err)
	p.check(os.WriteFile(p.path("disk/filler"), make([]byte, 1<<10), 0o644))
	for err == nil {
		var f *os.File
		f, err = os.OpenFile(p.path("disk/filler"), os.O_APPEND|os.O_WRONLY, 0)
		p.check(err)
		_, err = f.Write(make([]byte, 1<<12))
		f.Close()
	}
	status, body, err := do(http.MethodPut, "http://"+s.Listen[0]+"/kv/key", strings.Repeat("x", 200<<10))
	if err != nil || status < 500 {
		t.Errorf("PUT on a full disk = %d %q, %v; want an error of the server", status, body, err)
	}
	if _, _, err := increment(s.Listen[0]); err != nil {
		t.Errorf("the others do not serve: %v", err)
	}
	p.nextReloadWorks(b.old)
	p.check(os.Remove(p.path("disk/filler")))
	if status, body, err := do(http.MethodPut, "http://"+s.Listen[0]+"/kv/key", "value"); err != nil || status >= 300 {
		t.Errorf("PUT with room again = %d %q, %v", status, body, err)
	}
}

// TestAStateBeyondItsLimit is refused, for one module or for all of them
// together, and the reload with it.
func TestAStateBeyondItsLimit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, old, new, want string }{
		{"module", "  - name: counter\n", "  - name: counter\n    max_state: 3B\n", "more than 3 bytes"},
		{"all", "  max_pause", "  max_state: 3B\n  max_pause", "more than 3 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, b := lightTest(t)
			p.edit("config/main.yaml", c.old, c.new)
			p.startWith()
			before, err := p.peek()
			p.check(err)
			_, _, err = increment(before.Listen[0])
			p.check(err)
			o, err := p.upgrade(control.ReloadRequest{Binary: b.old})
			p.rejected(o, err, c.want, before)
			if o.FailedModule != "counter" || o.Stage != "export" {
				t.Errorf("stage %q of module %q is blamed, want export of counter", o.Stage, o.FailedModule)
			}
			if n, err := count(before.Listen[0]); err != nil || n != 1 {
				t.Errorf("the counter is %d, %v; want 1", n, err)
			}
			if !strings.Contains(o.Error, "--drop-state=counter") {
				t.Errorf("%q does not say what to do", o.Error)
			}
			o, err = p.upgrade(control.ReloadRequest{Binary: b.old, DropState: []string{"counter"}, WaitProbation: true})
			if n, _ := count(before.Listen[0]); err != nil || o.Outcome != control.Reloaded || n != 0 {
				t.Errorf("with --drop-state: %+v, %v, the counter is %d; want reloaded, 0", o, err, n)
			}
			before, err = p.peek()
			p.check(err)
			p.edit("config/main.yaml", c.new, c.old) // a limit counts in the process that has it
			p.check(syscall.Kill(before.PID, syscall.SIGKILL))
			p.wait("another generation to serve", func() bool {
				s, err := p.peek()
				return err == nil && s.State == "serving" && s.PID != before.PID
			})
			p.nextReloadWorks(b.old)
		})
	}
}
