package app_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rules are the arrows of docs/ARCHITECTURE.md: which package must not import
// what, and why. A name that ends with /... includes all packages below it; "."
// is this whole module. allowed has the exceptions to a rule.
var rules = []struct {
	from, not, why string
	allowed        []string
}{
	{from: "config", not: "./...", why: "the configuration is read by everybody, so it knows nobody"},
	{from: "app/eventbus", not: "./...", why: "modules use the bus, so it knows neither them nor their life"},
	{from: "handoff", not: "./...", why: "what crosses between generations is bytes and descriptors to it"},
	{from: "handoff", not: "net/http", why: "the same"},
	{from: "app/client", not: "./...", why: "whoever talks to a running program needs no part of it", allowed: []string{"app/internal/wire"}},
	{from: "app/internal/wire", not: "./...", why: "a protocol has no opinions; processes of other builds speak it"},
	{from: "app/internal/console", not: "./...", why: "lines are lines, whoever prints them"},
	{from: "app/internal/proc", not: "./...", why: "what starts processes lies below all that needs one"},
	{from: "app/internal/sources", not: "./...", why: "what changed does not depend on who wants to know"},
	{from: "app/internal/serve", not: "./...", why: "sockets and requests need no knowledge of modules or generations"},
	{from: "app/internal/build", not: "./...", why: "a builder knows sources and processes, and nothing else", allowed: []string{"app/internal/proc", "app/internal/sources"}},
	{from: "app/internal/control", not: "./...", why: "messages are data", allowed: []string{"app/client", "modules/topics"}},
	{from: "app/internal/contract", not: "app/...", why: "what is asked of a module does not depend on who asks"},
	{from: "app/internal/contract", not: "handoff", why: "states are values to it; how they cross is another's"},
	{from: "app/internal/supervisor", not: "app/internal/worker", why: "the supervisor runs no module code"},
	{from: "app/internal/supervisor", not: "app/internal/serve", why: "the supervisor serves nobody's requests"},
	{from: "app/internal/supervisor", not: "modules/...", why: "the supervisor runs no module code; topics are data", allowed: []string{"modules/topics"}},
	{from: "app/internal/supervisor", not: "app", why: "arrows point down"},
	{from: "app/internal/supervisor", not: "cmd/...", why: "arrows point down"},
	{from: "app/internal/worker", not: "app/internal/supervisor", why: "a worker knows the supervisor by the control protocol only"},
	{from: "app/internal/worker", not: "app", why: "arrows point down"},
	{from: "app/internal/worker", not: "cmd/...", why: "arrows point down"},
	{from: "app", not: "cmd/...", why: "arrows point down"},
	{from: "app/apptest", not: "app", why: "a module's test sees the contract, as the module does"},
	{from: "modules", not: "app", why: "the contract must not depend on one implementation of it"},
	{from: "modules", not: "handoff", why: "modules own no sockets"},
	{from: "modules/hello", not: "app", why: "a module sees the contract, not the framework"},
	{from: "modules/counter", not: "app", why: "the same"},
	{from: "modules/kv", not: "app", why: "the same"},
	{from: "modules/chat", not: "app", why: "the same"},
	{from: "modules/hello", not: "handoff", why: "modules own no sockets"},
	{from: "modules/counter", not: "handoff", why: "the same"},
	{from: "modules/kv", not: "handoff", why: "the same"},
	{from: "modules/chat", not: "handoff", why: "the same"},
}

// owners has the third-party libraries and the only package that imports each,
// so that each can be replaced in one place.
var owners = map[string]string{
	"github.com/cloudflare/tableflip": "handoff",
	"github.com/fsnotify/fsnotify":    "app/internal/sources",
	"github.com/spf13/cobra":          "cmd",
	"gopkg.in/yaml.v3":                "config",
	"go.uber.org/goleak":              "app/apptest",
	"go.etcd.io/bbolt":                "modules/kv",
	"go.etcd.io/bbolt/errors":         "modules/kv",
	"github.com/gobwas/ws":            "app/e2e/e2etest/fixtures/zoo",
}

// everywhere is a package that all may import: it does nothing except in
// programs for tests.
const everywhere = "handoff/failpoint"

func TestImportsPointDown(t *testing.T) {
	module, imports := packages(t)
	local := func(name string) string { return module + strings.TrimPrefix("/"+name, "/.") }
	matches := func(path, pattern string) bool {
		prefix, below := strings.CutSuffix(pattern, "/...")
		return path == prefix || below && strings.HasPrefix(path, prefix+"/")
	}
	for _, rule := range rules {
		list, ok := imports[local(rule.from)]
		if !ok {
			t.Errorf("a rule is about %s, which does not exist", rule.from)
		}
		not := local(rule.not)
		if rule.not == "net/http" {
			not = rule.not
		}
		for _, path := range list {
			allowed := slices.ContainsFunc(append(rule.allowed, everywhere), func(name string) bool { return path == local(name) })
			if matches(path, not) && !allowed {
				t.Errorf("%s imports %s: %s", rule.from, path, rule.why)
			}
		}
	}
	for from, list := range imports {
		for _, path := range list {
			if strings.HasPrefix(from, local("modules/")) && strings.HasPrefix(path, local("modules/")) && path != local("modules/topics") {
				t.Errorf("%s imports %s: modules call each other through the framework and share topics only", from, path)
			}
			first, _, _ := strings.Cut(path, "/")
			thirdParty := strings.Contains(first, ".") && first != "golang.org" && !matches(path, module+"/...")
			if thirdParty && local(owners[path]) != from && !strings.HasPrefix(from, local("app/e2e/")) {
				t.Errorf("%s imports %s, whose place is %q: each library is imported by one package", from, path, owners[path])
			}
		}
	}
	if !slices.Contains(imports[local("cmd/orchestrator")], local("cmd")) {
		t.Error("go list said nothing of the main package: the test proves nothing")
	}
}

// packages returns the module's path and the imports of each of its packages.
func packages(t *testing.T) (module string, imports map[string][]string) {
	t.Helper()
	imports = map[string][]string{}
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Module", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
			Module     struct{ Path string }
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return module, imports
		} else if err != nil {
			t.Fatal(err)
		}
		module, imports[p.ImportPath] = p.Module.Path, p.Imports
	}
}
