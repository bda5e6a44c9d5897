//go:build unix

package develop_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// provoke sends what is never answered, on a connection that stays open.
func provoke(t *testing.T, address, text string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := fmt.Fprint(c, text); err != nil {
		t.Fatal(err)
	}
}

// TestTheFixCanAlwaysBeLoaded: whatever hangs, the next save is live within 3 s and
// says what it has cost, and nothing else is lost.
func TestTheFixCanAlwaysBeLoaded(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.AddModule("rude")
	p.Edit("config/main.yaml", "  - name: kv\n", "  - name: rude\n    listen: unix://rude.sock\n  - name: kv\n")
	p.Edit("config/main.yaml", "hook_timeout: 3s", "hook_timeout: 1s")
	p.StartServing()
	address := p.Status().Listen[0]
	counted := uint64(0)
	saves := 0
	// save returns how long it took from a save to the new code, and the outcome.
	save := func() (time.Duration, *client.Outcome) {
		t.Helper()
		saves++
		n, _, err := e2etest.Increment(address)
		p.Check(err)
		if counted++; uint64(n) != counted {
			t.Fatalf("before save %d the counter is %d, want %d", saves, n, counted)
		}
		began := time.Now()
		want := fmt.Sprintf("Hello, %d", saves)
		p.Write("modules/hello/hello.go", e2etest.Says(p, want))
		p.Wait("the save to serve", func() bool {
			_, got, err := e2etest.Do("GET", "http://"+address+"/hello/", "")
			return err == nil && got == want
		})
		took := time.Since(began)
		return took, p.Idle().LastReload
	}
	control, _ := save()
	limit := max(3*time.Second, 3*control) // the machine is shared
	get := func(path string) func() {
		return func() { provoke(t, address, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n") }
	}
	for _, unkind := range []struct {
		name    string
		provoke func()
		told    string // in the outcome
		lost    bool   // the state of rude may be
	}{
		{"a stalled upload", func() {
			provoke(t, address, "PUT /rude/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
		}, `cut: ["PUT /rude/upload"]`, false},
		{"a body that nobody reads", func() {
			provoke(t, address, "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
		}, `cut: ["the end of POST /nowhere"]`, false},
		{"a reader that never reads", get("/rude/big"), `cut: ["GET /rude/big"]`, false},
		{"a handler in select {}", get("/rude/select"), `left behind in generation`, true},
		{"a handler in for {}", get("/rude/spin"), `left behind in generation`, true},
		{"a HandleConn that ignores ErrMoving", func() {
			c, err := net.Dial("unix", p.Path("rude.sock"))
			p.Check(err)
			t.Cleanup(func() { c.Close() })
			fmt.Fprintln(c, "line")
			line, err := bufio.NewReader(c).ReadString('\n')
			if err != nil || line != "line\n" {
				t.Fatalf("answered %q, %v", line, err)
			}
		}, `left behind in generation`, true},
		{"a Run that ignores its context", func() {
			p.Write("run-ignores", "")
			save()
			p.Wait("Run to begin", func() bool { _, err := os.Stat(p.Path("run-began")); return err == nil })
			p.Check(os.Remove(p.Path("run-ignores")))
		}, `"Run" of module rude`, true},
		{"a Shutdown that hangs", func() { p.Write("shutdown-hangs", "") }, `"Shutdown" of module rude`, true},
	} {
		unkind.provoke()
		took, o := save()
		text := o.String()
		if took > limit || o.Verdict != client.Reloaded || !strings.Contains(text, unkind.told) {
			t.Errorf("%s: after %v (a kind save took %v): %s\nwant it within %v, and %q", unkind.name, took, control, text, limit, unkind.told)
		}
		if len(o.Lost) > 0 && !unkind.lost {
			t.Errorf("%s: the state of %v is lost", unkind.name, o.Lost)
		}
		t.Logf("%s: %v; %s", unkind.name, took, text)
	}
}
