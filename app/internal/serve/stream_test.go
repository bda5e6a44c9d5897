package serve_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/serve"
)

// streams is two servers between which the streams of one owner move back and
// forth, after they have all been detached.
type streams struct {
	t         *testing.T
	now, next *serve.Server
	address   string
}

func newStreams(t *testing.T, handle func(ctx context.Context, st *serve.Stream) error) *streams {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opts := options
	opts.Stream = func(ctx context.Context, owner string, st *serve.Stream) error {
		if owner != "me" {
			t.Errorf("owner %q", owner)
		}
		return handle(ctx, st)
	}
	a, heldA := serve.New(nil, opts)
	b, heldB := serve.New(nil, opts)
	t.Cleanup(a.Close)
	t.Cleanup(b.Close)
	a.Listen("me", ln)
	heldA.Release()
	heldB.Release()
	return &streams{t, a, b, ln.Addr().String()}
}

func (s *streams) move(n int) {
	s.t.Helper()
	handed, conns, closed := held(s.t, s.now).HandOver()
	if len(conns) != n || closed != 0 {
		s.t.Fatalf("%d connections were detached and %d closed, want %d and none", len(conns), closed, n)
	}
	handed.Resume(nil)
	held(s.t, s.next).Resume(func(adopt func([]serve.Detached)) { adopt(conns) })
	s.now, s.next = s.next, s.now
}

func (c *client) line() string {
	c.t.Helper()
	line, err := c.in.ReadString('\n')
	if err != nil {
		c.t.Fatalf("no line: %v", err)
	}
	return strings.TrimSpace(line)
}

// TestLinesMoveAtEveryByte splits what a client sends at every byte, and moves
// the connection there: each line is handled once.
func TestLinesMoveAtEveryByte(t *testing.T) {
	s := newStreams(t, func(_ context.Context, st *serve.Stream) error {
		for {
			line, err := st.ReadLine()
			if err != nil {
				return err
			}
			fmt.Fprintf(st, "<%s>\n", line)
		}
	})
	c := dial(t, s.address)
	c.send("begin\n")
	c.line()
	text := "one\ntwo\r\n\nthree\n"
	for cut := range len(text) + 1 {
		c.send(text[:cut])
		s.move(1)
		c.send(text[cut:])
		for _, want := range []string{"<one>", "<two>", "<>", "<three>"} {
			if got := c.line(); got != want {
				t.Fatalf("cut after %d bytes: %q, want %q", cut, got, want)
			}
		}
	}
	c.send("rest")
	c.Conn.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(c.in); err != nil || len(rest) != 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
}

// TestWhatIsNotMarkedIsReadAgain reads messages of four bytes and marks after
// every second one.
func TestWhatIsNotMarkedIsReadAgain(t *testing.T) {
	s := newStreams(t, func(_ context.Context, st *serve.Stream) error {
		kept := string(st.Kept())
		var m [4]byte
		for n := 1; ; n++ {
			if _, err := io.ReadFull(st, m[:]); err != nil {
				return err
			}
			fmt.Fprintf(st, "%s after %q\n", m[:], kept)
			if n%2 == 0 {
				st.Mark()
				kept += string(m[:])
				if err := st.Keep([]byte(kept)); err != nil {
					return err
				}
			}
		}
	})
	c := dial(t, s.address)
	expect := func(want ...string) {
		t.Helper()
		for _, w := range want {
			if got := c.line(); got != w {
				t.Fatalf("got %q, want %q", got, w)
			}
		}
	}
	c.send("aaaabbbbcccc")
	expect(`aaaa after ""`, `bbbb after ""`, `cccc after "bbbb"`)
	s.move(1)
	expect(`cccc after "bbbb"`) // again: it was not marked
	c.send("dd")
	s.move(1)
	expect(`cccc after "bbbb"`)
	c.send("dd")
	expect(`dddd after "bbbb"`)
	s.move(1)
	c.send("eeee")
	expect(`eeee after "bbbbdddd"`)
}

// TestOutputMoves writes more than the client takes, moves, and goes on.
func TestOutputMoves(t *testing.T) {
	const size, pieces = 100_000, 200
	stuck := make(chan int, pieces+1)
	s := newStreams(t, func(_ context.Context, st *serve.Stream) error {
		var n int
		fmt.Sscan(string(st.Kept()), &n)
		for ; n < pieces && len(stuck) < cap(stuck); n++ {
			if _, err := st.Write(bytes.Repeat([]byte{byte(n)}, size)); err != nil {
				return err
			}
			st.Keep(fmt.Append(nil, n+1))
			stuck <- n
			if st.Moving() {
				return options.Moving
			}
		}
		st.Close()
		return nil
	})
	c := dial(t, s.address)
	written := <-stuck
	for quiet := false; !quiet; { // until the client's buffers are full
		select {
		case written = <-stuck:
		case <-time.After(100 * time.Millisecond):
			quiet = true
		}
	}
	if written == pieces-1 {
		t.Skip("the kernel buffers everything")
	}
	s.move(1)
	s.move(1) // the rest moves once more
	got, err := io.ReadAll(c.in)
	if err != nil || len(got) != size*pieces {
		t.Fatalf("the client has got %d bytes, %v; want %d", len(got), err, size*pieces)
	}
	for i, b := range got {
		if b != byte(i/size) {
			t.Fatalf("byte %d is %d, want %d", i, b, i/size)
		}
	}
}

