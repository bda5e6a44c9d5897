//go:build unix

package upgrade_test

import (
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestStartedByAnUpgrade: run may be started by a program that uses tableflip itself.
func TestStartedByAnUpgrade(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.StartWith("TABLEFLIP_HAS_PARENT_7DIU3=yes")
	for range 2 {
		p.Reloads(b.Old)
	}
}

// TestWhatAModuleSetsEndsWithItsGeneration: environment, working directory and umask
// of the next one are the supervisor's, after a reload as after a crash.
func TestWhatAModuleSetsEndsWithItsGeneration(t *testing.T) {
	t.Parallel()
	p, binary := e2etest.Rude(t)
	get := func(path string) string {
		_, text, err := e2etest.Do(http.MethodGet, "http://"+p.Address()+path, "")
		p.Check(err)
		return text
	}
	before := get("/rude/inherited")
	if !strings.Contains(before, "kept") {
		t.Fatalf("the first generation has %q", before)
	}
	for range 2 {
		get("/rude/traces")
		if now := get("/rude/inherited"); now == before {
			t.Fatal("nothing was changed")
		}
		o, err := p.Upgrade(client.ReloadRequest{Binary: binary, WaitProbation: true})
		if err != nil || o.Verdict != client.Reloaded {
			t.Fatalf("reload = %v, %v", o, err)
		}
		if now := get("/rude/inherited"); now != before {
			t.Errorf("the next generation has %q, the first had %q", now, before)
		}
	}
	get("/rude/traces")
	s, err := p.Peek()
	p.Check(err)
	p.Check(syscall.Kill(s.PID, syscall.SIGKILL))
	p.Wait("another generation to serve", func() bool {
		now, err := p.Peek()
		return err == nil && now.State == client.Serving && now.Generation > s.Generation
	})
	if now := get("/rude/inherited"); now != before {
		t.Errorf("after a crash it has %q, the first had %q", now, before)
	}
	if _, err := os.Stat(p.Path(".orchestrator/control.sock")); err != nil {
		t.Error(err)
	}
}
