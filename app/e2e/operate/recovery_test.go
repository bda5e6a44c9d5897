//go:build unix

package operate_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestAListenPathThatIsNoSocket: the file there is left alone.
func TestAListenPathThatIsNoSocket(t *testing.T) {
	t.Parallel()
	p, b, before := e2etest.Started(t)
	p.Write("precious", "data")
	p.Edit("config/main.yaml", "listen: 127", "listen: unix://precious #")
	o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old})
	p.Rejected(o, err, "is not a socket", before)
	if got := p.Read("precious"); got != "data" {
		t.Errorf("the file has %q", got)
	}
}

// TestAFailedStopIsTold: the exit code says so, also after a reload.
func TestAFailedStopIsTold(t *testing.T) {
	t.Parallel()
	p, binary, _ := e2etest.Zoo(t)
	p.Reloads(binary)
	p.Write("unwilling", "")
	p.Check(p.Cmd.Process.Signal(syscall.SIGTERM))
	if code := p.Ended(); code != 1 {
		t.Errorf("run ended with %d, want 1: a Shutdown failed", code)
	}
}

// TestNobodyReadsTheLog: a pipe without a reader ends nothing.
func TestNobodyReadsTheLog(t *testing.T) {
	t.Parallel()
	p, _ := e2etest.Light(t)
	binary, err := e2etest.ZooBuild()
	p.Check(err)
	p.Check(os.Remove(p.Path("bin/orchestrator")))
	p.Check(os.Link(binary, p.Path("bin/orchestrator")))
	p.Edit("config/main.yaml", "  - name: kv\n", "  - name: zoo\n  - name: kv\n")
	read, write, err := os.Pipe()
	p.Check(err)
	cmd := exec.Command("bin/orchestrator", "run")
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.Dir, e2etest.Environ, write, write
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.Check(cmd.Start())
	p.Began(cmd)
	write.Close()
	read.Close()
	p.Wait("the program to serve", func() bool {
		s, err := p.Peek()
		return err == nil && s.State == "serving"
	})
	p.Reloads(binary)
	p.Check(p.Cmd.Process.Signal(syscall.SIGTERM))
	left := func() []string { names, _ := filepath.Glob(p.Path("prepared.*")); return names }
	if code := p.Ended(); code != 0 || len(left()) > 0 {
		t.Errorf("run ended with %d, and left %q; want 0, after every Shutdown", code, left())
	}
}
