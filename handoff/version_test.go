package handoff

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"example.org/orchestrator/handoff/failpoint"
)

// TestOtherVersionsAreRefused greets as a candidate with another version.
func TestOtherVersionsAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		hello      message
	}{
		{"ours", "", message{Type: typeHello, Protocol: protocol, MinProtocol: minProtocol, Hello: &Hello{}}},
		{"a later one that still speaks ours", "", message{Type: typeHello, Protocol: protocol + 1, MinProtocol: minProtocol, Hello: &Hello{}}},
		{"a later one", "the candidate speaks handoff protocol 8 to 9", message{Type: typeHello, Protocol: 9, MinProtocol: 8, Hello: &Hello{}}},
		{"an earlier one", "the candidate speaks handoff protocol 0 to 0", message{Type: typeHello, Hello: &Hello{}}},
		{"no hello", `got "prepared" instead of a hello`, message{Type: typePrepared}},
		{"an empty hello", "instead of a hello", message{Type: typeHello}},
	} {
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.DialUnix("unix", nil, ln.Addr().(*net.UnixAddr))
		if err != nil {
			t.Fatal(err)
		}
		other := &socketLink{conn: conn, side: failpoint.Candidate}
		if err := other.send(soon(t), tt.hello); err != nil {
			t.Fatal(err)
		}
		c := &Candidate{process: &child{exited: make(chan struct{})}}
		err = c.accept(soon(t), ln)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: accept = %v, want %q", tt.name, err, tt.want)
		}
		if err == nil && c.protocol != protocol {
			t.Errorf("%s: protocol %d is agreed on, want %d", tt.name, c.protocol, protocol)
		}
		if c.link != nil {
			c.link.close()
		}
		conn.Close()
		ln.Close()
	}
}

// TestAWelcomeOfAnotherVersionIsRefused by the candidate.
func TestAWelcomeOfAnotherVersionIsRefused(t *testing.T) {
	for version := minProtocol - 1; version <= protocol+1; version++ {
		ok := version >= minProtocol && version <= protocol
		old, candidate := pairOfLinks(t)
		if err := old.send(soon(t), message{Type: typeWelcome, Protocol: version, Welcome: &Welcome{}}); err != nil {
			t.Fatal(err)
		}
		p := &Predecessor{self: &Upgrader{}, link: candidate}
		if _, err := p.Hello(soon(t), Hello{}); (err == nil) != ok {
			t.Errorf("a welcome with protocol %d: %v", version, err)
		}
	}
}
