// Package wire is how two processes of one run_dir talk over control.sock: one
// JSON object per line, after a hello from each side to agree on a version.
//
// It knows framing, versions and deadlines, but not the messages: see
// app/client for those of command-line clients, and app/internal/control for
// those of the supervisor and its workers. The processes may be different
// builds: within a version, fields are only added, and a message of an unknown
// type is ignored.
package wire

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// The versions of the protocol that this build speaks, as strings so that a
// test can build a program that speaks others (-ldflags -X).
var (
	protocol    = "2"
	minProtocol = "2"
)

// Roles of a connecting process.
const (
	RoleClient  = "client"
	RoleWorker  = "worker"
	RoleSockets = "sockets" // a worker's second connection, for its listening sockets

	roleSupervisor = "supervisor"
)

// Socket returns the path of a run_dir's control socket.
func Socket(runDir string) string { return filepath.Join(runDir, "control.sock") }

// Hello introduces a process.
type Hello struct {
	Protocol    int    `json:"protocol"`
	MinProtocol int    `json:"min_protocol"`
	Role        string `json:"role"`
	PID         int    `json:"pid"` // this process's PID, unless set
	Generation  int    `json:"generation,omitempty"`
}

// greeting is the first message of each side.
type greeting struct {
	Type  string `json:"type"`
	Hello *Hello `json:"hello"`
}

const typeHello = "hello"

// VersionError says that two processes cannot talk.
type VersionError struct{ Theirs, TheirMin int }

func (e *VersionError) Error() string {
	mine, mineMin := versions()
	return fmt.Sprintf("control: the other process speaks protocol %d to %d, this one %d to %d: restart run with the new program, or use the program that run was started with", e.TheirMin, e.Theirs, mineMin, mine)
}

func versions() (v, lowest int) {
	v, _ = strconv.Atoi(protocol)
	lowest, _ = strconv.Atoi(minProtocol)
	return v, lowest
}

// ErrGarbled is returned for a line that is not a message. The next line may be
// one.
var ErrGarbled = errors.New("not a message")

// Conn is one connection. Send is safe for concurrent use; Receive is for one
// goroutine at a time.
type Conn struct {
	conn net.Conn
	in   *bufio.Reader
	mu   sync.Mutex // serializes writes
}

// sendTimeout bounds a write to a process that no longer reads.
const sendTimeout = 10 * time.Second

// Dial connects to the supervisor behind path and agrees on a version.
func Dial(path string, h Hello) (*Conn, error) {
	conn, err := net.DialTimeout("unix", path, 2*time.Second)
	if err != nil {
		return nil, fmt.Errorf("control: connect: %w", err)
	}
	return Greet(conn, h)
}

// Greet is [Dial] for an existing connection. It takes responsibility for conn,
// even when it fails.
func Greet(conn net.Conn, h Hello) (*Conn, error) {
	c := &Conn{conn: conn, in: bufio.NewReader(conn)}
	if _, err := c.greet(h); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// Accept greets a process that has connected. It takes responsibility for conn,
// even when it fails.
func Accept(conn net.Conn) (*Conn, *Hello, error) {
	c := &Conn{conn: conn, in: bufio.NewReader(conn)}
	h, err := c.greet(Hello{Role: roleSupervisor})
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return c, h, nil
}

// greet sends and receives at the same time, so that it also works on
// unbuffered connections.
func (c *Conn) greet(mine Hello) (*Hello, error) {
	mine.Protocol, mine.MinProtocol = versions()
	if mine.PID == 0 {
		mine.PID = os.Getpid()
	}
	c.conn.SetReadDeadline(time.Now().Add(sendTimeout))
	defer c.conn.SetReadDeadline(time.Time{})
	sent := make(chan error, 1)
	go func() { sent <- c.Send(greeting{typeHello, &mine}) }()
	var theirs greeting
	err := c.Receive(&theirs)
	if err != nil && !errors.Is(err, ErrGarbled) {
		c.conn.Close() // or Send might wait for a reader that never comes
	}
	if sendErr := <-sent; sendErr != nil && err == nil {
		err = sendErr
	}
	switch {
	case err != nil:
		return nil, err
	case theirs.Type != typeHello || theirs.Hello == nil:
		return nil, errors.New("control: the other process does not speak this protocol")
	case theirs.Hello.MinProtocol > mine.Protocol || theirs.Hello.Protocol < mine.MinProtocol:
		return nil, &VersionError{theirs.Hello.Protocol, theirs.Hello.MinProtocol}
	}
	return theirs.Hello, nil
}

// Send writes one message. A connection whose other end does not read is broken
// after sendTimeout: half a message may be on its way.
func (c *Conn) Send(message any) error {
	return c.send(message, time.Now().Add(sendTimeout))
}

// sendPatiently is Send without a limit.
func (c *Conn) sendPatiently(message any) error { return c.send(message, time.Time{}) }

func (c *Conn) send(message any, deadline time.Time) error {
	b, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("control: encode: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.SetWriteDeadline(deadline)
	if _, err := c.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("control: send: %w", err)
	}
	return nil
}

// Receive waits for the next message, without a limit, and stores it in
// message, a pointer.
func (c *Conn) Receive(message any) error {
	line, err := c.in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("control: receive: %w", err)
	}
	if err := json.Unmarshal(line, message); err != nil {
		return fmt.Errorf("control: receive: %w: %w", ErrGarbled, err)
	}
	return nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.conn.Close() }
