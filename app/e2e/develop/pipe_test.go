//go:build unix

package develop_test

import (
	"os"
	"syscall"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestAPipeAmongTheSources: whoever opens it waits for ever. The program answers, a
// save without it is live, and it stops.
func TestAPipeAmongTheSources(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.StartServing()
	p.Check(syscall.Mkfifo(p.Path("modules/hello/pipe.go"), 0o644))
	time.Sleep(300 * time.Millisecond) // the supervisor looks at it
	if s, err := p.Peek(); err != nil || s.State != client.Serving {
		t.Fatalf("status = %+v, %v", s, err)
	}
	p.Check(os.Remove(p.Path("modules/hello/pipe.go")))
	p.Edit("modules/hello/hello.go", "Hello, world", "Hello, moon")
	p.Wait("the save to serve", func() bool { return p.Get("/hello/") == "Hello, moon" })
	p.Check(syscall.Mkfifo(p.Path("modules/hello/pipe.go"), 0o644))
	p.Edit("modules/hello/hello.go", "Hello, moon", "Hello, mars")
	time.Sleep(300 * time.Millisecond) // a build begins, and waits for the pipe
	if s, err := p.Peek(); err != nil || s.State != client.Serving {
		t.Fatalf("status = %+v, %v", s, err)
	}
	p.Check(p.Cmd.Process.Signal(syscall.SIGTERM))
	if code := p.Ended(); code != 0 {
		t.Errorf("run ended with %d, want 0", code)
	}
}

// TestASaveMakesTheRunDirAgain: somebody cleans the folder, as git clean does.
func TestASaveMakesTheRunDirAgain(t *testing.T) {
	t.Parallel()
	p := e2etest.New(t)
	p.Edit("config/main.yaml", "path: .orchestrator/kv.db", "path: kv.db")
	p.StartServing()
	url := p.URL("/hello/")
	p.Check(os.RemoveAll(p.Path(".orchestrator")))
	p.Edit("modules/hello/hello.go", "Hello, world", "Hello, moon")
	p.Wait("the save to serve", func() bool {
		_, got, err := e2etest.Do("GET", url, "")
		return err == nil && got == "Hello, moon"
	})
	if s := p.Idle(); s.LastReload == nil || s.LastReload.Verdict != client.Reloaded {
		t.Errorf("last reload = %+v", s.LastReload)
	}
}
