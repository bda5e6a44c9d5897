package worker

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/app/internal/serve"
	"example.org/orchestrator/handoff"
)

// forwardOwner is the owner, in a handoff, of a connection that carries
// forwarded requests. HTTP connections have no owner; all other owners are
// modules.
const forwardOwner = "@forward"

func ownerOf(d serve.Detached) string {
	if d.Kind == serve.KindForward {
		return forwardOwner
	}
	return d.Owner
}

// outgoing returns conns in the form that a handoff passes on.
func outgoing(conns []serve.Detached) []handoff.Conn {
	out := make([]handoff.Conn, 0, len(conns))
	for _, c := range conns {
		out = append(out, handoff.Conn{Conn: c.Conn, ConnInfo: handoff.ConnInfo{Owner: ownerOf(c), Unread: c.Unread, Unsent: c.Unsent, Kept: c.Kept, LeftMS: c.Left.Milliseconds(), Lenient: c.Lenient}})
	}
	return out
}

// incoming returns conns in the form that a server adopts.
func incoming(conns []handoff.Conn) []serve.Detached {
	in := make([]serve.Detached, 0, len(conns))
	for _, c := range conns {
		d := serve.Detached{Conn: c.Conn, Unread: c.Unread, Unsent: c.Unsent, Kept: c.Kept, Left: time.Duration(c.LeftMS) * time.Millisecond, Lenient: c.Lenient}
		switch c.Owner {
		case "":
		case forwardOwner:
			d.Kind = serve.KindForward
		default:
			d.Kind, d.Owner = serve.KindStream, c.Owner
		}
		in = append(in, d)
	}
	return in
}

// maxMoving bounds the bytes that move with all connections together.
const maxMoving = 256 << 20

// split selects the connections that move to another process with n free
// descriptors. Those of modules move first: HTTP can be served from here. n < 0
// is no limit. Beyond maxMoving bytes only connections move that bring none.
func split(conns []serve.Detached, n int) (move, stay []serve.Detached) {
	owned, web := make([]serve.Detached, 0, len(conns)), []serve.Detached(nil)
	for _, c := range conns {
		if c.Kind == serve.KindHTTP {
			web = append(web, c)
		} else {
			owned = append(owned, c)
		}
	}
	bytes := 0
	for _, c := range append(owned, web...) {
		size := len(c.Unread) + len(c.Unsent) + len(c.Kept)
		if n >= 0 && len(move) >= n || size > 0 && bytes+size > maxMoving {
			stay = append(stay, c)
			continue
		}
		bytes += size
		move = append(move, c)
	}
	return move, stay
}

// forwarding is how requests on pinned connections reach the candidate.
type forwarding struct {
	handler http.Handler
	near    net.Conn
	far     handoff.Conn
}

// newForwarding makes a connection to the candidate, which gets the far end.
func newForwarding() (*forwarding, error) {
	near, far, err := serve.Pair()
	if err != nil {
		return nil, err
	}
	h, err := serve.NewForwarder(near)
	if err != nil {
		far.Close()
		return nil, err
	}
	return &forwarding{
		handler: h,
		near:    near,
		far:     handoff.Conn{Conn: far, ConnInfo: handoff.ConnInfo{Owner: forwardOwner}},
	}, nil
}

// errNoConns ends a connection if this generation does not have its module, or
// the module handles no connections.
var errNoConns = errors.New("the module does not handle connections any more")

// handleConn makes a module handle one of its connections. If the module is
// down, the connection waits until it runs again.
func (r *routes) handleConn(ctx context.Context, module string, st *serve.Stream) error {
	for {
		h, ok := r.table.Load().conns[module]
		if !ok {
			return errNoConns
		}
		if h != nil {
			return contract.Protect("HandleConn", func() error { return h.HandleConn(ctx, st) })
		}
		st.Ready() // the other streams need not wait for it
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// close closes a forwarding that was not used.
func (f *forwarding) close() {
	if f != nil {
		f.far.Close()
		f.near.Close()
	}
}
