package proc_test

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/proc"
)

// TestOrphansAreReaped: a process whose parent has exited becomes a child of
// the reaper, which knows how it ended.
func TestOrphansAreReaped(t *testing.T) {
	r := oneReaper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	// The grandchild exits once its parent has, so that it is an orphan by then.
	_, _, err = r.Start(shell(`parent=$$; (while [ -d /proc/$parent ]; do sleep 0.01; done; exit 5) & echo $!`), null(t), write)
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(read).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	orphan, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	want := proc.Status{Code: 5}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if status, ok := r.Exited(orphan); ok {
			if status != want {
				t.Errorf("the orphan ended with %v, want %v", status, want)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d was never reaped", orphan)
		}
	}
}

// TestOneSignalIsEnough for many children: the kernel merges the signals of
// those that die together.
func TestOneSignalIsEnough(t *testing.T) {
	r := oneReaper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	read.Fd() // makes it blocking, for the children
	exits := map[int]<-chan proc.Status{}
	for range 30 {
		pid, exited, err := r.Start(shell("read line; exit 3"), read)
		if err != nil {
			t.Fatal(err)
		}
		exits[pid] = exited
	}
	read.Close()
	release := sync.OnceFunc(r.HoldUp())
	defer release()
	write.Close()
	for pid := range exits {
		awaitZombie(t, pid)
	}
	release()
	deadline := time.After(10 * time.Second)
	for pid, exited := range exits {
		select {
		case status := <-exited:
			if want := (proc.Status{Code: 3}); status != want {
				t.Errorf("process %d ended with %v, want %v", pid, status, want)
			}
		case <-deadline:
			t.Fatalf("process %d is dead, and nobody reaps it", pid)
		}
	}
}

// awaitZombie returns when a child has died.
func awaitZombie(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if _, state, ok := strings.Cut(string(stat), ") "); ok && state[0] == 'Z' {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not end: %s", pid, stat)
		}
	}
}

// null is a file with nothing in it.
func null(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
