// Package counter is a module that counts in memory. It shows state that
// survives: the number goes on through any number of reloads.
package counter

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/modules"
)

// Counter answers GET / with its number; POST / adds one first.
type Counter struct {
	mu    sync.Mutex // guards state
	state state
}

// state is what survives a reload. It is version 1.
type state struct {
	Count int64 `json:"count"`
}

var (
	_ modules.Stateful = (*Counter)(nil)
	_ http.Handler     = (*Counter)(nil)
)

// New makes the module, at zero.
func New() modules.Module { return &Counter{} }

// State is the number.
func (c *Counter) State() modules.State { return modules.State{Version: 1, Value: &c.state} }

// Initialize has nothing to do: the number is already restored.
func (c *Counter) Initialize(context.Context, *eventbus.Bus, modules.Config) error { return nil }

// Shutdown has nothing to give back.
func (c *Counter) Shutdown(context.Context) error { return nil }

func (c *Counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		fmt.Fprintln(w, c.add(0))
	case http.MethodPost:
		fmt.Fprintln(w, c.add(1))
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		http.Error(w, "counter: only GET and POST are supported", http.StatusMethodNotAllowed)
	}
}

// add changes the number by n and returns it.
func (c *Counter) add(n int64) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.Count += n
	return c.state.Count
}
