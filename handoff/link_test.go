package handoff

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestMessagesAndFilesArrive(t *testing.T) {
	old, candidate := pairOfLinks(t)
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	file.WriteString("content")
	want := message{Type: typeStates, States: []StateInfo{{Module: "m", Version: 2, Size: 7}}}
	if err := old.send(soon(t), want, file); err != nil {
		t.Fatal(err)
	}
	got, files, err := candidate.receive(soon(t))
	if err != nil || len(files) != 1 || !reflect.DeepEqual(got, want) {
		t.Fatalf("receive = %+v, %d files, %v; want %+v and a file", got, len(files), err, want)
	}
	defer files[0].Close()
	content := make([]byte, 7)
	if _, err := files[0].(*os.File).ReadAt(content, 0); err != nil || string(content) != "content" {
		t.Errorf("the file has %q, %v", content, err)
	}
}

// TestEveryOperationEndsWithItsContext has a peer that never reads or writes.
func TestEveryOperationEndsWithItsContext(t *testing.T) {
	why := errors.New("that took too long")
	old, _ := pairOfLinks(t)
	states, err := NewStates(1 << 10)
	if err != nil {
		t.Fatal(err)
	}
	defer states.Close()
	huge := message{Type: typeWelcome, Welcome: &Welcome{Modules: []ModuleInfo{{Name: strings.Repeat("x", 3<<20)}}}}
	for name, operation := range map[string]func(context.Context) error{
		"receive":       func(ctx context.Context) error { _, _, err := old.receive(ctx); return err },
		"send":          func(ctx context.Context) error { return old.send(ctx, huge) },
		"receive conns": func(ctx context.Context) error { _, err := receiveConns(ctx, old, func([]Conn) {}); return err },
	} {
		ctx, cancel := context.WithTimeoutCause(context.Background(), 20*time.Millisecond, why)
		if err := operation(ctx); !errors.Is(err, why) {
			t.Errorf("%s = %v, want %v", name, err, why)
		}
		cancel()
		ctx, stop := context.WithCancelCause(context.Background())
		time.AfterFunc(10*time.Millisecond, func() { stop(why) })
		if err := operation(ctx); !errors.Is(err, why) {
			t.Errorf("%s, cancelled = %v, want %v", name, err, why)
		}
	}
}

func TestTheEndOfThePeerIsRecognized(t *testing.T) {
	old, candidate := pairOfLinks(t)
	candidate.conn.Write([]byte{0, 0, 0, 9, '{'})
	candidate.conn.Close()
	if _, _, err := old.receive(soon(t)); !gone(err) {
		t.Errorf("receive of half a message = %v, want the end of the peer", err)
	}
	if err := old.send(soon(t), message{Type: typeEnd}); !gone(err) {
		t.Errorf("send = %v, want the end of the peer", err)
	}
}

// TestConnectionsMove moves more connections than one message can carry, and
// keeps those that were not acknowledged.
func TestConnectionsMove(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var clients []net.Conn
	var conns []Conn
	for range 300 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
		conns = append(conns, Conn{s, ConnInfo{Owner: "o", Unread: []byte(fmt.Sprint("unread ", len(conns)))}})
		if len(conns) < 8 { // not all of these fit into one message
			conns[len(conns)-1].Kept = bytes.Repeat([]byte("k"), 1<<20)
		}
	}
	old, candidate := pairOfLinks(t)
	var got []Conn
	done := make(chan error, 1)
	go func() {
		_, err := receiveConns(soon(t), candidate, func(batch []Conn) { got = append(got, batch...) })
		done <- err
	}()
	left, err := sendConns(soon(t), old, conns)
	if err == nil {
		err = old.send(soon(t), message{Type: typeEnd})
	}
	if err != nil || len(left) != 0 {
		t.Fatalf("sendConns = %d left, %v", len(left), err)
	}
	if err := <-done; err != nil || len(got) != len(conns) {
		t.Fatalf("received %d of %d, %v", len(got), len(conns), err)
	}
	for i, c := range got {
		if string(c.Unread) != fmt.Sprint("unread ", i) || len(c.Kept) != len(conns[i].Kept) || c.Owner != "o" {
			t.Errorf("connection %d came with %q, %d bytes kept, of %q", i, c.Unread, len(c.Kept), c.Owner)
		}
		c.Write([]byte("x"))
		c.Close()
		if b, err := io.ReadAll(clients[i]); err != nil || string(b) != "x" {
			t.Fatalf("client %d reads %q, %v: is a descriptor still open here?", i, b, err)
		}
	}

	// A peer that receives them and dies before it acknowledges leaves them
	// here.
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	candidate.conn.Close()
	if left, err := sendConns(soon(t), old, []Conn{{Conn: a}}); err == nil || len(left) != 1 {
		t.Errorf("sendConns to nobody = %d left, %v; want 1 and an error", len(left), err)
	}
}

