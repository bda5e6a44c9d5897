package handoff

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"example.org/orchestrator/handoff/failpoint"
)

// maxFrame bounds a message; states travel in a file, not in messages.
const maxFrame = 4 << 20

// maxFiles is the most descriptors the kernel passes with one message.
const maxFiles = 253

// link carries messages between two generations, and files with them. Every
// operation ends with its context. After an error the link is unusable.
type link interface {
	// send sends m with files, which remain the caller's.
	send(ctx context.Context, m message, files ...file) error
	// receive waits for the next message. The caller owns the files.
	receive(ctx context.Context) (m message, files []file, err error)
	close() error
}

// file is an open file or connection being passed. Only its sender and its
// receiver know which.
type file interface{ Close() error }

// socketLink is the link between two processes: four bytes of length, then
// JSON, with descriptors attached.
type socketLink struct {
	conn *net.UnixConn
	side string // this end's side for package failpoint
}

func (l *socketLink) close() error { return l.conn.Close() }

func (l *socketLink) send(ctx context.Context, m message, files ...file) error {
	fds, err := descriptors(files)
	if err != nil {
		return fmt.Errorf("handoff: send %s: %w", m.Type, err)
	}
	defer runtime.KeepAlive(files)
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("handoff: encode %s: %w", m.Type, err)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	frame = append(frame, body...)
	if failpoint.At(l.side, "before", m.Type) {
		frame = []byte("garbage, not a message")
	}
	defer l.bound(ctx)()
	n, err := l.write(frame, fds)
	if err == nil && n < len(frame) {
		_, err = l.conn.Write(frame[n:])
	}
	if err != nil {
		return fmt.Errorf("handoff: send %s: %w", m.Type, cause(ctx, err))
	}
	failpoint.At(l.side, "after", m.Type)
	return nil
}

// descriptors returns the descriptors of files, which must stay open while
// these are in use.
func descriptors(files []file) (fds []int, err error) {
	for _, f := range files {
		c, ok := f.(syscall.Conn)
		if !ok {
			return nil, fmt.Errorf("%T has no descriptor", f)
		}
		raw, err := c.SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return nil, err
		}
	}
	return fds, nil
}

func (l *socketLink) receive(ctx context.Context) (m message, files []file, err error) {
	defer l.bound(ctx)()
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	var head [4]byte
	n, files, err := l.read(head[:])
	if err == nil {
		_, err = io.ReadFull(l.conn, head[n:])
	}
	if err != nil {
		return m, files, fmt.Errorf("handoff: receive: %w", cause(ctx, err))
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxFrame {
		return m, files, fmt.Errorf("handoff: receive: a message of %d bytes: %w", size, errGarbage)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(l.conn, body); err != nil {
		return m, files, fmt.Errorf("handoff: receive: %w", cause(ctx, err))
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return m, files, fmt.Errorf("handoff: receive: %w: %w", errGarbage, err)
	}
	return m, files, nil
}

var errGarbage = errors.New("the other side does not speak the protocol")

// bound makes the link's operations end when ctx does, until release is called.
// release waits for an interruption that is under way, which would otherwise
// hit the next operation.
func (l *socketLink) bound(ctx context.Context) (release func()) {
	deadline, _ := ctx.Deadline()
	l.conn.SetDeadline(deadline)
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		l.conn.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-interrupted
		}
	}
}

// cause returns why ctx ended if err is the timeout that its end has caused,
// and err otherwise.
func cause(ctx context.Context, err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		<-ctx.Done() // any moment now: its timer is not the connection's
	}
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return context.DeadlineExceeded
}

// gone reports whether err means that the other process has ended.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// batchTime bounds the passing on of one batch of connections.
const batchTime = 5 * time.Second

// sendConns passes connections in batches and closes those that the other side
// has acknowledged. After an error, left holds the others, which remain the
// caller's, but see lateAck.
func sendConns(ctx context.Context, l link, conns []Conn) (left []Conn, err error) {
	for len(conns) > 0 {
		batch := conns[:batchOf(conns)]
		if err := exchangeBatch(ctx, l, batch); err != nil {
			return conns, err
		}
		closeConns(batch)
		conns = conns[len(batch):]
	}
	return nil, nil
}

