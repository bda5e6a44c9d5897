//go:build unix

package failures_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// verdict is what must hold after a crash, as docs/GUARANTEES.md promises.
type verdict string

const (
	untouched  verdict = "old serves, untouched"   // no request fails, no state is lost
	rolledBack verdict = "old serves, reverted"    // reverted to the commit at worst, and the outcome says so
	returned   verdict = "old serves, all state"   // what the new generation did is kept, and the outcome says so
	completes  verdict = "new serves, all state"   // only requests that the old generation held fail
	goesOn     verdict = "new serves, failing"     // there is no old one to go back to, and the outcome says so
	restarts   verdict = "restarted, state lost"   // and the crash is reported
	stops      verdict = "all stop, run starts it" // the supervisor died
	ends       verdict = "the program ends"        // it was ordered to stop
)

// crash is one case. side, when and what name a failpoint.
type crash struct {
	side, when, what, action string
	want                     verdict
	failing                  string // the hook in which the candidate fails; "" for none
}

func (c crash) String() string {
	name := fmt.Sprintf("%s.%s.%s %s", c.side, c.when, c.what, c.action)
	if c.failing != "" {
		name += ", failing " + c.failing
	}
	return name
}

// waits reports whether the case waits for a deadline. Meanwhile it leaves the
// machine to other cases.
func (c crash) waits() bool { return c.action == "hang" || c.action == "stop" }

// keeps reports whether a connection that was open before is served afterwards:
// no process died while it had the connection.
func (c crash) keeps() bool {
	moved := slices.Contains([]string{"after end", "before ask", "after ask", "before final", "after final", "before ready", "after ready", "at probation", "at ready"}, c.when+" "+c.what)
	return c.want == untouched || c.want == completes && moved
}

