package wire_test

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"example.org/orchestrator/app/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen returns a socket and the raw connections that arrive there.
func listen(t *testing.T) (path string, accepted <-chan net.Conn) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conns := make(chan net.Conn, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return path, conns
}

// message is a message of some protocol.
type message struct {
	Type  string `json:"type"`
	Error string `json:"error,omitempty"`
}

func TestAConversation(t *testing.T) {
	path, accepted := listen(t)
	type result struct {
		conn  *wire.Conn
		hello *wire.Hello
		err   error
	}
	greeted := make(chan result, 1)
	go func() {
		c, h, err := wire.Accept(<-accepted)
		greeted <- result{c, h, err}
	}()
	client, err := wire.Dial(path, wire.Hello{Role: wire.RoleWorker, Generation: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	r := <-greeted
	if r.err != nil || r.hello.Role != wire.RoleWorker || r.hello.Generation != 7 {
		t.Fatalf("Accept = %+v, %v", r.hello, r.err)
	}
	defer r.conn.Close()
	if err := r.conn.Send(message{Type: "stop", Error: "why"}); err != nil {
		t.Fatal(err)
	}
	var m message
	if err := client.Receive(&m); err != nil || m != (message{Type: "stop", Error: "why"}) {
		t.Errorf("Receive = %+v, %v", m, err)
	}
	r.conn.Close()
	if err := client.Receive(&m); err == nil || errors.Is(err, wire.ErrGarbled) {
		t.Errorf("Receive from nobody = %v, want its end", err)
	}
}

// TestStrangers speak another protocol, or another version.
func TestStrangers(t *testing.T) {
	for _, tt := range []struct{ name, says, want string }{
		{"garbage", "garbage\n", "not a message"},
		{"another protocol", `{"type":"known"}` + "\n", "does not speak this protocol"},
		{"a newer version", `{"type":"hello","hello":{"protocol":9,"min_protocol":8}}` + "\n", "the other process speaks protocol 8 to 9"},
		{"nothing", "", "control: "},
	} {
		path, accepted := listen(t)
		go func() {
			c := <-accepted
			c.Write([]byte(tt.says))
			if tt.says != "" {
				c.Read(make([]byte, 1<<10))
			}
			c.Close()
		}()
		_, err := wire.Dial(path, wire.Hello{Role: wire.RoleClient})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Dial = %v, want %q", tt.name, err, tt.want)
		}
		var version *wire.VersionError
		if (tt.name == "a newer version") != errors.As(err, &version) {
			t.Errorf("%s: Dial = %T", tt.name, err)
		}
	}
}
