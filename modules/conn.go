package modules

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
)

// ErrMoving is what reads on a [Conn] return when a reload or the program's end
// begins; it is also the cause of its handler's context. A handler that returns
// it hands the connection on.
var ErrMoving = errors.New("modules: the connection moves to the next generation")

// ErrReloading is the cause of a request's cancelled context when a reload
// does not wait for it any longer.
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
	HandleConn(ctx context.Context, c Conn) error
}

// Conn is a connection that outlives the code that handles it. Within one
// process the same connection is always the same Conn, so it can be a key.
//
// Read returns [ErrMoving] when a reload begins, however much there is to read.
// What it returned has to be marked, see Mark.
//
// Write writes all of its argument, or queues it for the next generation.
// Output that the client has not taken when a reload begins goes along, up to
// 1 MiB; a client that leaves more is disconnected. Deadlines do not move.
//
// A connection of which more than 1 MiB was read without a Mark cannot move: it
// ends with its generation.
type Conn interface {
	net.Conn

	// CloseWrite tells the client that nothing more comes.
	CloseWrite() error

	// ReadLine returns the next line without its end, at most 64 KiB, and
	// marks it. At the end of the connection it returns what is left, with
	// io.EOF. When a reload begins it returns [ErrMoving], however many lines
	// there are to read.
	ReadLine() (string, error)

	// Mark says that all that was read so far has been handled: it is called
	// after each complete message. What was read since the last Mark is read
	// again by the next handler.
	Mark()

	// Keep replaces what the next handler gets from Kept, at most 64 KiB.
	Keep([]byte) error

	// Kept is what this handler, or the one before it, has kept; nil at first.
	Kept() []byte
}

// Hijack takes the connection of a request from the HTTP server, as
// http.Hijacker does, so that it can move. The caller answers the request on
// it; when ServeHTTP has returned, the module's HandleConn is called with it,
// as for any other connection of the module, and in the next generation again.
//
// It fails for HTTP/2, and closes connections that cannot move, such as those
// of TLS.
func Hijack(w http.ResponseWriter) (Conn, error) {
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
	conn, ok := movable.Movable(unread).(Conn)
	if !ok {
		c.Close()
		return nil, errors.New("modules: hijack: the module has no HandleConn, or the request is not its own")
	}
	return conn, nil
}