// crashes returns the whole matrix. The steps of each side are in order.
func crashes() (all []crash) {
	failing := ""
	add := func(side, when, what string, want verdict, actions ...string) {
		for _, action := range actions {
			all = append(all, crash{side, when, what, action, want, failing})
		}
	}
	dies := []string{"exit0", "exit1", "kill", "hang"}
	withGarbage := append(slices.Clone(dies), "garbage")

	// The candidate, before the commit: nothing happened.
	for _, m := range []string{"hello", "progress", "prepared", "healthy"} {
		add("candidate", "before", m, untouched, withGarbage...)
	}
	for _, m := range []string{"hello", "prepared"} {
		add("candidate", "after", m, untouched, dies...)
	}
	for _, at := range []string{"restored", "initialized"} {
		add("candidate", "at", at, untouched, dies...)
	}
	// After its last message before the commit, it may die before or after the
	// commit.
	add("candidate", "after", "healthy", rolledBack, dies...)
	add("candidate", "at", "resumed", rolledBack, dies...)
	for _, m := range []string{"accepting", "conns", "well"} {
		add("candidate", "before", m, rolledBack, withGarbage...)
		add("candidate", "after", m, rolledBack, dies...)
	}
	add("candidate", "at", "reported", rolledBack, dies...)
	add("candidate", "at", "proved", rolledBack, dies...)

	// The old generation, before it has passed on its states: they are lost.
	for _, at := range []string{"start", "prepare", "hold", "shutdown", "export", "restore"} {
		add("old", "at", at, restarts, dies...)
	}
	add("old", "before", "welcome", restarts, dies...)
	add("old", "after", "welcome", restarts, dies...)
	add("old", "before", "states", restarts, dies...)
	// It can send garbage without harm to itself.
	add("old", "before", "welcome", untouched, "garbage")
	add("old", "before", "states", untouched, "garbage")
	// Afterwards the candidate has everything.
	add("old", "after", "states", completes, dies...)
	for _, at := range []string{"commit", "probation", "ready"} {
		add("old", "at", at, completes, dies...)
	}
	for _, m := range []string{"commit", "conns", "end", "ask", "final", "ready"} {
		add("old", "before", m, completes, dies...)
		add("old", "after", m, completes, dies...)
	}
	// An old generation that sends garbage after the commit takes back what it
	// gave, once the candidate has closed the link.
	for _, m := range []string{"commit", "conns", "end", "ask", "final"} {
		add("old", "before", m, rolledBack, "garbage")
	}
	add("old", "before", "ready", completes, "garbage")

	// A candidate that fails by itself can die as well.
	failing = "Initialize"
	add("candidate", "before", "failed", untouched, withGarbage...)
	add("candidate", "after", "failed", untouched, dies...)
	add("old", "at", "rollback", restarts, dies...)
	add("supervisor", "on", "report", stops, dies...)
	add("supervisor", "before", "failure", stops, dies...)
	add("supervisor", "after", "failure", stops, dies...)
	add("old", "at", "rollback", ends, "term")

	// A candidate that is unhealthy after the commit hands everything back. If
	// it does not finish, the states are reverted. The old generation may die
	// during that too.
	failing = "Healthy"
	add("candidate", "before", "unwell", rolledBack, withGarbage...)
	add("candidate", "after", "unwell", rolledBack, dies...)
	add("candidate", "before", "returned", rolledBack, withGarbage...)
	add("candidate", "after", "returned", returned, dies...)
	add("candidate", "before", "unwell", ends, "term")
	add("candidate", "before", "returned", ends, "term")
	for _, at := range []string{"return", "rollback"} {
		add("old", "at", at, goesOn, dies...)
		add("old", "at", at, ends, "term")
	}
	add("old", "before", "parked", goesOn, dies...)
	add("old", "after", "parked", goesOn, dies...)
	add("old", "before", "parked", rolledBack, "garbage")
	add("old", "before", "taken", goesOn, dies...)
	add("old", "after", "taken", goesOn, dies...)
	add("old", "before", "taken", returned, "garbage")
	failing = ""

	// A process that is stopped hangs in all its goroutines.
	add("candidate", "at", "prepared", untouched, "stop")
	add("candidate", "at", "initialized", untouched, "stop")
	add("candidate", "at", "reported", rolledBack, "stop")
	add("old", "at", "restore", restarts, "stop")
	add("old", "after", "commit", completes, "stop")

	// The supervisor.
	for _, m := range []string{"upgrade", "known"} {
		add("supervisor", "before", m, stops, dies...)
		add("supervisor", "after", m, stops, dies...)
	}
	for _, on := range []string{"stage", "event", "serving", "final"} {
		add("supervisor", "on", on, stops, dies...)
	}

	// SIGTERM at each step ends the program, whichever generation serves.
	for _, place := range []string{
		"old.at.start", "old.at.prepare", "old.at.hold", "old.at.shutdown", "old.at.export", "old.at.restore", "old.at.commit", "old.at.probation", "old.at.ready",
		"candidate.before.hello", "candidate.at.prepared", "candidate.at.restored", "candidate.at.initialized", "candidate.at.resumed", "candidate.at.reported", "candidate.at.proved",
	} {
		part := strings.Split(place, ".")
		add(part[0], part[1], part[2], ends, "term", "termall")
	}
	return all
}

// caseReporter is a Reporter that ends one case, not the whole test.
type caseReporter struct{ failure string }

func (r *caseReporter) Fatalf(format string, args ...any) {
	r.failure = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// onceFailed has the cases that have found a fault. They are run every time.
var onceFailed = []string{
	"candidate.before.conns exit1", // read from a connection before it had acknowledged the connection
	"candidate.after.healthy kill", // died between its last message and the commit
	"old.at.prepare hang",          // the stage it hung in was forgotten with it
	"old.at.rollback hang",         // likewise
	"old.before.end garbage",       // two generations served
}

// sample returns a tenth of all cases, chosen at random or by CRASH_SEED, and
// those of onceFailed. With CRASH=all it returns all cases; with CRASH_ONLY those
// with this in their name, CRASH_TIMES times.
func sample(t *testing.T, all []crash) []crash {
	if only := os.Getenv("CRASH_ONLY"); only != "" {
		var names []string
		for _, c := range all {
			names = append(names, c.String())
		}
		some := slices.DeleteFunc(all, func(c crash) bool { return !strings.Contains(c.String(), only) })
		if len(some) == 0 {
			t.Fatalf("no case has %q in it; there are:\n%s", only, strings.Join(names, "\n"))
		}
		times, _ := strconv.Atoi(os.Getenv("CRASH_TIMES"))
		return slices.Repeat(some, max(times, 1))
	}
	if os.Getenv("CRASH") == "all" {
		return all
	}
	seed := rand.Uint64()
	if given, err := strconv.ParseUint(os.Getenv("CRASH_SEED"), 10, 64); err == nil {
		seed = given
	}
	t.Logf("CRASH_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	some := slices.DeleteFunc(slices.Clone(all), func(c crash) bool {
		return r.IntN(10) > 0 && !slices.ContainsFunc(onceFailed, func(name string) bool { return strings.HasPrefix(c.String(), name) })
	})
	for _, name := range onceFailed {
		if !slices.ContainsFunc(some, func(c crash) bool { return strings.HasPrefix(c.String(), name) }) {
			t.Errorf("the matrix has no case %s", name)
		}
	}
	return some
}

