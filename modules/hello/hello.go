// Package hello is a module that answers a constant. It shows new code: edit
// the message, save, ask again.
package hello

import (
	"context"
	"fmt"
	"net/http"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/modules"
)

const message = "Hello, world"

// Hello answers GET / with the message.
type Hello struct{}

var _ http.Handler = (*Hello)(nil)

// New makes the module.
func New() modules.Module { return &Hello{} }

// Initialize has nothing to do.
func (h *Hello) Initialize(context.Context, *eventbus.Bus, modules.Config) error { return nil }

// Shutdown has nothing to give back.
func (h *Hello) Shutdown(context.Context) error { return nil }

func (h *Hello) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "hello: only GET is understood", http.StatusMethodNotAllowed)
		return
	}
	fmt.Fprintln(w, message)
}
