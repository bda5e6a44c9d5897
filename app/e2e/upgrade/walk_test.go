//go:build unix

package upgrade_test

import (
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestRandomWalk upgrades a program from one of several builds to another, forwards and
// backwards, with candidates that fail in every way and crashes between: $WALK times, or
// a few. After each step the program is what a model says, and has what it should have.
func TestRandomWalk(t *testing.T) {
	t.Parallel()
	steps := 40
	if n, err := strconv.Atoi(os.Getenv("WALK")); err == nil {
		steps = n
	}
	seed, _ := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	p, _ := e2etest.Light(t)
	plain, err := e2etest.RudeBuild()
	p.Check(err)
	others, err := e2etest.WalkBuilds()
	p.Check(err)
	type build struct {
		name, binary string
		version      int // of the counter's state
	}
	builds := []build{{"plain", plain, 1}, {"early", others.Early, 1}, {"raised", others.Raised, 2}, {"alien", others.Alien, 1}}
	p.Configure("probation: 300ms", "probation: 30ms")
	p.Check(os.Remove(p.Path("bin/orchestrator")))
	p.Check(os.Link(plain, p.Path("bin/orchestrator")))
	p.StartWith("ORCHESTRATOR_FAILPOINT=" + p.Path("failpoint"))
	address := p.Address()

	running, number, value := 0, int64(0), ""
	tried := map[string]int{}
	for step := range steps {
		to := builds[random.IntN(len(builds))]
		request := client.ReloadRequest{Binary: to.binary, WaitProbation: true}
		if random.IntN(6) == 0 {
			request.DropState = []string{"counter"}
		}
		setback := random.IntN(3) == 0
		if setback {
			p.Setback(random.IntN(1000))
		}
		o, err := p.Upgrade(request)
		p.Check(err)
		os.Remove(p.Path("failpoint"))
		dropped := len(request.DropState) > 0
		why := ""
		switch {
		case to.name == "alien":
			why = "restart run"
		case to.version < builds[running].version && !dropped:
			why = "newer than this build's"
		}
		tried[builds[running].name+" to "+to.name]++
		switch {
		case why != "" && !setback && (o.Verdict != client.Rejected || !strings.Contains(o.Error, why) && !strings.Contains(p.Printed(), why)):
			t.Fatalf("step %d: from %s to %s = %v; want it rejected: %s", step, builds[running].name, to.name, o, why)
		case why == "" && !setback && o.Verdict != client.Reloaded:
			t.Fatalf("step %d: from %s to %s = %v; want it reloaded", step, builds[running].name, to.name, o)
		case setback && o.Verdict == client.Reloaded:
			t.Fatalf("step %d: from %s to %s = %v; want that it fails", step, builds[running].name, to.name, o)
		}
		if o.Verdict == client.Reloaded {
			running = slices.Index(builds, to)
			if dropped {
				number = 0
			}
		}
		s, err := p.Peek()
		p.Check(err)
		if s.State != client.Serving {
			t.Fatalf("step %d: %s after %v", step, s.State, o)
		}
		if random.IntN(10) == 0 {
			p.Check(syscall.Kill(s.PID, syscall.SIGKILL))
			p.Wait("a restart", func() bool {
				now, err := p.Peek()
				return err == nil && now.State == client.Serving && now.Generation > s.Generation
			})
			number = 0
		}
		if n, err := e2etest.Count(address); err != nil || n != number {
			t.Fatalf("step %d: the counter is %d, %v; want %d after %v", step, n, err, number, o)
		}
		if _, got, err := e2etest.Do(http.MethodGet, "http://"+address+"/kv/key", ""); err != nil || value != "" && strings.TrimSpace(got) != value {
			t.Fatalf("step %d: kv has %q, %v; want %q after %v", step, got, err, value, o)
		}
		for range random.IntN(3) {
			number++
			if n, _, err := e2etest.Increment(address); err != nil || n != number {
				t.Fatalf("step %d: POST /counter/ = %d, %v; want %d", step, n, err, number)
			}
		}
		value = strconv.Itoa(step)
		_, _, err = e2etest.Do(http.MethodPut, "http://"+address+"/kv/key", value)
		p.Check(err)
	}
	t.Logf("%d steps: %v", steps, tried)
}
