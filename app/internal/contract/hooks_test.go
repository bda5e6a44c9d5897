package contract_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/contract"
)

// TestBound counts the hooks that a process may call in sequence.
func TestBound(t *testing.T) {
	const n, deadline = 4, time.Second
	for _, tt := range []struct {
		name   string
		side   contract.Side
		stages []string
		want   int // deadlines
	}{
		{"preparing", contract.Candidate, []string{"prepare"}, n},
		{"from the states to healthy", contract.Candidate, []string{"restore", "initialize", "healthy"}, 3 * n},
		{"stopping", contract.Old, []string{"shutdown"}, 2*n + 1}, // all Runs end together
		{"exporting", contract.Old, []string{"export"}, n},
		{"serving", contract.Serving, []string{""}, 0},
	} {
		if got, want := contract.Bound(n, deadline, contract.InStage(tt.side, tt.stages...)...), time.Duration(tt.want)*deadline; got != want {
			t.Errorf("%s: %v, want %v", tt.name, got, want)
		}
	}
}

func TestBound_ofAHookWithoutADeadline(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a hook without a deadline was counted")
		}
	}()
	contract.Bound(1, time.Second, contract.Run)
}

// TestHooks_areWhole: each row says everything, once.
func TestHooks_areWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, h := range contract.Hooks {
		if seen[h.Name] || h.Part == nil || h.Order == "" || h.Side == "" || h.What == "" || h.Deadline && h.Stage == "" {
			t.Errorf("%+v", h)
		}
		seen[h.Name] = true
		if _, ok := h.Part.MethodByName(h.Method); !ok {
			t.Errorf("%s: %v has no method %s", h.Name, h.Part, h.Method)
		}
		if !strings.Contains(contract.Table(), "| "+h.Name+" |") {
			t.Errorf("the table has no line for %s", h.Name)
		}
	}
}

// notHooks are the interfaces of package modules that no module implements.
var notHooks = []string{"Carrier", "Conn"}

// TestHooks_haveAllOfTheContract: each method of an interface that stands in
// package modules, and that a module can implement, is in the table.
func TestHooks_haveAllOfTheContract(t *testing.T) {
	files, err := filepath.Glob("../../../modules/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("package modules: %v, %v", files, err)
	}
	methods := 0
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			part, ok := spec.Type.(*ast.InterfaceType)
			if !ok || !spec.Name.IsExported() || slices.Contains(notHooks, spec.Name.Name) {
				return true
			}
			for _, m := range part.Methods.List {
				for _, name := range m.Names {
					methods++
					if !slices.ContainsFunc(contract.Hooks, func(h contract.Hook) bool {
						return h.Part.Name() == spec.Name.Name && h.Method == name.Name
					}) {
						t.Errorf("%s: the table has no row for %s.%s", file, spec.Name.Name, name.Name)
					}
				}
			}
			return true
		})
	}
	inTable := map[string]bool{}
	for _, h := range contract.Hooks {
		if strings.HasSuffix(h.Part.PkgPath(), "/modules") {
			inTable[h.Part.Name()+"."+h.Method] = true
		}
	}
	if methods != len(inTable) {
		t.Errorf("package modules has %d methods, the table %d", methods, len(inTable))
	}
}
