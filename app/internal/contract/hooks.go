// Package contract is what the framework knows of the contract of package
// modules: one table of all hooks, the checks of what authors write, and the
// encoding of states. Authors of modules never see it.
package contract

import (
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"time"

	"example.org/orchestrator/modules"
)

// Order is the order in which the same hook of several modules is called.
type Order string

// All orders.
const (
	StartOrder   Order = "start order"
	ReverseOrder Order = "reverse order"
	AnyOrder     Order = "any order"
)

// Side is the process that calls a hook during a reload.
type Side string

// All sides.
const (
	Old       Side = "old"
	Candidate Side = "candidate"
	Serving   Side = "whichever serves"
)

// Hook is a call that the framework makes into a module, or something it does
// with what a call has returned.
type Hook struct {
	Name     string       // name of the method, or of what is done with its result
	Method   string       // method that marks the part
	Part     reflect.Type // the interface that has the method
	Stage    string       // stage of a reload in which it is called; "" for at any time
	Order    Order
	Side     Side
	Deadline bool // each call is bounded by app.hook_timeout
	What     string
}

// The hooks. Names, stages, checks, calls and all deadlines follow from this
// table, and so does the one in docs/MODULES.md.
var (
	Settings    = Hook{"Settings", "Settings", reflect.TypeFor[modules.Configured](), "config", AnyOrder, Candidate, false, "points to the settings, which are stored there and checked"}
	DependsOn   = Hook{"DependsOn", "DependsOn", reflect.TypeFor[modules.Dependent](), "config", AnyOrder, Candidate, false, "names the modules that start before this one"}
	State       = Hook{"State", "State", reflect.TypeFor[modules.Stateful](), "config", AnyOrder, Candidate, false, "describes what survives; asked of fresh values, and after Shutdown"}
	Prepare     = Hook{"Prepare", "Prepare", reflect.TypeFor[modules.Preparer](), "prepare", StartOrder, Candidate, true, "does what is slow or may fail and needs nothing exclusive"}
	RunEnds     = Hook{"Run ends", "Run", reflect.TypeFor[modules.Runner](), "shutdown", AnyOrder, Old, true, "all of them return, together"}
	Shutdown    = Hook{"Shutdown", "Shutdown", reflect.TypeFor[modules.Module](), "shutdown", ReverseOrder, Old, true, "gives back everything exclusive"}
	Subscribers = Hook{"event subscribers", "Shutdown", reflect.TypeFor[modules.Module](), "shutdown", ReverseOrder, Old, true, "finish the event they are at"}
	Export      = Hook{"the export of its state", "State", reflect.TypeFor[modules.Stateful](), "export", StartOrder, Old, true, "the state is encoded"}
	Restore     = Hook{"the restore of its state", "State", reflect.TypeFor[modules.Stateful](), "restore", StartOrder, Candidate, true, "the state is decoded into a fresh value"}
	Initialize  = Hook{"Initialize", "Initialize", reflect.TypeFor[modules.Module](), "initialize", StartOrder, Candidate, true, "starts the module"}
	Healthy     = Hook{"Healthy", "Healthy", reflect.TypeFor[modules.HealthChecker](), "healthy", StartOrder, Candidate, true, "may veto the reload; asked again in the probation"}
	Run         = Hook{"Run", "Run", reflect.TypeFor[modules.Runner](), "", AnyOrder, Serving, false, "works in the background until a hold ends its context"}
	ServeHTTP   = Hook{"ServeHTTP", "ServeHTTP", reflect.TypeFor[http.Handler](), "", AnyOrder, Serving, false, "answers requests below the module's path"}
	HandleConn  = Hook{"HandleConn", "HandleConn", reflect.TypeFor[modules.ConnHandler](), "", AnyOrder, Serving, false, "handles a connection of the module's own"}
)

// Hooks is the table, in the order in which a reload calls them; those of a generation that serves come last.
var Hooks = []Hook{Settings, DependsOn, State, Prepare, RunEnds, Shutdown, Subscribers, Export, Restore, Initialize, Healthy, Run, ServeHTTP, HandleConn}

// once names the hooks that are called once for all modules together.
var once = map[string]bool{RunEnds.Name: true}

// Bound returns the longest time that n modules may spend in these hooks, if
// each call takes its whole deadline. It bounds the wait for a process that
// does not keep its own deadlines.
func Bound(n int, deadline time.Duration, hooks ...Hook) time.Duration {
	calls := 0
	for _, h := range hooks {
		switch {
		case !h.Deadline:
			panic("contract: " + h.Name + " has no deadline to count")
		case once[h.Name]:
			calls++
		default:
			calls += n
		}
	}
	return time.Duration(calls) * deadline
}

// InStage returns the hooks with a deadline that one side calls in these
// stages.
func InStage(side Side, stages ...string) (hooks []Hook) {
	for _, stage := range stages {
		for _, h := range Hooks {
			if h.Deadline && h.Stage == stage && h.Side == side {
				hooks = append(hooks, h)
			}
		}
	}
	return hooks
}

// Table returns the hooks as Markdown.
func Table() string {
	var b strings.Builder
	b.WriteString("| hook | marked by | called in stage | by | order | deadline | what it is for |\n|---|---|---|---|---|---|---|\n")
	for _, h := range Hooks {
		stage, deadline := h.Stage, "none"
		if stage == "" {
			stage = "–"
		}
		if h.Deadline {
			deadline = "`app.hook_timeout`"
		}
		if h.Name == RunEnds.Name {
			deadline = "`app.run_timeout`"
		}
		fmt.Fprintf(&b, "| %s | `%s.%s` | %s | %s | %s | %s | %s |\n", h.Name, h.Part.String(), h.Method, stage, h.Side, h.Order, deadline, h.What)
	}
	return b.String()
}