// TestCrashMatrix makes steps of an upgrade fail in every way, on every side: see
// sample. With CRASH_TABLE it prints the matrix.
func TestCrashMatrix(t *testing.T) {
	t.Parallel()
	if _, err := e2etest.PairOfBuilds(); err != nil {
		t.Fatal(err)
	}
	all := sample(t, crashes())
	// Cases that wait for a deadline go first, in parallel.
	slices.SortStableFunc(all, func(a, b crash) int {
		hangs := func(c crash) int {
			if c.waits() {
				return 0
			}
			return 1
		}
		return hangs(a) - hangs(b)
	})
	type result struct {
		failure string
		took    time.Duration
	}
	results := make([]result, len(all))
	var wait sync.WaitGroup
	slots := make(chan struct{}, 6*runtime.NumCPU())
	var turn sync.Mutex // a case that needs several slots takes them together
	for i, c := range all {
		wait.Go(func() {
			weight := 1
			if !c.waits() {
				weight = 3
			}
			turn.Lock()
			for range weight {
				slots <- struct{}{}
			}
			turn.Unlock()
			began := time.Now()
			failure := c.run()
			results[i] = result{failure, time.Since(began)}
			for range weight {
				<-slots
			}
		})
	}
	wait.Wait()
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "case\tafter it\tholds\tms")
	for i, c := range all {
		holds := "yes"
		if f := results[i].failure; f != "" {
			holds = "NO"
			t.Errorf("%v: %s", c, f)
		}
		fmt.Fprintf(w, "%v\t%s\t%s\t%d\n", c, c.want, holds, results[i].took.Milliseconds())
	}
	w.Flush()
	if os.Getenv("CRASH_TABLE") != "" {
		fmt.Printf("%s%d cases\n", table.String(), len(all))
	}
}

// run runs one case. It returns what did not hold.
func (c crash) run() (failure string) {
	r := &caseReporter{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		dir, err := os.MkdirTemp("", "orch-crash")
		if err != nil {
			r.Fatalf("%v", err)
		}
		p, b := e2etest.MakeLight(r, dir)
		defer os.RemoveAll(dir)
		defer func() {
			if r.failure != "" {
				r.failure += "\nthe program printed:\n" + p.Printed()
			}
		}()
		defer p.CleanUp()
		c.happen(p, b)
	}()
	<-done
	return r.failure
}

