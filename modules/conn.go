package modules

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// ErrMoving ends the reads of a [Conn] whose generation is about to be
// replaced, or ends with the program, and is the cause of its handler's
// context. A handler that returns it hands the connection on.
var ErrMoving = errors.New("modules: the connection moves to the next generation")

// ErrReloading is the cause of a request's cancelled context when a reload
// would wait for it no longer.
var ErrReloading = errors.New("modules: the request was cancelled by a reload")

// ConnHandler modules have connections of their own: those of the address
// that main.yaml names as the module's listen, and those of [Hijack].
type ConnHandler interface {
	// HandleConn serves one connection. It returns [ErrMoving], wrapped or
	// not, to hand it on: then HandleConn of the next generation, or of this
	// one if the reload fails, is called with the same connection, with what
	// it kept, and with every byte that was read and not marked as handled.
	// With any other result the connection is closed.
	//
	// A loop that returns the error of a read does the right thing. One that
	// waits for something else returns context.Cause(ctx) when ctx ends.
	//
	// A Conn may be written to after its handler has handed it on, until
	// Shutdown has returned: so a module that sends to many must not forget a
	// connection because of ErrMoving. Reads of connections that have moved
	// begin when the handlers of all of them are reading.
	HandleConn(ctx context.Context, c *Conn) error
}

// Stream is what a framework gives a [Conn] to stand on. Its methods are
// described there.
type Stream interface {
	net.Conn
	CloseWrite() error
	ReadLine() (string, error)
	Mark()
	Keep([]byte) error
	Kept() []byte
	Facade(first func() any) any
}

// Conn is a connection that outlives the code that handles it.
//
// Output that the client has not taken when a reload begins goes along, up to
// 1 MiB; a client that leaves more untaken is cut off. A connection of which
// more than 1 MiB was read without a Mark cannot move: it ends with its
// generation.
type Conn struct{ stream Stream }

var _ net.Conn = (*Conn)(nil)

// NewConn is for the framework and for tests of modules. Of one stream, it
// always returns the same.
func NewConn(s Stream) *Conn {
	return s.Facade(func() any { return &Conn{s} }).(*Conn)
}

// Read reads into p. When a reload begins it returns [ErrMoving], however much
// there is to read. What it returns has to be marked, see [Conn.Mark].
func (c *Conn) Read(p []byte) (int, error) { return c.stream.Read(p) }

// ReadLine returns the next line without its end, at most 64 KiB, and marks
// it. At the end of the connection it returns what is left, with io.EOF. When
// a reload begins it returns [ErrMoving], however many lines there are to read.
func (c *Conn) ReadLine() (string, error) { return c.stream.ReadLine() }

// Mark says that all that was read so far has been handled: it is called
// after each complete message. What was read since the last Mark is read
// again by the next handler.
func (c *Conn) Mark() { c.stream.Mark() }

// Keep replaces what the next handler gets from [Conn.Kept], at most 64 KiB.
func (c *Conn) Keep(b []byte) error { return c.stream.Keep(b) }

// Kept is what this handler, or the one before it, has kept; nil at first.
func (c *Conn) Kept() []byte { return c.stream.Kept() }

// Write writes all of p, or queues it for the next generation.
func (c *Conn) Write(p []byte) (int, error) { return c.stream.Write(p) }

// Close ends the connection, whatever its handler returns afterwards.
func (c *Conn) Close() error { return c.stream.Close() }

// CloseWrite tells the client that nothing more comes.
func (c *Conn) CloseWrite() error { return c.stream.CloseWrite() }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.stream.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.stream.RemoteAddr() }

// SetDeadline implements net.Conn. Deadlines do not move.
func (c *Conn) SetDeadline(t time.Time) error { return c.stream.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.stream.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.stream.SetWriteDeadline(t) }

// Hijack takes the connection of a request from the HTTP server, as
// http.Hijacker does, so that it can move. The caller answers the request on
// it; when ServeHTTP has returned, the module's HandleConn is called with it,
// as for any other connection of the module, and in the next generation again.
//
// It fails for HTTP/2, and closes connections that cannot move, such as those
// of TLS.
func Hijack(w http.ResponseWriter) (*Conn, error) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("modules: hijack: %w", err)
	}
	movable, ok := c.(interface{ Movable(unread []byte) net.Conn })
	if !ok {
		c.Close()
		return nil, fmt.Errorf("modules: hijack: a connection of this kind (%T) cannot move", c)
	}
	unread, _ := rw.Reader.Peek(rw.Reader.Buffered())
	s, ok := movable.Movable(unread).(Stream)
	if !ok {
		c.Close()
		return nil, errors.New("modules: hijack: the module has no HandleConn, or the request is not its own")
	}
	return NewConn(s), nil
}
