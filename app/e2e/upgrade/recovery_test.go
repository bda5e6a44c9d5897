//go:build unix

package upgrade_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestAShutdownThatHangs: the state of its module is lost, so the outcome is not
// a rejection. A reload that drops that state is not delayed.
func TestAShutdownThatHangs(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.Edit("config/main.yaml", "hook_timeout: 15s", "hook_timeout: 2s")
	p.StartWith()
	p.Reloads(b.New)
	before, err := p.Peek()
	p.Check(err)
	_, _, err = e2etest.Increment(before.Listen[0])
	p.Check(err)
	put := func(value string) {
		code, _, err := e2etest.Do(http.MethodPut, "http://"+before.Listen[0]+"/kv/key", value)
		if err != nil || code != http.StatusNoContent {
			t.Fatalf("PUT /kv/key = %d, %v", code, err)
		}
	}
	put("kept")
	p.Write("failing", "Shutdown")
	o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old})
	if err != nil || o.Verdict != client.Failed || o.Stage != "shutdown" || o.FailedModule != "counter" || strings.Join(o.Lost, " ") != "counter" || !strings.Contains(o.Error, "--force") {
		t.Errorf("reload = %+v, %v; want failed in Shutdown of counter, whose state is lost", o, err)
	}
	if s, err := p.Peek(); err != nil || s.PID != before.PID || s.State != "serving" {
		t.Errorf("after it: %+v, %v; want the old process", s, err)
	}
	o, err = p.Upgrade(client.ReloadRequest{Binary: b.Old, DropState: []string{"counter"}})
	if err != nil || o.Verdict != client.Reloaded || p.AnswersNew() || !slices.Contains(o.Notes, "the state of module counter is dropped, as asked") {
		t.Errorf("reload --drop-state=counter = %+v, %v; want reloaded", o, err)
	}
	if _, got, err := e2etest.Do(http.MethodGet, "http://"+before.Listen[0]+"/kv/key", ""); err != nil || strings.TrimSpace(got) != "kept" {
		t.Errorf("kv has %q, %v; want kept", got, err)
	}
	before, err = p.Peek()
	p.Check(err)
	o, err = p.Upgrade(client.ReloadRequest{Binary: b.Old, DropState: []string{"conuter"}})
	p.Rejected(o, err, `no module is called "conuter", there are [counter kv]`, before)
	_, _, err = e2etest.Increment(before.Listen[0])
	p.Check(err)
	if o, err = p.Upgrade(client.ReloadRequest{Binary: b.Old, DropState: []string{"*"}}); err != nil || o.Verdict != client.Reloaded {
		t.Errorf("reload --drop-state = %+v, %v", o, err)
	}
	if n, err := e2etest.Count(before.Listen[0]); err != nil || n != 0 {
		t.Errorf("the counter is %d, %v; want 0", n, err)
	}
}

// TestARollbackWithoutProbation: it is reported although the reload was reported
// as a success, and does not delay what follows.
func TestARollbackWithoutProbation(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.Edit("config/main.yaml", "probation: 300ms", "probation: 0s")
	p.StartWith("ORCHESTRATOR_FAILPOINT=" + p.Path("failpoint"))
	before, err := p.Peek()
	p.Check(err)
	for _, place := range []string{"candidate.at.reported kill", "candidate.at.proved kill", "candidate.before.conns garbage"} {
		p.Write("failpoint", place)
		idle, err := net.Dial("tcp", p.Address()) // a connection to move
		p.Check(err)
		defer idle.Close()
		_, _, err = e2etest.Increment(p.Address())
		p.Check(err)
		o, err := p.Upgrade(client.ReloadRequest{Binary: b.New, WaitProbation: true})
		if err != nil || o.Verdict != client.RolledBack {
			t.Fatalf("%s: reload = %+v, %v; want rolled back", place, o, err)
		}
		s, err := p.Peek()
		if err != nil || s.PID != before.PID || s.LastReload.Verdict != client.RolledBack {
			t.Fatalf("%s: %+v, %v; want the old one to serve, and to say so", place, s, err)
		}
	}
	if o, err := p.Upgrade(client.ReloadRequest{Binary: b.New, WaitProbation: true}); err != nil || o.Verdict != client.Reloaded || o.Probation != "" {
		t.Errorf("the next reload = %+v, %v", o, err)
	}
}

