package handoff

import (
	"context"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"example.org/orchestrator/handoff/failpoint"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pairOfLinks are two ends of one connection.
func pairOfLinks(t testing.TB) (old, candidate *socketLink) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*socketLink, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends[i] = &socketLink{conn: c.(*net.UnixConn), side: []string{failpoint.Old, failpoint.Candidate}[i]}
	}
	return ends[0], ends[1]
}

// soon returns a context for what should happen at once.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
