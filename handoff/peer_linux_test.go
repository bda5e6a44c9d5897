package handoff

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// TestOnlyAChildIsACandidate: whoever else connects first gets no state and no
// connection.
func TestOnlyAChildIsACandidate(t *testing.T) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.DialUnix("unix", nil, ln.Addr().(*net.UnixAddr)) // this process is no child of its own
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &Candidate{process: &child{exited: make(chan struct{})}, peer: peerPID}
	if err := c.accept(soon(t), ln); !errors.Is(err, errGarbage) || !strings.Contains(err.Error(), "is not the candidate") {
		t.Errorf("accept = %v, want that it is not the candidate", err)
	}
}
