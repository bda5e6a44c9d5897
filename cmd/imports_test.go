package cmd_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rules are the arrows of docs/ARCHITECTURE.md: which package may not import
// what, and why. A name that ends with /... means all packages below.
var rules = []struct{ from, not, why string }{
	{"config", "orchestrator/...", "the configuration is read by everybody, so it knows nobody"},
	{"app/eventbus", "orchestrator/...", "modules use the bus, so it knows neither them nor their life"},
	{"handoff", "orchestrator/...", "what crosses between generations is bytes and descriptors to it"},
	{"handoff", "net/http", "the same"},
	{"app/serve", "orchestrator/...", "sockets and requests need no knowledge of modules or generations"},
	{"app/control", "orchestrator/...", "a protocol has no opinions; clients of other builds speak it"},
	{"app/watch", "orchestrator/...", "what changed does not depend on who wants to know"},
	{"app/build", "orchestrator/...", "a builder is told how to run processes and knows nothing else"},
	{"app/supervisor", "orchestrator/app", "the supervisor runs no module code"},
	{"app/supervisor", "orchestrator/modules/...", "the same"},
	{"app/supervisor", "orchestrator/cmd/...", "arrows point down"},
	{"app", "orchestrator/cmd/...", "arrows point down"},
	{"app", "orchestrator/app/supervisor", "a worker knows the supervisor by the control protocol only"},
	{"app/apptest", "orchestrator/app", "a module's test sees the contract, as the module does"},
	{"modules", "orchestrator/app", "the contract must not depend on one implementation of it"},
	{"modules", "orchestrator/handoff", "modules own no sockets"},
	{"modules/hello", "orchestrator/app", "a module sees the contract, not the framework"},
	{"modules/counter", "orchestrator/app", "the same"},
	{"modules/kv", "orchestrator/app", "the same"},
	{"modules/chat", "orchestrator/app", "the same"},
	{"modules/hello", "orchestrator/handoff", "modules own no sockets"},
	{"modules/counter", "orchestrator/handoff", "the same"},
	{"modules/kv", "orchestrator/handoff", "the same"},
	{"modules/chat", "orchestrator/handoff", "the same"},
}

// owners are the third-party libraries and the one package that imports each,
// so that one can be replaced in one place.
var owners = map[string]string{
	"github.com/cloudflare/tableflip": "orchestrator/handoff",
	"github.com/fsnotify/fsnotify":    "orchestrator/app/watch",
	"github.com/spf13/cobra":          "orchestrator/cmd",
	"gopkg.in/yaml.v3":                "orchestrator/config",
	"go.uber.org/goleak":              "orchestrator/app/apptest",
	"go.etcd.io/bbolt":                "orchestrator/modules/kv",
	"go.etcd.io/bbolt/errors":         "orchestrator/modules/kv",
}

func TestImportsPointDown(t *testing.T) {
	imports := map[string][]string{}
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		imports[p.ImportPath] = p.Imports
	}
	matches := func(path, pattern string) bool {
		prefix, below := strings.CutSuffix(pattern, "/...")
		return path == prefix || below && strings.HasPrefix(path, prefix+"/")
	}
	for _, rule := range rules {
		list, ok := imports["orchestrator/"+rule.from]
		if !ok {
			t.Errorf("a rule speaks of %s, which does not exist", rule.from)
		}
		for _, path := range list {
			if matches(path, rule.not) && path != "orchestrator/handoff/failpoint" { // empty but in tests
				t.Errorf("%s imports %s: %s", rule.from, path, rule.why)
			}
		}
	}
	for from, list := range imports {
		for _, path := range list {
			if strings.HasPrefix(from, "orchestrator/modules/") && strings.HasPrefix(path, "orchestrator/modules/") && path != "orchestrator/modules/topics" {
				t.Errorf("%s imports %s: modules call each other through the framework and share topics only", from, path)
			}
			first, _, _ := strings.Cut(path, "/")
			thirdParty := strings.Contains(first, ".") && first != "golang.org"
			if thirdParty && owners[path] != from {
				t.Errorf("%s imports %s, whose place is %q: each library is imported by one package", from, path, owners[path])
			}
		}
	}
	if !slices.Contains(imports["orchestrator/cmd/orchestrator"], "orchestrator/cmd") {
		t.Error("go list told nothing of the main package: the test proves nothing")
	}
}
