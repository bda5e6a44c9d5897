package cmd_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"orchestrator/app/control"
)

// buildJumping builds the program with a package time whose wall clock jumps
// every 30 ms: hours and months ahead and back, as it does when a machine wakes
// up or finds its time server. The monotonic clock is left alone.
func buildJumping(p *project, out string) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	p.check(err)
	source := filepath.Join(strings.TrimSpace(string(root)), "src/time/time.go")
	text, err := os.ReadFile(source)
	p.check(err)
	const read = "sec, nsec, mono := runtimeNow()\n"
	edited := strings.Replace(string(text), read, read+"\tsec += [...]int64{0, 3 * 3600, -7 * 3600, 90 * 86400, -40 * 86400}[mono/30e6%5]\n", 1)
	if edited == string(text) {
		p.t.Fatalf("package time reads the clock in another way now")
	}
	p.write("jump/time.go", edited)
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{source: p.path("jump/time.go")}})
	p.check(err)
	p.write("jump/overlay.json", string(overlay))
	c := exec.Command("go", "build", "-buildvcs=false", "-tags=failpoints", "-overlay", p.path("jump/overlay.json"), "-o", out, "./cmd/orchestrator")
	c.Dir, c.Env = "..", environ
	if msg, err := c.CombinedOutput(); err != nil {
		p.t.Fatalf("build: %v\n%s", err, msg)
	}
}

// TestAClockThatJumps reloads, fails, waits for deadlines and restarts after a
// crash, all while the wall clock goes wild: as if it did not.
func TestAClockThatJumps(t *testing.T) {
	t.Parallel()
	p, _ := lightTest(t)
	binary := p.path("bin/orchestrator")
	p.check(os.Remove(binary))
	buildJumping(p, binary)
	p.edit("config/main.yaml", "hook_timeout: 15s", "hook_timeout: 2s")
	place := p.path("failpoint")
	p.startWith("ORCHESTRATOR_FAILPOINT=" + place)
	s, err := p.peek()
	p.check(err)
	l := startLoad(s.Listen[0])
	for range 10 {
		p.reloads(binary)
	}
	for _, setback := range []string{"candidate.at.initialized exit1", "candidate.at.prepared hang"} {
		p.write("failpoint", setback)
		began := time.Now()
		o, err := p.upgrade(control.ReloadRequest{Binary: binary, TimeoutMS: 60_000})
		if err != nil || o.Outcome != control.Rejected {
			t.Fatalf("%s: reload = %+v, %v; want rejected", setback, o, err)
		}
		if took := time.Since(began); strings.Contains(setback, "hang") && took < 2*time.Second {
			t.Errorf("%s was given up after %v, before its deadline", setback, took)
		}
		p.reloads(binary)
	}
	l.end()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed: %v", n, l.sent.Load(), l.why.Load())
	}
	have, err := count(s.Listen[0])
	if err != nil || have != l.old.Load() {
		t.Errorf("the counter is %d, %v; answered %d", have, err, l.old.Load())
	}
	crashed, err := p.peek()
	p.check(err)
	p.check(syscall.Kill(crashed.PID, syscall.SIGKILL))
	p.servesAfter(crashed.PID)
	events, _, _ := p.command("events", "--json")
	var last time.Time
	back := 0
	for _, line := range strings.Split(strings.TrimSpace(events), "\n") {
		var e control.Event
		p.check(json.Unmarshal([]byte(line), &e))
		if e.Time.Before(last) {
			back++
		}
		last = e.Time
	}
	if back == 0 {
		t.Errorf("the clock has not jumped, so this shows nothing:\n%s", events)
	}
}
