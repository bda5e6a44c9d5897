package contract_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/modules"
)

// TestBound counts the hooks that a process may call one after the other.
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

// TestHooks_haveAllOfTheContract: every interface of package modules that a
// module can implement is in the table.
func TestHooks_haveAllOfTheContract(t *testing.T) {
	for _, part := range []reflect.Type{
		reflect.TypeFor[modules.Module](), reflect.TypeFor[modules.Stateful](), reflect.TypeFor[modules.Preparer](),
		reflect.TypeFor[modules.HealthChecker](), reflect.TypeFor[modules.Runner](), reflect.TypeFor[modules.Dependent](),
		reflect.TypeFor[modules.ConnHandler](),
	} {
		for m := range part.NumMethod() {
			found := false
			for _, h := range contract.Hooks {
				found = found || h.Part == part && h.Method == part.Method(m).Name
			}
			if !found {
				t.Errorf("the table has no row for %v.%s", part, part.Method(m).Name)
			}
		}
	}
}
