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
	"time"
)

// maxFrame bounds a message; states travel in a file, not in messages.
const maxFrame = 4 << 20

// maxFiles is the most descriptors the kernel passes with one message.
const maxFiles = 253

// link carries framed messages and file descriptors between two generations:
// four bytes of length, then JSON. Every operation ends with its context.
type link struct{ conn *net.UnixConn }

// send writes m with files attached; the caller keeps them.
func (l *link) send(ctx context.Context, m message, fds ...int) error {
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("handoff: encode %s: %w", m.Type, err)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	frame = append(frame, body...)
	defer l.bound(ctx)()
	n, err := l.write(frame, fds)
	if err == nil && n < len(frame) {
		_, err = l.conn.Write(frame[n:])
	}
	if err != nil {
		return fmt.Errorf("handoff: send %s: %w", m.Type, cause(ctx, err))
	}
	return nil
}

// receive reads the next message. The caller owns the files.
func (l *link) receive(ctx context.Context) (m message, files []*os.File, err error) {
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

// bound makes the link's operations end when ctx does, until the returned
// function is called.
func (l *link) bound(ctx context.Context) (release func()) {
	deadline, _ := ctx.Deadline()
	l.conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { l.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// cause prefers the reason a context ended to the timeout that shows it.
func cause(ctx context.Context, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if c := context.Cause(ctx); c != nil {
			return c
		}
		return context.DeadlineExceeded
	}
	return err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
