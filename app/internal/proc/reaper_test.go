//go:build unix

package proc_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"example.org/orchestrator/app/internal/proc"
)

// A Reaper lives as long as its process.
func TestMain(m *testing.M) {
	const reaper = "example.org/orchestrator/app/internal/proc.(*Reaper)."
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(reaper+"reapAll"), goleak.IgnoreAnyFunction(reaper+"startAll"))
}

var oneReaper = sync.OnceValue(proc.NewReaper)

func shell(script string) proc.Spec {
	return proc.Spec{Path: "/bin/sh", Args: []string{"-c", script}}
}

// TestNoStatusIsLost ends many children at the same time, while somebody asks
// whether any is left.
func TestNoStatusIsLost(t *testing.T) {
	r := oneReaper()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				r.Childless()
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	var children sync.WaitGroup
	for i := range 200 {
		children.Go(func() {
			want := proc.Status{Code: i % 7}
			_, exited, err := r.Start(shell("exit " + strconv.Itoa(want.Code)))
			if err != nil {
				t.Error(err)
				return
			}
			select {
			case status := <-exited:
				if status != want {
					t.Errorf("child %d: %v, want %v", i, status, want)
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
	out, err := r.Run(context.Background(), proc.Command{Args: []string{"sh", "-c", "echo out; echo err >&2"}})
	if err != nil || string(out) != "out\n" {
		t.Errorf("Run = %q, %v", out, err)
	}
	_, err = r.Run(context.Background(), proc.Command{Args: []string{"sh", "-c", "echo why >&2; exit 3"}})
	var exit *proc.ExitError
	if !errors.As(err, &exit) || exit.Status.String() != "exit status 3" || string(exit.Stderr) != "why\n" {
		t.Errorf("Run = %v, want exit status 3 and what it printed", err)
	}
	if _, err := r.Run(context.Background(), proc.Command{Args: []string{"no-such-program"}}); err == nil {
		t.Error("a program that does not exist ran")
	}
	// A cancelled command ends at once, with what it started.
	cause := errors.New("changed my mind")
	ctx, cancel := context.WithCancelCause(context.Background())
	began := time.Now()
	time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
	if _, err := r.Run(ctx, proc.Command{Args: []string{"sh", "-c", "sleep 300 & sleep 300"}}); !errors.Is(err, cause) {
		t.Errorf("Run = %v, want %v", err, cause)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("a cancelled command took %v", took)
	}
}

func TestHowAChildEnded(t *testing.T) {
	r := oneReaper()
	pid, exited, err := r.Start(shell("kill -9 $$"))
	if err != nil {
		t.Fatal(err)
	}
	<-exited
	status, ok := r.Exited(pid)
	if want := (proc.Status{Code: -1, Signal: "killed"}); !ok || status != want {
		t.Errorf("Exited(%d) = %v, %v; want %v", pid, status, ok, want)
	}
}
