package contract_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/modules"
)

// plain implements what is mandatory.
type plain struct{}

func (*plain) Initialize(context.Context, *eventbus.Bus, modules.Config) error { return nil }
func (*plain) Shutdown(context.Context) error                                  { return nil }

type wrongState struct{ plain }

func (*wrongState) State() any { return nil }

type wrongRun struct{ plain }

func (*wrongRun) Run() {}

type wrongHTTP struct{ plain }

func (*wrongHTTP) ServeHTTP(*http.Request) {}

type everything struct {
	plain
	kept struct{ N int }
}

func (e *everything) State() modules.State                        { return modules.State{Value: &e.kept} }
func (*everything) Run(context.Context) error                     { return nil }
func (*everything) Healthy(context.Context) error                 { return nil }
func (*everything) DependsOn() []string                           { return nil }
func (*everything) Prepare(context.Context, modules.Config) error { return nil }
func (*everything) ServeHTTP(http.ResponseWriter, *http.Request)  {}

// copies gives its settings away by value.
type copies struct{ plain }

func (*copies) Settings() any { return struct{}{} }

// gathers makes a value for each export.
type gathers struct{ plain }

func (*gathers) State() modules.State { return modules.State{Value: &struct{ N int }{1}} }

func TestWrongSignaturesAreRefused(t *testing.T) {
	for _, tt := range []struct {
		module modules.Module
		want   string // "" if it is fine
	}{
		{&plain{}, ""},
		{&everything{}, ""},
		{&wrongState{}, "method State of *contract_test.wrongState has the signature func() interface {}, but the contract wants func() modules.State"},
		{&wrongRun{}, "method Run of *contract_test.wrongRun has the signature func(), but the contract wants func(context.Context) error"},
		{&wrongHTTP{}, "method ServeHTTP of"},
		{&copies{}, "Settings returns"},
		{&gathers{}, "State points to another value each time"},
	} {
		err := contract.Check(tt.module)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("Check(%T) = %v, want %q", tt.module, err, tt.want)
		}
	}
}

func TestListNamesTheModuleThatIsWrong(t *testing.T) {
	good := modules.Entry{Name: "good", New: func() modules.Module { return &plain{} }}
	for _, tt := range []struct {
		name string
		list modules.List
		want string
	}{
		{"panicking factory", modules.List{good, {Name: "bad", New: func() modules.Module { panic("no") }}}, "modules: bad: factory panicked: no"},
		{"factory without a result", modules.List{good, {Name: "bad", New: func() modules.Module { return nil }}}, "modules: bad: factory returned nil"},
		{"wrong signature", modules.List{good, {Name: "bad", New: func() modules.Module { return &wrongRun{} }}}, "modules: bad: method Run"},
		{"name twice", modules.List{good, good}, "modules: good: the name is empty or given twice"},
	} {
		err := contract.CheckList(tt.list)
		var entry *contract.EntryError
		if !errors.As(err, &entry) || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: Check() = %v, want an EntryError that begins with %q", tt.name, err, tt.want)
		}
	}
	if err := contract.CheckList(modules.List{good}); err != nil {
		t.Errorf("Check of a good list = %v", err)
	}
}

func TestPackage(t *testing.T) {
	if got := contract.Package(&plain{}); got != "example.org/orchestrator/app/internal/contract_test" {
		t.Errorf("Package = %q", got)
	}
}

func TestCallWithoutAFrameworkSaysSo(t *testing.T) {
	var cfg modules.Config
	if _, err := cfg.Call("other", nil); !errors.Is(err, modules.ErrNotRunning) {
		t.Errorf("Call = %v, want ErrNotRunning", err)
	}
}
