// Package topics holds the event topics that more than one module uses. The
// ones here are published by the framework; modules add theirs.
package topics

import "example.org/orchestrator/app/eventbus"

var (
	// ModuleReloaded is published in the new generation, after the commit,
	// for each module whose code or configuration changed.
	ModuleReloaded = eventbus.NewTopic[Module]("module.reloaded")

	// ModuleReloadFailed is published in the old generation, after the
	// rollback or the failed build, for each module that was to change.
	ModuleReloadFailed = eventbus.NewTopic[Module]("module.reload_failed")

	// ModuleRolledBack is published in the old generation when a new one failed
	// after its commit. What modules did since the commit is gone, unless the new
	// one handed it back.
	ModuleRolledBack = eventbus.NewTopic[Module]("module.rolled_back")

	// AppReloaded is published once per successful reload, after ModuleReloaded.
	AppReloaded = eventbus.NewTopic[App]("app.reloaded")

	// AppReloadFailed is published once per failed reload, after ModuleReloadFailed.
	AppReloadFailed = eventbus.NewTopic[App]("app.reload_failed")
)

// Module says what a reload meant for one module.
type Module struct {
	Name       string `json:"name"`
	Generation int    `json:"generation"`      // the generation that was reached or tried
	Stage      string `json:"stage,omitempty"` // where it failed
	Error      string `json:"error,omitempty"`
}

// App says how a reload went as a whole.
type App struct {
	Generation int      `json:"generation"` // the generation that was reached or tried
	Outcome    string   `json:"outcome"`
	Modules    []string `json:"modules"` // names of the modules that changed
	Stage      string   `json:"stage,omitempty"`
	Error      string   `json:"error,omitempty"`

	PauseMS   float64 `json:"pause_ms"`  // time in which no request was answered
	Held      int     `json:"held"`      // connections that waited during the pause
	Moved     int     `json:"moved"`     // connections that moved to the new generation
	Forwarded int     `json:"forwarded"` // connections that stay; their requests are forwarded
	Cancelled int     `json:"cancelled"` // requests and connections that were cancelled
}