func (c crash) happen(p *e2etest.Project, b e2etest.Pair) {
	place := p.Path("failpoint")
	if c.waits() { // for this deadline
		p.Edit("config/main.yaml", "hook_timeout: 15s", "hook_timeout: 2s")
	}
	p.StartWith("ORCHESTRATOR_FAILPOINT=" + place)
	// A first good reload: the normal figures are measured after it.
	if o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old, WaitProbation: true}); err != nil || o.Probation != client.ProbationPassed {
		p.T.Fatalf("the first reload: %+v, %v", o, err)
	}
	p.Wait("the first generation to go", func() bool { return len(p.Processes()) == 2 })
	before, err := p.Peek()
	p.Check(err)
	address := before.Listen[0]
	fds := map[int]int{before.PID: e2etest.Open(before.PID), before.SupervisorPID: e2etest.Open(before.SupervisorPID)}
	idle, err := net.Dial("tcp", address) // a connection to move
	p.Check(err)
	defer idle.Close()
	in := bufio.NewReader(idle)
	p.Check(e2etest.PostOn(idle, in))

	l := e2etest.StartLoad(address)
	l.Old.Add(1)
	p.Wait("some requests", func() bool { return l.Old.Load() > 5 })
	action := c.action
	if action == "term" || action == "termall" {
		action = fmt.Sprintf("%s=%d", action, before.SupervisorPID)
	}
	p.Write("failpoint.new", fmt.Sprintf("%s.%s.%s %s", c.side, c.when, c.what, action))
	p.Check(os.Rename(p.Path("failpoint.new"), place))
	if c.failing != "" {
		p.Write("failing", c.failing)
	}
	o, reloadErr := reloadOrHang(p, c, b, l)
	p.Wait("the failpoint to be reached", func() bool {
		_, err := os.Stat(place)
		return err != nil
	})

	if c.want == stops || c.want == ends {
		c.checkEnd(p, l)
		return
	}
	if reloadErr != nil {
		p.T.Fatalf("reload: %v", reloadErr)
	}
	var after *client.Status
	p.WaitFor(2*e2etest.Patience, "one generation to serve", func() bool {
		after, err = p.Peek()
		return err == nil && after.State == "serving" && len(p.Processes()) == 2 && (after.LastReload == nil || after.LastReload.Probation != client.ProbationPending)
	})
	mark := l.Old.Load() + l.New.Load()
	p.Wait("requests to be answered", func() bool { return l.Old.Load()+l.New.Load() > mark+3 })
	l.End()
	if c.keeps() {
		if err := e2etest.PostOn(idle, in); err != nil {
			p.T.Fatalf("the connection that was open before: %v", err)
		}
		l.Old.Add(1)
	}
	// One request is sent at a time: the process that dies may have one or two.
	if failed := l.Failed.Load(); failed > 3 && c.want != restarts {
		p.T.Fatalf("%d requests failed (%v)", failed, l.Why.Load())
	}
	c.checkOutcome(p, o, before, after)
	c.checkState(p, l, address, after)

	// The next reload works, and leaves nothing more than a good one does.
	was, err := e2etest.Count(after.Listen[0])
	p.Check(err)
	next, err := p.Upgrade(client.ReloadRequest{Binary: b.Old, WaitProbation: true})
	if err != nil || next.Verdict != client.Reloaded || next.Probation != client.ProbationPassed {
		p.T.Fatalf("the next reload: %+v, %v", next, err)
	}
	if is, err := e2etest.Count(after.Listen[0]); err != nil || is != was {
		p.T.Fatalf("after the next reload the counter is %d, %v; want %d", is, err, was)
	}
	idle.Close()
	var pids []int
	p.Wait("the processes to be as before", func() bool { pids = p.Processes(); return len(pids) == 2 && e2etest.Zombies(p) == 0 })
	last, err := p.Peek()
	p.Check(err)
	p.Wait("the descriptors to be as before", func() bool {
		p.Peek() // makes the worker collect garbage
		return e2etest.Open(last.PID) <= fds[before.PID] && e2etest.Open(last.SupervisorPID) <= fds[before.SupervisorPID]
	})
}

// reloadOrHang reloads to the second of the pair. If the case makes the supervisor
// hang, it does not wait for the answer: it checks that the workers go on
// serving, and kills the supervisor.
func reloadOrHang(p *e2etest.Project, c crash, b e2etest.Pair, l *e2etest.Load) (*client.Outcome, error) {
	if c.side != "supervisor" || c.action != "hang" {
		return p.Upgrade(client.ReloadRequest{Binary: b.New, TimeoutMS: 30_000})
	}
	go p.Upgrade(client.ReloadRequest{Binary: b.New})
	p.Wait("the supervisor to hang", func() bool {
		_, err := os.Stat(p.Path("failpoint"))
		return err != nil
	})
	mark := l.Old.Load() + l.New.Load()
	p.Wait("requests to be answered without it", func() bool { return l.Old.Load()+l.New.Load() > mark+3 })
	p.Check(p.Cmd.Process.Kill())
	return nil, nil
}

// checkEnd checks cases after which no process is left.
func (c crash) checkEnd(p *e2etest.Project, l *e2etest.Load) {
	code := p.Ended()
	if c.want == ends && code != 0 {
		p.T.Fatalf("run ended with %d after SIGTERM, want 0", code)
	}
	p.Wait("every process to end", func() bool { return len(p.Processes()) == 0 })
	l.End()
	p.Check(os.RemoveAll(p.Path("failing")))
	p.StartWith()
	if o, err := p.Upgrade(client.ReloadRequest{Binary: p.Path("bin/orchestrator"), WaitProbation: true}); err != nil || o.Verdict != client.Reloaded {
		p.T.Fatalf("the next reload: %+v, %v", o, err)
	}
	p.Check(p.Cmd.Process.Signal(syscall.SIGTERM))
	if code := p.Ended(); code != 0 {
		p.T.Fatalf("run ended with %d", code)
	}
}

