package client

import (
	"encoding/json"
	"time"
)

// State is what a program is doing.
type State string

// All states of a program.
const (
	Starting  State = "starting" // nothing serves yet, or again after a crash
	Serving   State = "serving"
	Reloading State = "reloading" // an upgrade is under way; during the build it is still serving
	Degraded  State = "degraded"  // it serves, but a module is down
	Stopping  State = "stopping"
)

// Status is what `orchestrator status` shows. New code answers its first
// requests a moment before the supervisor learns that it serves; until then the
// state is reloading and the generation is the old one.
type Status struct {
	Name          string   `json:"name"`
	Version       string   `json:"version"`
	State         State    `json:"state"`
	Generation    int      `json:"generation"`
	PID           int      `json:"pid"` // the worker's
	SupervisorPID int      `json:"supervisor_pid"`
	Build         string   `json:"build"`
	Config        string   `json:"config"` // absolute path of the configuration file
	HotReload     bool     `json:"hot_reload"`
	Listen        []string `json:"listen"` // addresses of HTTP
	Modules       []Module `json:"modules"`
	LastReload    *Outcome `json:"last_reload"`
	LastCrash     *Crash   `json:"last_crash"`

	// Goroutines is the number of goroutines of the serving worker, after a
	// garbage collection.
	Goroutines int `json:"goroutines,omitempty"`
}

// ModuleState is what a module is doing.
type ModuleState string

// All states of a module.
const (
	ModuleRunning ModuleState = "running"
	ModuleFailed  ModuleState = "failed" // it answers 503 and is started again from time to time
)

// Module is one module's line in a status.
type Module struct {
	Name       string      `json:"name"`
	State      ModuleState `json:"state"`
	Generation int         `json:"generation"` // the generation in which its code or configuration last changed
	Stateful   bool        `json:"stateful,omitempty"`
	Listen     string      `json:"listen,omitempty"` // address of its own connections
	Error      string      `json:"error,omitempty"`  // why it is not running
}

// Crash describes a serving generation that died, and what replaced it.
type Crash struct {
	Time       time.Time `json:"time"`
	Generation int       `json:"generation"`
	Error      string    `json:"error"`
	Serving    int       `json:"serving"` // the generation that replaced it, 0 for none yet
	Build      string    `json:"build"`   // build of the replacement
	Older      bool      `json:"older"`   // the replacement runs an older build than the one that crashed
	Lost       []string  `json:"lost"`    // modules whose state is gone
}

// Event is one event of the program's bus. The supervisor numbers events in
// the order in which they reach it.
type Event struct {
	Seq        int64           `json:"seq"`
	Time       time.Time       `json:"time"`
	Generation int             `json:"generation"`
	Topic      string          `json:"topic"`
	Data       json.RawMessage `json:"data"`
}
