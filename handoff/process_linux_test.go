package handoff

import (
	"os/exec"
	"testing"
	"time"
)

// TestOnlyTheCandidateIsFound among the children: processes that a module has
// started share a part of its environment.
func TestOnlyTheCandidateIsFound(t *testing.T) {
	start := func(env ...string) int {
		c := exec.Command("sleep", "60")
		c.Env = env
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Process.Kill(); c.Wait() })
		return c.Process.Pid
	}
	start(envSocket + "=/run/a.sock")
	if pid := findChild(envSocket+"=/run/a.sock", envSentinel+"="); pid != 0 {
		t.Errorf("found %d, which no candidate is", pid)
	}
	candidate := start(envSocket+"=/run/a.sock", envSentinel+"=yes")
	pid := 0
	for end := time.Now().Add(10 * time.Second); pid == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		pid = findChild(envSocket+"=/run/a.sock", envSentinel+"=")
	}
	if pid != candidate {
		t.Errorf("found %d, want %d", pid, candidate)
	}
}