// FuzzLink receives anything. It must end with a message or an error, and
// leave no descriptor open.
func FuzzLink(f *testing.F) {
	frame := func(m message) []byte {
		body, _ := json.Marshal(m)
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	f.Add(frame(message{Type: typeHello, Protocol: 1, PID: 1, Hello: &Hello{Modules: []string{"a"}}}), true)
	f.Add(frame(message{Type: typeStates, States: []StateInfo{{Module: "a", Offset: -1, Size: 1 << 62}}}), true)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, false)
	f.Add([]byte{0, 0, 0, 2, '{'}, false)
	f.Add([]byte("garbage, not a message"), false)
	f.Fuzz(func(t *testing.T, data []byte, withFile bool) {
		if len(data) > 64<<10 {
			return // more than a socket's buffer holds
		}
		before := openFiles(t)
		old, candidate := pairOfLinks(t)
		var fds []int
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		if withFile {
			fds = []int{int(null.Fd())}
		}
		if len(data) > 0 {
			if _, err := old.write(data, fds); err != nil {
				t.Fatal(err)
			}
		}
		old.conn.Close()
		m, files, err := candidate.receive(soon(t))
		if err != nil && files != nil {
			t.Error("files beside an error")
		}
		closeAll(files)
		if err == nil {
			if again, err := json.Marshal(m); err != nil || len(again) == 0 {
				t.Errorf("a received message does not encode: %v", err)
			}
		}
		candidate.conn.Close()
		// The next step of a conversation must refuse it too.
		old, candidate = pairOfLinks(t)
		if len(data) > 0 {
			old.write(data, fds)
		}
		old.conn.Close()
		p := &Predecessor{self: &Upgrader{}, link: candidate}
		if states, _, err := p.Prepared(soon(t)); err == nil {
			states.Close()
			if !withFile {
				t.Error("states without a file")
			}
		}
		candidate.conn.Close()
		old, candidate = pairOfLinks(t)
		if len(data) > 0 {
			old.write(data, fds)
		}
		old.conn.Close()
		receiveConns(soon(t), candidate, func(conns []Conn) {
			for _, c := range conns {
				c.Close()
			}
		})
		candidate.conn.Close()
		null.Close()
		if after := openFiles(t); after > before {
			t.Errorf("%d files are open, %d before", after, before)
		}
	})
}

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestNothingIsAdoptedBeforeItIsAcknowledged has a peer that is gone when its
// connections are acknowledged. The connections stay with it, so they must not
// be read.
func TestNothingIsAdoptedBeforeItIsAcknowledged(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	old, candidate := pairOfLinks(t)
	if err := sendBatch(soon(t), old, []Conn{{Conn: c}}); err != nil {
		t.Fatal(err)
	}
	old.conn.CloseRead() // an acknowledgement reaches nobody
	n, err := receiveConns(soon(t), candidate, func([]Conn) { t.Error("the connection was adopted") })
	if err == nil || n != 0 {
		t.Errorf("receiveConns = %d, %v; want an error", n, err)
	}
}