// TestAReloadFollowsALink: the program is started through a symbolic link, which
// then points to another release.
func TestAReloadFollowsALink(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.Check(os.RemoveAll(p.Path("bin")))
	for name, build := range map[string]string{"1": b.Old, "2": b.New} {
		p.Check(os.MkdirAll(p.Path("releases/"+name), 0o755))
		p.Check(os.Link(build, p.Path("releases/"+name+"/orchestrator")))
	}
	p.Check(os.Symlink("releases/1", p.Path("bin")))
	p.StartWith()
	p.Check(os.Remove(p.Path("bin")))
	p.Check(os.Symlink("releases/2", p.Path("bin")))
	if p.AnswersNew() {
		t.Fatal("the second release serves already")
	}
	if o, err := p.Upgrade(client.ReloadRequest{}); err != nil || o.Verdict != client.Reloaded || !p.AnswersNew() {
		t.Errorf("reload = %+v, %v; want that the second release serves", o, err)
	}
}

// TestChildrenOfACandidateEndWithIt: they might hold a file or a port that the old
// generation takes again.
func TestChildrenOfACandidateEndWithIt(t *testing.T) {
	t.Parallel()
	p, binary, _ := e2etest.Zoo(t)
	before := len(p.Processes())
	for _, how := range []string{"error", "exit"} {
		p.Write("child", how)
		o, err := p.Upgrade(client.ReloadRequest{Binary: binary})
		p.Check(err)
		if o.Verdict != client.Rejected || o.Stage != "initialize" {
			t.Errorf("%s: reload = %v", how, o)
		}
		p.Wait("the child to go", func() bool { return len(p.Processes()) == before })
		if o, err := p.Upgrade(client.ReloadRequest{Binary: binary, WaitProbation: true}); err != nil || o.Verdict != client.Reloaded {
			t.Errorf("%s: the next reload = %v, %v", how, o, err)
		}
		p.Wait("the old generation to go", func() bool { return len(p.Processes()) == before })
	}
}

// TestARefusedReloadLeavesNothing: neither a socket that the candidate opened nor
// what its modules prepared.
func TestARefusedReloadLeavesNothing(t *testing.T) {
	t.Parallel()
	p, binary, address := e2etest.Zoo(t)
	before, err := p.Peek()
	p.Check(err)
	clean := func(why string) {
		t.Helper()
		left, _ := filepath.Glob(p.Path("prepared.*"))
		if _, err := os.Stat(p.Path("fresh.sock")); err == nil || len(left) != 1 {
			t.Errorf("%s: fresh.sock: %v, prepared: %q; want no socket, and the one of the serving generation", why, err, left)
		}
	}
	p.Edit("config/main.yaml", "  - name: zoo\n", "  - name: zoo\n    listen: unix://fresh.sock\n")
	p.Write("unprepared", "")
	o, err := p.Upgrade(client.ReloadRequest{Binary: binary})
	p.Rejected(o, err, "unprepared", before)
	clean("Prepare failed")
	p.Check(os.Remove(p.Path("unprepared")))

	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/zoo/slow?ms=60000&mark=1", nil)
		if err == nil {
			_, err = http.DefaultClient.Do(req)
		}
		done <- err
	}()
	p.Wait("the request to be handled", func() bool { _, err := os.Stat(p.Path("slow")); return err == nil })
	o, err = p.Upgrade(client.ReloadRequest{Binary: binary})
	p.Rejected(o, err, "GET /zoo/slow", before)
	clean("requests were in the way")
	cancel()
	<-done
}
