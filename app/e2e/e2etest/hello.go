//go:build unix

package e2etest

import (
	"strings"
	"testing"
)

// BinaryProject starts a program without hot reload, and returns two builds to
// reload to: one like the running one, and one with a hello that does not start.
func BinaryProject(t *testing.T) (p *Project, good, bad string) {
	t.Helper()
	p = New(t)
	p.Write("config/main.yaml", strings.Replace(StandardConfig, "hot_reload: true", "hot_reload: false", 1))
	good = p.Variant("good", map[string]string{"modules/hello/hello.go": strings.Replace(p.Read("modules/hello/hello.go"), "Hello, world", "Hello, moon", 1)})
	bad = p.Variant("bad", map[string]string{"modules/hello/hello.go": BrokenHello("", "", "", `return fmt.Errorf("no database")`, "")})
	p.StartServing()
	return p, good, bad
}

// BrokenHello returns the hello module with this code in the places named.
func BrokenHello(imports, top, factory, initialize, methods string) string {
	return `package hello

import (
	"context"
	"fmt"
	"net/http"
` + imports + `
	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/modules"
)

const message = "broken"

type Hello struct{}

` + top + `

func New() modules.Module {
	` + factory + `
	return &Hello{}
}

func (h *Hello) Initialize(ctx context.Context, _ *eventbus.Bus, _ modules.Config) error {
	` + initialize + `
	return nil
}

func (h *Hello) Shutdown(context.Context) error { return nil }

func (h *Hello) ServeHTTP(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, message) }

` + methods + "\n"
}

// Says returns the source of hello with another message.
func Says(p *Project, text string) string {
	source := p.Read("modules/hello/hello.go")
	before, rest, _ := strings.Cut(source, `const message = "`)
	_, after, _ := strings.Cut(rest, `"`)
	return before + `const message = "` + text + `"` + after
}
