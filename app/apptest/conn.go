package apptest

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"example.org/orchestrator/modules"
)

// conn is a modules.Conn whose client is a test.
type conn struct {
	net.Conn
	in *bufio.Reader

	mu     sync.Mutex // guards the fields below
	moving bool
	kept   []byte
}

var _ modules.Conn = (*conn)(nil)

func newConn() (c *conn, client net.Conn) {
	near, far := net.Pipe()
	return &conn{Conn: near, in: bufio.NewReader(near)}, far
}

// move makes all reads return modules.ErrMoving.
func (c *conn) move() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moving = true
	c.Conn.SetReadDeadline(time.Unix(1, 0))
}

// cause returns what a read that failed with err returns.
func (c *conn) cause(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.moving && errors.Is(err, os.ErrDeadlineExceeded) {
		return modules.ErrMoving
	}
	return err
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	return n, c.cause(err)
}

func (c *conn) ReadLine() (string, error) {
	line, err := c.in.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", c.cause(err)
	}
	return strings.TrimRight(line, "\r\n"), err
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.moving {
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) CloseWrite() error { return nil }
func (c *conn) Mark()             {}

func (c *conn) Keep(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = b
	return nil
}

func (c *conn) Kept() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kept
}
