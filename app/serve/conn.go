package serve

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// serverBuffer is the size of net/http's read buffer. A read that asks for
// all of it has nothing buffered behind it; TestHoldDetachesAndReleaseGoesOn pins
// this.
const serverBuffer = 4096

// errDetached ends the server's read of a connection that is being detached.
// It is a timeout because net/http answers other errors with a 400.
var errDetached net.Error = detachedError{}

type detachedError struct{}

func (detachedError) Error() string   { return "serve: connection detached" }
func (detachedError) Timeout() bool   { return true }
func (detachedError) Temporary() bool { return true }

// socket is what the framework can accept, move and interrupt.
type socket interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
	io.ReaderFrom
}

// conn stands between the HTTP server and a socket. It knows whether the
// server waits for a new request with nothing of it read, and only then can
// it be detached: the server's read returns an error, the server closes the
// conn and forgets it, and the socket stays open with every byte the client
// has sent or will send.
type conn struct {
	socket
	server *Server

	mu        sync.Mutex
	fresh     bool // no byte of the next request was read: StateNew or StateIdle, and no read since
	idle      bool // StateIdle, as opposed to a new connection
	deadlines int  // SetReadDeadline calls since StateIdle
	waiting   bool // a Read that may be interrupted is outstanding
	detached  bool
	broken    bool // closed by a cut: nothing to detach
}

// movable tells whether the server waits for a new request with an empty
// buffer. Anything it is not sure of counts as busy. c.mu is held.
func (c *conn) movable(size int) bool {
	return c.fresh && size == serverBuffer && (!c.idle || c.deadlines == 1)
}

func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	movable := c.movable(len(p))
	if movable && c.server.holding.Load() && !c.broken {
		c.detached = true
		c.mu.Unlock()
		return 0, errDetached
	}
	c.waiting = movable
	c.mu.Unlock()

	n, err := c.socket.Read(p)

	c.mu.Lock()
	defer c.mu.Unlock()
	interrupted := c.waiting && err != nil && errors.Is(err, os.ErrDeadlineExceeded)
	c.waiting = false
	if n > 0 {
		c.fresh = false
		if movable {
			c.socket.SetReadDeadline(time.Time{}) // an interruption may have come too late
		}
		return n, err
	}
	if interrupted && !c.broken {
		c.socket.SetReadDeadline(time.Time{})
		c.detached = true
		return 0, errDetached
	}
	return n, err
}

// interrupt ends the outstanding read if nothing would be lost by it.
func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting {
		c.socket.SetReadDeadline(time.Unix(1, 0))
	}
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadlines++
	return c.socket.SetReadDeadline(t)
}

func (c *conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadlines++
	return c.socket.SetDeadline(t)
}

// state follows the server's ConnState.
func (c *conn) state(s http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s {
	case http.StateIdle:
		c.fresh, c.idle, c.deadlines = true, true, 0
	case http.StateActive, http.StateHijacked:
		c.fresh = false
	}
}

// Close closes the socket, unless the conn was detached: then the server lets
// go of it and the socket lives on.
func (c *conn) Close() error {
	c.mu.Lock()
	detached := c.detached
	c.mu.Unlock()
	if c.server.forget(c, detached) && detached {
		return nil
	}
	return c.socket.Close()
}

// cut closes the socket of a busy conn.
func (c *conn) cut() {
	c.mu.Lock()
	c.broken = true
	c.mu.Unlock()
	c.socket.Close()
}