// checkOutcome checks that the outcome is not a false success.
func (c crash) checkOutcome(p *e2etest.Project, o *client.Outcome, before, after *client.Status) {
	last := after.LastReload.Verdict
	fail := func(want string) {
		p.T.Fatalf("the reload answered %+v, status has %+v, last crash %+v, generation %d after %d; want %s", *o, *after.LastReload, after.LastCrash, after.Generation, before.Generation, want)
	}
	switch c.want {
	case untouched:
		if after.PID != before.PID || o.Verdict != client.Rejected || last != client.Rejected || len(o.Lost) > 0 {
			fail("rejected by the old process")
		}
	case rolledBack:
		// A candidate that died before it was told to serve is only rejected;
		// one that had reported that it serves is rolled back.
		early := c.side == "candidate" && c.when == "after" && c.what == "healthy"
		answered := o.Verdict == client.RolledBack || o.Verdict == client.Reloaded && o.Probation == client.ProbationPending || early && o.Verdict == client.Rejected
		reverted := last == client.RolledBack && slices.Contains(after.LastReload.Reverted, "counter")
		if after.PID != before.PID || !answered || !reverted && !(early && last == client.Rejected) {
			fail("rolled back by the old process, which says what is reverted")
		}
	case returned:
		answered := o.Verdict == client.RolledBack || o.Verdict == client.Reloaded && o.Probation == client.ProbationPending
		if after.PID != before.PID || !answered || last != client.RolledBack || len(after.LastReload.Reverted) > 0 {
			fail("rolled back by the old process, nothing reverted")
		}
	case goesOn:
		if after.Generation != before.Generation+1 || o.Verdict != client.Reloaded || last != client.Reloaded || after.LastReload.Probation != client.ProbationFailed || after.LastCrash != nil {
			fail("the new process to serve, and to say that it has failed its probation")
		}
	case completes:
		if after.Generation != before.Generation+1 || o.Verdict != client.Reloaded || last != client.Reloaded || after.LastCrash != nil {
			fail("the new process to serve")
		}
	case restarts:
		if after.Generation <= before.Generation || o.Verdict != client.Failed || last != client.Failed || after.LastCrash == nil ||
			!slices.Contains(after.LastCrash.Lost, "counter") || after.LastCrash.Serving != after.Generation {
			fail("a restart that says what is lost")
		}
		// After a sudden death the supervisor names the last announced stage.
		steps := []string{"start", "prepare", "hold", "shutdown", "export", "restore", "rollback"}
		if at := slices.Index(steps, string(o.Stage)); at < 0 || c.when == "at" && at > slices.Index(steps, c.what) || c.when == "at" && c.action == "hang" && string(o.Stage) != c.what {
			fail("the stage in which it died")
		}
	}
}

// checkState compares the counter with the answers. Failed requests may or may
// not have been counted.
func (c crash) checkState(p *e2etest.Project, l *e2etest.Load, address string, after *client.Status) {
	if after.Listen[0] != address && c.want != restarts {
		p.T.Fatalf("it listens on %s, want %s", after.Listen[0], address)
	}
	have, err := e2etest.Count(after.Listen[0])
	p.Check(err)
	answered, failed := l.Old.Load()+l.New.Load(), l.Failed.Load()
	switch c.want {
	case untouched:
		if have != answered || failed > 0 || l.New.Load() > 0 {
			p.T.Fatalf("the counter is %d, answered %d (%d by the candidate), failed %d (%v); want all answered and counted by the old one", have, answered, l.New.Load(), failed, l.Why.Load())
		}
	case rolledBack:
		if have < l.Old.Load() || have > l.Old.Load()+failed {
			p.T.Fatalf("the counter is %d, the old generation answered %d, the new one %d, failed %d (%v); want nothing lost but what the new one answered", have, l.Old.Load(), l.New.Load(), failed, l.Why.Load())
		}
	case goesOn: // and answers of the old one while it took over again
		if have < l.Newest.Load() || have > answered+failed {
			p.T.Fatalf("the counter is %d, the new generation had come to %d; answered %d, failed %d (%v)", have, l.Newest.Load(), answered, failed, l.Why.Load())
		}
	case completes, returned:
		if have < answered || have > answered+failed {
			p.T.Fatalf("the counter is %d, answered %d, failed %d (%v); want all that was answered", have, answered, failed, l.Why.Load())
		}
	}
}
