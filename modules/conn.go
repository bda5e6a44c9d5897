package modules

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
)

// ErrMoving is returned by reads on a [Conn] when a reload begins or the
// program ends; it is also the cancellation cause of the handler's context. A
// handler that returns it hands the connection on.
var ErrMoving = errors.New("modules: the connection is moving to the next generation")

// ErrReloading is the cancellation cause of a request's context when a reload
// stops waiting for the request.
var ErrReloading = errors.New("modules: the request was cancelled by a reload")

// ConnHandler modules have connections of their own: those accepted at the
// module's listen address in main.yaml, and those taken with [Hijack].
type ConnHandler interface {
	// HandleConn serves one connection. It returns [ErrMoving], wrapped or not,
	// to hand it on: HandleConn of the next generation, or of this one if the
	// reload fails, is then called with the same connection, the bytes kept for
	// it, and every byte that was read but not marked as handled. After any
	// other result the connection is closed.
	//
	// A loop that returns the error of a read does the right thing. One that
	// waits for something else returns context.Cause(ctx) when ctx ends.
	//
	// A Conn may still be written to after its handler has handed it on, until
	// Shutdown returns. So a module that sends to many connections must not
	// forget one because of ErrMoving. Connections that have moved are not read
	// until the handlers of all of them are reading, or a second has passed.
	HandleConn(ctx context.Context, c Conn) error
}

// Conn is a connection that outlives the code that handles it. Within one
// process the same connection is always the same Conn, so it can be a key.
//
// Read returns [ErrMoving] when a reload begins, even if there is more to read.
// What has been read must be marked as handled; see Mark.
//
// Write writes all of its argument, or queues it for the next generation.
// Output that the client has not received when a reload begins moves along, up
// to 1 MiB; a client with more to receive is disconnected. Deadlines do not
// move.
//
// A connection with more than 1 MiB read and not marked cannot move: it ends
// with its generation.
type Conn interface {
	net.Conn

	// CloseWrite tells the client that no more output follows.
	CloseWrite() error

	// ReadLine returns the next line without its end, at most 64 KiB, and marks
	// it. At the end of the connection it returns what is left, with io.EOF.
	// When a reload begins it returns [ErrMoving], even if there are more
	// lines.
	ReadLine() (string, error)

	// Mark says that everything read so far has been handled. Call it after
	// each complete message: what was read since the last Mark is read again by
	// the next handler.
	Mark()

	// Keep replaces what the next handler gets from Kept, at most 64 KiB.
	Keep([]byte) error

	// Kept returns what this handler or an earlier one kept last; nil at first.
	Kept() []byte
}

// Hijack takes the connection of a request from the HTTP server, as
// http.Hijacker does, so that it can move. The caller answers the request on
// it. Once ServeHTTP has returned, HandleConn is called with it, as with any
// other connection of the module, and again in the next generation.
//
// It fails for HTTP/2. It also fails for connections that cannot move, such as
// those with TLS, and closes them.
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
