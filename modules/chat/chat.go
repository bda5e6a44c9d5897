// Package chat is a module that passes each line from a client to every other
// client. It shows live connections that survive: clients stay connected
// through any number of reloads and miss no line.
package chat

import (
	"context"
	"errors"
	"sync"
	"time"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/modules"
)

// patience is how long a write to a client may block before it is disconnected.
const patience = 5 * time.Second

// Chat passes lines on. Its clients connect to the module's listen address.
type Chat struct {
	mu      sync.Mutex // guards clients
	clients map[modules.Conn]struct{}
}

var _ modules.ConnHandler = (*Chat)(nil)

// New makes the module, without clients.
func New() modules.Module { return &Chat{clients: map[modules.Conn]struct{}{}} }

// Initialize has nothing to do.
func (c *Chat) Initialize(context.Context, *eventbus.Bus, modules.Config) error { return nil }

// Shutdown has nothing to give back: connections are the framework's.
func (c *Chat) Shutdown(context.Context) error { return nil }

// HandleConn serves one client.
func (c *Chat) HandleConn(_ context.Context, conn modules.Conn) error {
	c.mu.Lock()
	c.clients[conn] = struct{}{}
	c.mu.Unlock()
	for {
		line, err := conn.ReadLine()
		if err != nil {
			if !errors.Is(err, modules.ErrMoving) { // a client that moves stays in the chat
				c.leave(conn)
			}
			return err
		}
		c.tell(conn, line)
	}
}

// tell passes a line on to every other client.
func (c *Chat) tell(from modules.Conn, line string) {
	c.mu.Lock()
	others := make([]modules.Conn, 0, len(c.clients))
	for conn := range c.clients {
		if conn != from {
			others = append(others, conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range others {
		conn.SetWriteDeadline(time.Now().Add(patience))
		if _, err := conn.Write([]byte(line + "\n")); err != nil {
			c.leave(conn)
			conn.Close()
		}
	}
}

func (c *Chat) leave(conn modules.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.clients, conn)
}
