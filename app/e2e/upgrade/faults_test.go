//go:build unix

package upgrade_test

import (
	"strings"
	"sync"
	"syscall"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestReloadsAtOnce asks for many reloads at once: one runs, one waits, and the
// others are answered that they are superseded.
func TestReloadsAtOnce(t *testing.T) {
	t.Parallel()
	p, b, _ := e2etest.Started(t)
	var clients sync.WaitGroup
	outcomes := make([]*client.Outcome, 8)
	for i := range outcomes {
		clients.Go(func() { outcomes[i], _ = p.Upgrade(client.ReloadRequest{Binary: b.Old}) })
	}
	clients.Wait()
	counts := map[client.Verdict]int{}
	highest := 0
	for _, o := range outcomes {
		if o == nil {
			t.Fatal("a reload was not answered")
		}
		counts[o.Verdict]++
		highest = max(highest, o.Generation)
	}
	if counts[client.Reloaded] < 2 || counts[client.Reloaded]+counts[client.Superseded] != len(outcomes) {
		t.Errorf("outcomes %v, want at least two reloaded and the others superseded", counts)
	}
	if s, err := p.Peek(); err != nil || s.Generation != highest {
		t.Errorf("generation %d serves, %v; want %d", s.Generation, err, highest)
	}
	p.NextReloadWorks(b.Old)
}

// TestAStateBeyondItsLimit: the reload is refused, whether the limit is that of
// one module or of all modules together.
func TestAStateBeyondItsLimit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, old, new, want string }{
		{"module", "  - name: counter\n", "  - name: counter\n    max_state: 3B\n", "more than 3 bytes"},
		{"all", "  max_pause", "  max_state: 3B\n  max_pause", "more than 3 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, b := e2etest.Light(t)
			p.Edit("config/main.yaml", c.old, c.new)
			p.StartWith()
			before, err := p.Peek()
			p.Check(err)
			_, _, err = e2etest.Increment(before.Listen[0])
			p.Check(err)
			o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old})
			p.Rejected(o, err, c.want, before)
			if o.FailedModule != "counter" || o.Stage != "export" {
				t.Errorf("stage %q of module %q is blamed, want export of counter", o.Stage, o.FailedModule)
			}
			if n, err := e2etest.Count(before.Listen[0]); err != nil || n != 1 {
				t.Errorf("the counter is %d, %v; want 1", n, err)
			}
			if !strings.Contains(o.Error, "--drop-state=counter") {
				t.Errorf("%q does not say what to do", o.Error)
			}
			o, err = p.Upgrade(client.ReloadRequest{Binary: b.Old, DropState: []string{"counter"}, WaitProbation: true})
			if n, _ := e2etest.Count(before.Listen[0]); err != nil || o.Verdict != client.Reloaded || n != 0 {
				t.Errorf("with --drop-state: %+v, %v, the counter is %d; want reloaded, 0", o, err, n)
			}
			before, err = p.Peek()
			p.Check(err)
			p.Edit("config/main.yaml", c.new, c.old) // a limit applies in the process that has read it
			p.Check(syscall.Kill(before.PID, syscall.SIGKILL))
			p.Wait("another generation to serve", func() bool {
				s, err := p.Peek()
				return err == nil && s.State == "serving" && s.PID != before.PID
			})
			p.NextReloadWorks(b.Old)
		})
	}
}