// exchangeBatch sends a batch and waits for its acknowledgement.
func exchangeBatch(ctx context.Context, l link, batch []Conn) error {
	ctx, cancel := context.WithTimeout(ctx, batchTime)
	defer cancel()
	if err := sendBatch(ctx, l, batch); err != nil {
		return err
	}
	m, files, err := l.receive(ctx)
	closeAll(files)
	if err != nil {
		return err
	}
	return acknowledges(m, batch)
}

func acknowledges(m message, batch []Conn) error {
	if m.Type != typeConns || m.Conns != len(batch) {
		return fmt.Errorf("handoff: got %q, %d while waiting for %d connections to be acknowledged: %w", m.Type, m.Conns, len(batch), errGarbage)
	}
	return nil
}

// lateAckTime is how long an acknowledgement may take to be read that a process has
// sent before it died.
const lateAckTime = 100 * time.Millisecond

// lateAck resolves what nobody knows after sendConns has run out of time: whether
// the other side has taken the last batch, and read from it. That side must be
// dead. lateAck closes what it had taken, and returns what is left.
func lateAck(l link, left []Conn) []Conn {
	if len(left) == 0 {
		return left
	}
	ctx, cancel := context.WithTimeout(context.Background(), lateAckTime)
	defer cancel()
	batch := left[:batchOf(left)]
	m, files, err := l.receive(ctx)
	closeAll(files)
	if err != nil || acknowledges(m, batch) != nil {
		return left
	}
	closeConns(batch)
	return left[len(batch):]
}

func closeConns(conns []Conn) {
	for _, c := range conns {
		c.Close()
	}
}

// batchOf returns how many of conns fit into one message: at least one.
func batchOf(conns []Conn) int {
	size := 0
	for n, c := range conns[:min(len(conns), maxFiles)] {
		if size += c.size(); size > maxFrame/2 && n > 0 {
			return n
		}
	}
	return min(len(conns), maxFiles)
}

// sendBatch sends one batch of connections, which stay open here.
func sendBatch(ctx context.Context, l link, conns []Conn) error {
	files := make([]file, 0, len(conns))
	infos := make([]ConnInfo, 0, len(conns))
	for _, c := range conns {
		files = append(files, c.Conn)
		infos = append(infos, c.ConnInfo)
	}
	return l.send(ctx, message{Type: typeConns, Conns: len(files), ConnInfos: infos}, files...)
}

// receiveConns passes each batch of connections to adopt, which takes
// responsibility for them, until the other side sends end. n counts them.
func receiveConns(ctx context.Context, l link, adopt func([]Conn)) (n int, err error) {
	for {
		limit, cancel := context.WithTimeout(ctx, batchTime)
		m, files, err := l.receive(limit)
		cancel()
		if err != nil {
			return n, err
		}
		switch m.Type {
		case typeEnd:
			closeAll(files)
			return n, nil
		case typeConns:
			if len(m.ConnInfos) != len(files) {
				closeAll(files)
				return n, fmt.Errorf("handoff: %d connections came with %d descriptions: %w", len(files), len(m.ConnInfos), errGarbage)
			}
			conns := make([]Conn, 0, len(files))
			for i, f := range files {
				c, err := connOf(f)
				if err != nil { // the other side still has them all
					closeAll(files[i:])
					closeConns(conns)
					return n, fmt.Errorf("handoff: take a connection: %w", err)
				}
				if c != f { // a duplicate: two of each would need twice as many descriptors
					f.Close()
				}
				conns = append(conns, Conn{c, m.ConnInfos[i]})
			}
			// Nothing may be read from them before this: if this process dies
			// first, they stay with the other one, which must not miss a byte.
			if err := l.send(ctx, message{Type: typeConns, Conns: m.Conns}); err != nil {
				closeConns(conns)
				return n, err
			}
			adopt(conns)
			n += len(conns)
		default:
			closeAll(files)
			return n, fmt.Errorf("handoff: got %q instead of connections: %w", m.Type, errGarbage)
		}
	}
}

// connOf returns the connection that was received as f. If f is not a
// connection itself, the result is a duplicate and the caller still has to
// close f.
func connOf(f file) (net.Conn, error) {
	switch f := f.(type) {
	case *os.File:
		return net.FileConn(f)
	case net.Conn:
		return f, nil
	default:
		return nil, fmt.Errorf("%T is no connection: %w", f, errGarbage)
	}
}

func closeAll(files []file) {
	for _, f := range files {
		f.Close()
	}
}
