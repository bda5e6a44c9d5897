package console_test

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/orchestrator/app/internal/console"
)

// stuck accepts nothing until it is opened.
type stuck struct {
	open chan struct{}
	mu   sync.Mutex
	text strings.Builder
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.open
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *stuck) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func TestLinesArriveInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stuck{open: make(chan struct{})}
		w := console.New(out)
		want := ""
		for i := range 1000 {
			fmt.Fprintln(w, i)
			want += fmt.Sprintln(i)
		}
		if w.Flush(time.Second) {
			t.Error("Flush = true while nobody reads")
		}
		close(out.open)
		if !w.Flush(time.Second) || out.String() != want {
			t.Errorf("written: %.40q..., want %.40q...", out, want)
		}
	})
}

// TestALineIsOutWhenItsWriteReturns, as long as somebody reads: otherwise a
// crash would swallow it.
func TestALineIsOutWhenItsWriteReturns(t *testing.T) {
	out := &stuck{open: make(chan struct{})}
	close(out.open)
	w := console.New(out)
	want := ""
	for i := range 200 {
		fmt.Fprintln(w, i)
		if want += fmt.Sprintln(i); out.String() != want {
			t.Fatalf("after line %d it is %q", i, out)
		}
	}
}

// TestNobodyReads writes far more than is queued: only the first write waits,
// for a moment, and a notice says what is missing once somebody reads again.
func TestNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stuck{open: make(chan struct{})}
		w := console.New(out)
		line := strings.Repeat("x", 999) + "\n"
		began := time.Now()
		for range 5000 {
			io.WriteString(w, line)
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("writing took %v", took)
		}
		close(out.open)
		if !w.Flush(time.Second) {
			t.Fatal("Flush = false")
		}
		kept := strings.Count(out.String(), line)
		want := fmt.Sprintf("%s(%d messages were dropped: nobody was reading)\n", line, 5000-kept)
		if kept == 5000 || !strings.HasSuffix(out.String(), want) {
			t.Errorf("%d lines were kept, and the end is %.80q", kept, out.String()[kept*len(line):])
		}
	})
}

// TestOneLargeMessage is written, whatever its size.
func TestOneLargeMessage(t *testing.T) {
	out := &stuck{open: make(chan struct{})}
	close(out.open)
	w := console.New(out)
	large := strings.Repeat("x", 3<<20)
	io.WriteString(w, large)
	if !w.Flush(10*time.Second) || out.String() != large {
		t.Errorf("%d bytes were written, want %d", len(out.String()), len(large))
	}
}
