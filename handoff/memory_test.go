package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
)

// memoryLink is one end of a link within this process. Its channels belong to a
// synctest bubble, so both sides of a handoff run together on a fake clock.
type memoryLink struct {
	in, out chan packet
	mine    *sync.Once // guards closed
	closed  chan struct{}
	theirs  chan struct{} // closed when the other end is
}

// packet is a message on its way, as it would cross a socket.
type packet struct {
	body  []byte
	files []file
}

func memoryPair() (a, b *memoryLink) {
	ab, ba := make(chan packet, 8), make(chan packet, 8)
	endA, endB := make(chan struct{}), make(chan struct{})
	return &memoryLink{ba, ab, &sync.Once{}, endA, endB}, &memoryLink{ab, ba, &sync.Once{}, endB, endA}
}

func (l *memoryLink) send(ctx context.Context, m message, files ...file) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	p := packet{body: body}
	for _, f := range files {
		p.files = append(p.files, duplicate(f))
	}
	select {
	case <-l.theirs:
		err = syscall.EPIPE
	case <-l.closed:
		err = net.ErrClosed
	default:
		select {
		case l.out <- p:
			return nil
		case <-l.theirs:
			err = syscall.EPIPE
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	closeAll(p.files)
	return fmt.Errorf("handoff: send %s: %w", m.Type, err)
}

func (l *memoryLink) receive(ctx context.Context) (m message, files []file, err error) {
	var p packet
	select {
	case p = <-l.in: // even what was sent before the other end was closed
	default:
		select {
		case p = <-l.in:
		case <-l.theirs:
			return m, nil, io.EOF
		case <-l.closed:
			return m, nil, net.ErrClosed
		case <-ctx.Done():
			return m, nil, context.Cause(ctx)
		}
	}
	if err := json.Unmarshal(p.body, &m); err != nil {
		closeAll(p.files)
		return m, nil, fmt.Errorf("%w: %w", errGarbage, err)
	}
	return m, p.files, nil
}

func (l *memoryLink) close() error {
	l.mine.Do(func() { close(l.closed) })
	return nil
}

// duplicate returns another handle of a file, as a receiver gets one from the
// kernel.
func duplicate(f file) file {
	switch f := f.(type) {
	case *sharedConn:
		f.refs.Add(1)
		return &sharedConn{Conn: f.Conn, refs: f.refs}
	case *os.File:
		fd, err := syscall.Dup(int(f.Fd()))
		if err != nil {
			panic(err)
		}
		return os.NewFile(uintptr(fd), f.Name())
	}
	panic(fmt.Sprintf("%T on its way", f))
}

// sharedConn is a connection that is open as long as one of its handles is.
type sharedConn struct {
	net.Conn
	refs *refs
	once sync.Once
}

type refs struct {
	mu sync.Mutex
	n  int
}

func (r *refs) Add(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n += n
	return r.n
}

func (c *sharedConn) Close() error {
	c.once.Do(func() {
		if c.refs.Add(-1) == 0 {
			c.Conn.Close()
		}
	})
	return nil
}

// newConns are connections whose clients are the test.
func newConns(n int) (conns []Conn, clients []net.Conn) {
	for i := range n {
		near, far := net.Pipe()
		conns = append(conns, Conn{&sharedConn{Conn: near, refs: &refs{n: 1}}, ConnInfo{Owner: fmt.Sprint(i)}})
		clients = append(clients, far)
	}
	return conns, clients
}

// fakeProcess is a candidate's process.
type fakeProcess struct {
	mu    sync.Mutex // guards the fields below
	pid   int
	dead  bool
	kills int
	spare int // kills it survives, as if it was not found yet
	end   chan struct{}
	why   error
	link  *memoryLink // the candidate's end

	onKill func() // what it still does before it is dead; nil for nothing
}

func (p *fakeProcess) ended() <-chan struct{} { return p.end }

func (p *fakeProcess) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.why
}

func (p *fakeProcess) known(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = pid
}

func (p *fakeProcess) sweep() {}

func (p *fakeProcess) kill() {
	if p.onKill != nil {
		p.onKill()
	}
	p.mu.Lock()
	p.kills++
	found := p.kills > p.spare
	p.mu.Unlock()
	if found {
		p.exit(errors.New("signal: killed"))
	}
}

// exit ends the process; nil makes it the serving generation.
func (p *fakeProcess) exit(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return
	}
	p.dead, p.why = true, why
	close(p.end)
	if why != nil {
		p.link.close()
	}
}

// fakeSuccessor is the candidate's own side of its process.
type fakeSuccessor struct {
	process *fakeProcess
	made    []string
	parent  chan struct{} // closed when the old generation has exited
}

func (s *fakeSuccessor) sockets() []string { return s.made }

func (s *fakeSuccessor) ready() error {
	s.process.exit(nil)
	return nil
}

func (s *fakeSuccessor) waitForParent(ctx context.Context) error {
	select {
	case <-s.parent:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// conversation is both sides of a handoff.
type conversation struct {
	t         *testing.T
	candidate *Candidate // as the old generation sees it
	old       *Predecessor
	process   *fakeProcess
	self      *fakeSuccessor
	oldEnd    *memoryLink // closing it kills the old generation
}

func converse(t *testing.T) *conversation {
	a, b := memoryPair()
	process := &fakeProcess{end: make(chan struct{}), link: b}
	self := &fakeSuccessor{process: process, parent: make(chan struct{})}
	return &conversation{
		t:         t,
		candidate: &Candidate{room: -1, process: process, link: a},
		old:       &Predecessor{self: self, link: b},
		process:   process,
		self:      self,
		oldEnd:    a,
	}
}
