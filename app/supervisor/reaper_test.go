//go:build unix

package supervisor

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"orchestrator/app/build"
)

// A reaper lives as long as its process.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("orchestrator/app/supervisor.(*reaper).run"), goleak.IgnoreAnyFunction("orchestrator/app/supervisor.(*reaper).starter"))
}

var oneReaper = sync.OnceValue(newReaper)

// TestNoStatusIsLost ends many children at the same time.
func TestNoStatusIsLost(t *testing.T) {
	r := oneReaper()
	var children sync.WaitGroup
	for i := range 200 {
		children.Go(func() {
			want := i % 7
			_, done, err := r.spawn("/bin/sh", []string{"-c", "exit " + string(rune('0'+want))}, nil, true)
			if err != nil {
				t.Error(err)
				return
			}
			select {
			case status := <-done:
				if status.ExitStatus() != want {
					t.Errorf("child %d: %s, want exit status %d", i, describe(status), want)
				}
			case <-time.After(20 * time.Second):
				t.Errorf("the status of child %d never came", i)
			}
		})
	}
	children.Wait()
}

func TestCommands(t *testing.T) {
	r := oneReaper()
	out, err := r.command(context.Background(), build.Command{Args: []string{"sh", "-c", "echo out; echo err >&2"}})
	if err != nil || string(out) != "out\n" {
		t.Errorf("command = %q, %v", out, err)
	}
	_, err = r.command(context.Background(), build.Command{Args: []string{"sh", "-c", "echo why >&2; exit 3"}})
	var exit *build.ExitError
	if !errors.As(err, &exit) || exit.Status != "exit status 3" || string(exit.Stderr) != "why\n" {
		t.Errorf("command = %v, want exit status 3 and what it printed", err)
	}
	if _, err := r.command(context.Background(), build.Command{Args: []string{"no-such-program"}}); err == nil {
		t.Error("a program that does not exist ran")
	}
	// A cancelled command ends at once, with what it started.
	cause := errors.New("changed my mind")
	ctx, cancel := context.WithCancelCause(context.Background())
	began := time.Now()
	time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
	if _, err := r.command(ctx, build.Command{Args: []string{"sh", "-c", "sleep 300 & sleep 300"}}); !errors.Is(err, cause) {
		t.Errorf("command = %v, want %v", err, cause)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("a cancelled command took %v", took)
	}
}

func TestHowAChildEnded(t *testing.T) {
	r := oneReaper()
	pid, done, err := r.spawn("/bin/sh", []string{"-c", "kill -9 $$"}, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	<-done
	status, ok := r.status(pid)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL || !strings.Contains(describe(status), "killed") {
		t.Errorf("status = %v, %v; want killed", describe(status), ok)
	}
}
