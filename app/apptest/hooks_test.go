package apptest

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"example.org/orchestrator/app/internal/contract"
)

var update = flag.Bool("update", false, "write the table of hooks into docs/MODULES.md")

// TestEveryHookHasACheck in the kit.
func TestEveryHookHasACheck(t *testing.T) {
	for _, h := range contract.Hooks {
		if !slices.ContainsFunc(checks, func(c check) bool {
			return slices.ContainsFunc(c.of, func(of contract.Hook) bool { return of.Name == h.Name })
		}) {
			t.Errorf("no check is about %s", h.Name)
		}
	}
}

// TestEveryHookIsInTheDocs: the table in the docs is that of package contract.
// With -update it is written.
func TestEveryHookIsInTheDocs(t *testing.T) {
	const file, begin, end = "../../docs/MODULES.md", "<!-- hooks -->\n", "<!-- end -->"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), begin)
	have, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", file)
	}
	if have == contract.Table() {
		return
	}
	if !*update {
		t.Fatalf("the table in %s is not that of package contract: go test ./app/apptest -run Docs -update", file)
	}
	if err := os.WriteFile(file, []byte(head+begin+contract.Table()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}
