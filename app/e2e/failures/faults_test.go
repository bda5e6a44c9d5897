//go:build unix

package failures_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// copied waits until the supervisor has copied the binary.
func copied(p *e2etest.Project) {
	p.Wait("a copy of the binary", func() bool {
		kept, _ := filepath.Glob(p.Path(".orchestrator/builds/*/orchestrator"))
		return slices.ContainsFunc(kept, func(path string) bool { return !strings.Contains(path, "/keep-") })
	})
}

func TestADeletedBinary(t *testing.T) {
	t.Parallel()
	p, b, before := e2etest.Started(t)
	copied(p)
	p.Check(os.Remove(p.Path("bin/orchestrator")))
	o, err := p.Upgrade(client.ReloadRequest{})
	p.Rejected(o, err, "bin/orchestrator: no such file", before)

	// A restart after a crash does not need the file either.
	p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.Wait("another generation to serve", func() bool {
		s, err := p.Peek()
		return err == nil && s.State == "serving" && s.PID != before.PID
	})
	p.NextReloadWorks(b.Old)
}

func TestADeletedConfiguration(t *testing.T) {
	t.Parallel()
	p, b, before := e2etest.Started(t)
	p.Check(os.Rename(p.Path("config/main.yaml"), p.Path("config/away")))
	o, err := p.Upgrade(client.ReloadRequest{})
	p.Rejected(o, err, "main.yaml: there is no such file", before)

	// After a crash now nothing can start until the file is back.
	p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
	p.Wait("a restart to fail", func() bool { return strings.Count(p.Printed(), "main.yaml: there is no such file") > 2 })
	p.Check(os.Rename(p.Path("config/away"), p.Path("config/main.yaml")))
	p.Wait("another generation to serve", func() bool {
		s, err := p.Peek()
		return err == nil && s.State == "serving" && s.PID != before.PID
	})
	p.NextReloadWorks(b.Old)
}

// TestADeletedRunDir deletes it, as cleaners of temporary folders do. Clients then
// find no program; SIGHUP makes the folder again.
func TestADeletedRunDir(t *testing.T) {
	t.Parallel()
	p, b, before := e2etest.Started(t)
	p.Check(os.RemoveAll(p.Path(".orchestrator")))
	if n, err := e2etest.Count(before.Listen[0]); err != nil || n != 3 {
		t.Fatalf("the counter is %d, %v; want 3", n, err)
	}
	if _, err := p.Peek(); err == nil {
		t.Fatal("status works without a control socket")
	}
	p.Check(p.Cmd.Process.Signal(syscall.SIGHUP))
	p.Wait("the reload", func() bool {
		s, err := p.Peek()
		return err == nil && s.Generation > before.Generation && s.State == "serving" && s.LastReload.Probation == client.ProbationPassed
	})
	if _, errs, code := p.Command("run"); code != 1 || !strings.Contains(errs, "already running here") {
		t.Errorf("a second run: exit %d, %q; want 1, already running", code, errs)
	}
	p.NextReloadWorks(b.Old)
}

func TestADeletedWorkingDirectory(t *testing.T) {
	t.Parallel()
	p, _ := e2etest.Light(t)
	logs := t.TempDir() // outlives the folder
	p.Log = filepath.Join(logs, "run.log")
	p.StartWith()
	before, err := p.Peek()
	p.Check(err)
	p.Check(os.RemoveAll(p.Dir))
	p.Check(p.Cmd.Process.Signal(syscall.SIGHUP))
	p.Wait("the refusal", func() bool {
		return strings.Contains(p.Printed(), "reload rejected in start") && strings.Contains(p.Printed(), "no such file or directory")
	})
	if _, _, err := e2etest.Increment(before.Listen[0]); err != nil {
		t.Errorf("the program does not serve on: %v", err)
	}
	p.Check(p.Cmd.Process.Signal(e2etest.Sigterm))
	if code := p.Ended(); code != 0 {
		t.Errorf("run ended with %d, want 0", code)
	}
	p.Wait("every process to end", func() bool { return len(p.Processes()) == 0 })
}

// suspend stops a process and waits until each of its threads has stopped: on a
// busy machine some go on for a while.
func suspend(p *e2etest.Project, pid int) {
	p.Check(syscall.Kill(pid, syscall.SIGSTOP))
	p.Wait("every thread to stop", func() bool {
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
	p, b, before := e2etest.Started(t)
	suspend(p, before.PID)
	o, err := p.Upgrade(client.ReloadRequest{Binary: b.New, TimeoutMS: 500})
	if err != nil || o.Verdict != client.Rejected || !strings.Contains(o.Error, "does not answer; is it stopped?") {
		t.Fatalf("reload = %+v, %v; want rejected, and that it is stopped", o, err)
	}
	p.Check(syscall.Kill(before.PID, syscall.SIGCONT))
	p.Wait("it to serve again", func() bool {
		s, err := p.Peek()
		return err == nil && s.State == "serving" && s.PID == before.PID
	})
	p.NextReloadWorks(b.Old)
}

// TestAFullDiskEverywhereElse: there is no space for what the program prints, nor
// for what its modules store.
func TestAFullDiskEverywhereElse(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount")
	}
	p, b := e2etest.Light(t)
	p.Check(os.Mkdir(p.Path("disk"), 0o755))
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", p.Path("disk")).CombinedOutput(); err != nil {
		t.Skipf("cannot mount here: %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "--lazy", p.Path("disk")).Run() })
	p.Edit("config/main.yaml", "path: kv.db", "path: disk/kv.db")
	log := p.Log
	p.Log = "/dev/full"
	p.StartWith()
	p.Log = log
	s, err := p.Peek()
	p.Check(err)
	p.Check(os.WriteFile(p.Path("disk/filler"), make([]byte, 1<<10), 0o644))
	for err == nil {
		var f *os.File
		f, err = os.OpenFile(p.Path("disk/filler"), os.O_APPEND|os.O_WRONLY, 0)
		p.Check(err)
		_, err = f.Write(make([]byte, 1<<12))
		f.Close()
	}
	status, body, err := e2etest.Do(http.MethodPut, "http://"+s.Listen[0]+"/kv/key", strings.Repeat("x", 200<<10))
	if err != nil || status < 500 {
		t.Errorf("PUT on a full disk = %d %q, %v; want an error of the server", status, body, err)
	}
	if _, _, err := e2etest.Increment(s.Listen[0]); err != nil {
		t.Errorf("the others do not serve: %v", err)
	}
	p.NextReloadWorks(b.Old)
	p.Check(os.Remove(p.Path("disk/filler")))
	if status, body, err := e2etest.Do(http.MethodPut, "http://"+s.Listen[0]+"/kv/key", "value"); err != nil || status >= 300 {
		t.Errorf("PUT with room again = %d %q, %v", status, body, err)
	}
}