// TestReadsOpenWhenAllHandlersRead delays one handler: the other must not read
// before it.
func TestReadsOpenWhenAllHandlersRead(t *testing.T) {
	begin, read := make(chan struct{}, 2), make(chan string, 2)
	s := newStreams(t, func(_ context.Context, st *serve.Stream) error {
		if string(st.Kept()) == "slow" {
			<-begin
		}
		for {
			line, err := st.ReadLine()
			if err != nil {
				return err
			}
			if err := st.Keep([]byte(line)); err != nil {
				return err
			}
			read <- line
		}
	})
	fast, slow := dial(t, s.address), dial(t, s.address)
	fast.send("fast\n")
	slow.send("slow\n")
	<-read
	<-read
	s.move(2)
	fast.send("now\n")
	select {
	case line := <-read:
		t.Fatalf("%q was read before every handler had begun to read", line)
	case <-time.After(50 * time.Millisecond): // it has had its chance
	}
	begin <- struct{}{}
	if line := <-read; line != "now" {
		t.Errorf("read %q, want now", line)
	}
}

// TestAHandlerThatIsLateGoesOn has a handler that returns only after the hold
// has failed.
func TestAHandlerThatIsLateGoesOn(t *testing.T) {
	busy, goOn := make(chan struct{}), make(chan struct{})
	s := newStreams(t, func(_ context.Context, st *serve.Stream) error {
		for {
			line, err := st.ReadLine()
			if err != nil {
				return err
			}
			if line == "long" {
				busy <- struct{}{}
				<-goOn
			}
			fmt.Fprintf(st, "<%s>\n", line)
		}
	})
	c := dial(t, s.address)
	c.send("long\nnext\n")
	<-busy
	_, err := hold(t, s.now, 50*time.Millisecond)
	var still *serve.BusyError
	if !errors.As(err, &still) || !slices.Equal(still.Routes(), []string{"a connection of module me"}) {
		t.Errorf("Hold = %v, want a BusyError that names the owner", err)
	}
	in(t, s.now, "a connection of module me late") // so no further hold is tried meanwhile
	close(goOn)
	for _, want := range []string{"<long>", "<next>"} {
		if got := c.line(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	s.move(1)
	c.send("after\n")
	if got := c.line(); got != "<after>" {
		t.Errorf("got %q, want <after>", got)
	}
}

// TestLastWordsArrive has a handler that answers and ends while the connection
// is about to move.
func TestLastWordsArrive(t *testing.T) {
	for _, end := range []string{"return", "Close", "CloseWrite"} {
		t.Run(end, func(t *testing.T) {
			busy := make(chan struct{})
			s := newStreams(t, func(ctx context.Context, st *serve.Stream) error {
				if _, err := st.ReadLine(); err != nil {
					return err
				}
				busy <- struct{}{}
				<-ctx.Done()
				fmt.Fprintln(st, "bye")
				switch end {
				case "Close":
					st.Close()
				case "CloseWrite":
					st.CloseWrite()
				}
				return nil
			})
			c := dial(t, s.address)
			c.send("QUIT\n")
			<-busy
			s.move(0)
			if rest, err := io.ReadAll(c.in); err != nil || string(rest) != "bye\n" {
				t.Errorf("the client has got %q, %v; want bye", rest, err)
			}
		})
	}
}

// TestAClientThatTakesNothingIsCutOff has a handler write far more than may be
// queued while the connection is about to move: the write fails and the
// connection is closed.
func TestAClientThatTakesNothingIsCutOff(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	s := newStreams(t, func(ctx context.Context, st *serve.Stream) error {
		if _, err := st.ReadLine(); err != nil {
			return err
		}
		close(begun)
		<-ctx.Done()
		for {
			if _, err := st.Write(make([]byte, 64<<10)); err != nil {
				ended <- err
				return options.Moving
			}
		}
	})
	c := dial(t, s.address)
	c.send("begin\n")
	<-begun
	s.move(0)
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "has not received") {
		t.Errorf("Write = %v, want that the client takes nothing", err)
	}
	if rest, err := io.ReadAll(c.in); len(rest) > 0 {
		t.Errorf("the client has got %d bytes, %v, of a broken message", len(rest), err)
	}
}

// TestWhatIsNeverMarkedCannotMove reads more than is kept.
func TestWhatIsNeverMarkedCannotMove(t *testing.T) {
	read := make(chan int, 1)
	s := newStreams(t, func(_ context.Context, st *serve.Stream) error {
		all := 0
		for chunk := make([]byte, 64<<10); ; {
			n, err := st.Read(chunk)
			if err != nil {
				return err
			}
			if all += n; all == 2<<20 {
				read <- all
			}
		}
	})
	c := dial(t, s.address)
	c.send(strings.Repeat("x", 2<<20))
	<-read
	handed, conns, closed := held(t, s.now).HandOver()
	if len(conns) != 0 || closed != 1 {
		t.Errorf("%d connections were detached and %d closed, want the only one closed", len(conns), closed)
	}
	if _, err := c.in.ReadByte(); err == nil {
		t.Error("the connection goes on")
	}
	handed.Resume(nil)
}
