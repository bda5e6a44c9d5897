//go:build unix

package failures_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// buildJumping builds the program with a package time in which the wall clock
// jumps every 30 ms, hours and months ahead and back, as it does when a machine
// wakes up or finds its time server. The monotonic clock is left alone.
func buildJumping(p *e2etest.Project, out string) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	p.Check(err)
	source := filepath.Join(strings.TrimSpace(string(root)), "src/time/time.go")
	text, err := os.ReadFile(source)
	p.Check(err)
	const read = "sec, nsec, mono := runtimeNow()\n"
	edited := strings.Replace(string(text), read, read+"\tsec += [...]int64{0, 3 * 3600, -7 * 3600, 90 * 86400, -40 * 86400}[mono/30e6%5]\n", 1)
	if edited == string(text) {
		p.T.Fatalf("package time reads the clock in another way now")
	}
	p.Write("jump/time.go", edited)
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{source: p.Path("jump/time.go")}})
	p.Check(err)
	p.Write("jump/overlay.json", string(overlay))
	c := exec.Command("go", "build", "-buildvcs=false", "-tags=failpoints", "-overlay", p.Path("jump/overlay.json"), "-o", out, "./cmd/orchestrator")
	c.Dir, c.Env = e2etest.Repository(), e2etest.Environ
	if msg, err := c.CombinedOutput(); err != nil {
		p.T.Fatalf("build: %v\n%s", err, msg)
	}
}

// TestAClockThatJumps: reloads, failures, deadlines and a restart after a crash
// all work while the wall clock jumps.
func TestAClockThatJumps(t *testing.T) {
	t.Parallel()
	p, _ := e2etest.Light(t)
	binary := p.Path("bin/orchestrator")
	p.Check(os.Remove(binary))
	buildJumping(p, binary)
	p.Edit("config/main.yaml", "hook_timeout: 15s", "hook_timeout: 2s")
	place := p.Path("failpoint")
	p.StartWith("ORCHESTRATOR_FAILPOINT=" + place)
	s, err := p.Peek()
	p.Check(err)
	l := e2etest.StartLoad(s.Listen[0])
	for range 10 {
		p.Reloads(binary)
	}
	for _, setback := range []string{"candidate.at.initialized exit1", "candidate.at.prepared hang"} {
		p.Write("failpoint", setback)
		began := time.Now()
		o, err := p.Upgrade(client.ReloadRequest{Binary: binary, TimeoutMS: 60_000})
		if err != nil || o.Verdict != client.Rejected {
			t.Fatalf("%s: reload = %+v, %v; want rejected", setback, o, err)
		}
		if took := time.Since(began); strings.Contains(setback, "hang") && took < 2*time.Second {
			t.Errorf("%s was given up after %v, before its deadline", setback, took)
		}
		p.Reloads(binary)
	}
	l.End()
	if n := l.Failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed: %v", n, l.Sent.Load(), l.Why.Load())
	}
	have, err := e2etest.Count(s.Listen[0])
	if err != nil || have != l.Old.Load() {
		t.Errorf("the counter is %d, %v; answered %d", have, err, l.Old.Load())
	}
	crashed, err := p.Peek()
	p.Check(err)
	p.Check(syscall.Kill(crashed.PID, syscall.SIGKILL))
	servesAfter(p, crashed.PID)
	events, _, _ := p.Command("events", "--json")
	var last time.Time
	back := 0
	for _, line := range strings.Split(strings.TrimSpace(events), "\n") {
		var e client.Event
		p.Check(json.Unmarshal([]byte(line), &e))
		if e.Time.Before(last) {
			back++
		}
		last = e.Time
	}
	if back == 0 {
		t.Errorf("the clock has not jumped, so this shows nothing:\n%s", events)
	}
}
