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

// stuck takes nothing until it is opened.
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

// TestNobodyReads writes far more than is kept: no write waits, and what is
// missing is told once somebody reads again.
func TestNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stuck{open: make(chan struct{})}
		w := console.New(out)
		line := strings.Repeat("x", 999) + "\n"
		for range 5000 {
			io.WriteString(w, line)
		}
		close(out.open)
		if !w.Flush(time.Second) {
			t.Fatal("Flush = false")
		}
		kept := strings.Count(out.String(), "\n")
		io.WriteString(w, "again\n")
		w.Flush(time.Second)
		want := fmt.Sprintf("(%d lines were not printed: nobody took them)\nagain\n", 5000-kept)
		if kept == 5000 || !strings.HasSuffix(out.String(), want) {
			t.Errorf("%d lines were kept, and the end is %.80q, want %q", kept, out.String()[kept*len(line):], want)
		}
	})
}
