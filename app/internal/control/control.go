// Package control defines what the supervisor and its workers say to each
// other, and what the supervisor and command-line clients say.
//
// Workers report facts; only the supervisor draws conclusions from them. Every
// message is a [Message] on a [wire.Conn].
package control

import (
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/modules/topics"
)

// Message is any message. Type says which field is used.
type Message struct {
	Type string `json:"type"`

	Reload  *client.ReloadRequest `json:"reload,omitempty"`
	Events  *client.EventsRequest `json:"events,omitempty"`
	Stop    *client.StopRequest   `json:"stop,omitempty"`
	Stopped *client.Stopped       `json:"stopped,omitempty"`
	Status  *client.Status        `json:"status,omitempty"`
	Outcome *client.Outcome       `json:"outcome,omitempty"`
	Event   *client.Event         `json:"event,omitempty"`
	Upgrade *Upgrade              `json:"upgrade,omitempty"`
	Serving *Serving              `json:"serving,omitempty"`
	Report  *Report               `json:"report,omitempty"`
	Failure *Failure              `json:"failure,omitempty"`
	Stage   *Stage                `json:"stage,omitempty"`
	Final   *Final                `json:"final,omitempty"`
	Drained *Drained              `json:"drained,omitempty"`
	Signal  string                `json:"signal,omitempty"`
	Follow  bool                  `json:"follow,omitempty"`
	Sockets []Socket              `json:"sockets,omitempty"`
	Error   string                `json:"error,omitempty"`
}

// ExitConfig is the exit code of a worker whose configuration is wrong. That of the
// command line is also that of a Go program that panics.
const ExitConfig = 78

// Types of messages with a client; app/client has the other end.
const (
	TypeReload  = "reload"  // from a client: reload; answered by an outcome
	TypeOutcome = "outcome" // to a client
	TypeEvents  = "events"  // from a client: answered by event messages and an end
	TypeEnd     = "end"
	TypeError   = "error"
	TypeStopped = "stopped" // to a client: the answer to stop, once nothing runs any more

	TypeStatus = "status" // from a client, and to a worker; each answers with the same type
	TypeEvent  = "event"  // to a client, and from a worker
)

// Types of messages to a worker.
const (
	TypeKnown    = "known"    // the first message: the worker counts as alive from here
	TypeUpgrade  = "upgrade"  // to the serving worker: hand over
	TypeCancel   = "cancel"   // to the serving worker: give up the upgrade, unless committed
	TypeExpedite = "expedite" // to a worker that stands by or drains: end that now
	TypeFailure  = "failure"  // to the serving worker: publish that a reload failed
	TypeFollow   = "follow"   // whether to pass on the events of modules
	TypeStop     = "stop"     // also from a client: end gracefully
)

// Types of messages from a worker.
const (
	TypeServing = "serving" // it serves now; with a report if it has taken over
	TypeReport  = "report"  // the upgrade that it was told to make has failed
	TypeStage   = "stage"   // what comes next in an upgrade, and how long it may take
	TypeFinal   = "final"   // its probation is over
	TypeDrained = "drained" // it was replaced, and its last connections are gone
	TypeSockets = "sockets" // its listening sockets, on a connection of their own; sent after known
	TypeSignal  = "signal"  // it got a signal that asks the program to stop
	TypeUnclean = "unclean" // it is about to exit because of a stop, and a module has not shut down properly
	TypeRepair  = "repair"  // it is degraded: hand over to a fresh process of the same build
)

// Upgrade tells the serving worker to hand over to a binary.
type Upgrade struct {
	Binary     string   `json:"binary"` // absolute path
	Generation int      `json:"generation"`
	TimeoutMS  int64    `json:"timeout_ms"`
	Force      bool     `json:"force,omitempty"`      // cancel HTTP requests that do not end in time
	DropState  []string `json:"drop_state,omitempty"` // module names; "*" means all
	Changed    []string `json:"changed,omitempty"`    // import paths of the changed packages and of those that import them
	Unknown    bool     `json:"unknown,omitempty"`    // what changed is not known
	Repair     bool     `json:"repair,omitempty"`     // the same build again
}

// Report is what a worker knows about an upgrade: facts, not a verdict.
type Report struct {
	Generation int                      `json:"generation"`          // the candidate's
	TookOver   bool                     `json:"took_over,omitempty"` // the candidate reports: it serves
	Committed  bool                     `json:"committed,omitempty"` // the old generation reports: the candidate failed after the commit
	Stage      client.Stage             `json:"stage,omitempty"`     // where it failed
	Module     string                   `json:"module,omitempty"`    // module whose hook failed there, if one did
	Error      string                   `json:"error,omitempty"`
	Changed    []string                 `json:"changed,omitempty"`  // modules whose code or configuration changed
	Down       []string                 `json:"down,omitempty"`     // modules that did not start again
	Lost       []string                 `json:"lost,omitempty"`     // modules whose state is gone
	Reverted   []string                 `json:"reverted,omitempty"` // modules whose state was reverted to that of the commit
	StagesMS   map[client.Stage]float64 `json:"stages_ms,omitempty"`
	HoldsMS    []float64                `json:"holds_ms,omitempty"` // of each attempt to hold
	Standby    bool                     `json:"standby,omitempty"`  // the old generation stands by: probation
	Held       int                      `json:"held,omitempty"`
	Moved      int                      `json:"moved,omitempty"`
	Forwarded  int                      `json:"forwarded,omitempty"`
	Cancelled  int                      `json:"cancelled,omitempty"`
	Notes      []string                 `json:"notes,omitempty"`
}

// Serving is what a worker says about itself once it serves.
type Serving struct {
	Name      string            `json:"name"`
	Version   string            `json:"version"`
	HotReload bool              `json:"hot_reload"`
	Listen    []string          `json:"listen"`
	Modules   []client.Module   `json:"modules"`
	Packages  map[string]string `json:"packages"` // module -> import path of its package
	Degraded  bool              `json:"degraded,omitempty"`
	QueueMS   int64             `json:"queue_ms"` // how long clients may wait for a restart after a crash
	StopMS    int64             `json:"stop_ms"`  // the longest that a graceful stop may take
	StartMS   int64             `json:"start_ms"` // the longest that a start may take

	RestartOlderBuild bool `json:"restart_older_build,omitempty"`

	Report *Report `json:"report,omitempty"` // on the upgrade by which it came to serve
}

// Socket describes a listening socket that a worker passes to the supervisor, which
// keeps it in case the worker dies.
type Socket struct {
	Key  string `json:"key"`            // for the generation that takes it
	HTTP bool   `json:"http,omitempty"` // without TLS: whoever connects can be answered
}

// Failure tells the modules about a failed reload. The supervisor has already
// published it.
type Failure struct {
	App        topics.App `json:"app"`
	RolledBack bool       `json:"rolled_back,omitempty"` // the generation had taken over
}

// Stage is a part of an upgrade.
type Stage struct {
	Name    client.Stage `json:"name"`
	LimitMS int64        `json:"limit_ms"` // 0 for none; a worker that stays in it for longer is stuck
}

// Limit returns how long the stage may take, 0 for no limit.
func (s Stage) Limit() time.Duration { return time.Duration(s.LimitMS) * time.Millisecond }

// Final says how a probation ended.
type Final struct {
	Generation int              `json:"generation"`
	Probation  client.Probation `json:"probation"`
}

// Drained reports the end of a worker whose connections could not all move.
type Drained struct {
	Generation int `json:"generation"` // the generation that has taken over
	Closed     int `json:"closed"`     // connections still open at the end of the drain
}
