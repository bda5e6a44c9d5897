package app

import (
	"orchestrator/app/serve"
	"orchestrator/handoff"
)

// outgoing is conns as a handoff passes them on.
func outgoing(conns []serve.Detached) []handoff.Conn {
	out := make([]handoff.Conn, 0, len(conns))
	for _, c := range conns {
		out = append(out, handoff.Conn{Conn: c.Conn, ConnInfo: handoff.ConnInfo{Unread: c.Unread}})
	}
	return out
}

// incoming is conns as a server adopts them.
func incoming(conns []handoff.Conn) []serve.Detached {
	in := make([]serve.Detached, 0, len(conns))
	for _, c := range conns {
		in = append(in, serve.Detached{Conn: c.Conn, Unread: c.Unread})
	}
	return in
}
