// Package control is what the processes of one run_dir say to each other over
// control.sock: a command-line client to the supervisor, and the supervisor
// and its workers among themselves.
//
// Everything is a JSON object a line, a [Message]. A connection begins with a
// hello of each side, which agrees on a version or ends with the reason. The
// processes may be of different builds: within a version, fields are only
// added, and an unknown type of message is passed over.
package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// The versions of the protocol that this build speaks, as strings so that a
// test can build a program that speaks others (-ldflags -X).
var (
	protocol    = "1"
	minProtocol = "1"
)

// Roles of a connecting process.
const (
	RoleClient = "client"
	RoleWorker = "worker"
)

// Socket is the control socket of a run_dir.
func Socket(runDir string) string { return filepath.Join(runDir, "control.sock") }

// Message is everything that is said. Type tells which field counts.
type Message struct {
	Type string `json:"type"`

	Hello   *Hello         `json:"hello,omitempty"`
	Reload  *ReloadRequest `json:"reload,omitempty"`
	Events  *EventsRequest `json:"events,omitempty"`
	Status  *Status        `json:"status,omitempty"`
	Outcome *Outcome       `json:"outcome,omitempty"`
	Event   *Event         `json:"event,omitempty"`
	Upgrade *Upgrade       `json:"upgrade,omitempty"`
	Serving *Serving       `json:"serving,omitempty"`
	Failure *Failure       `json:"failure,omitempty"`
	Stage   *Stage         `json:"stage,omitempty"`
	Settled *Settled       `json:"settled,omitempty"`
	Drained *Drained       `json:"drained,omitempty"`
	Error   string         `json:"error,omitempty"`
}

// Types of messages.
const (
	TypeHello   = "hello"
	TypeError   = "error"
	TypeReload  = "reload"  // client: upgrade; answered by an outcome
	TypeOutcome = "outcome" // to a client; and from the worker whose upgrade failed
	TypeStatus  = "status"  // both ways
	TypeEvents  = "events"  // client: answered by event messages and an end
	TypeEvent   = "event"   // to a client; and from a worker
	TypeEnd     = "end"
	TypeUpgrade = "upgrade" // to the serving worker
	TypeCancel  = "cancel"  // to the serving worker: give the upgrade up, unless committed
	TypeStop    = "stop"    // to a worker: end gracefully
	TypeKnown   = "known"   // to a worker, first of all: it counts as alive from here
	TypeServing = "serving" // from a worker: it serves now
	TypeFailure = "failure" // to the serving worker: publish that a reload failed
	TypeSettle  = "settle"  // to a worker that stands by: end the probation now
	TypeSettled = "settled" // from the serving worker: its probation is over
	TypeDrained = "drained" // from a worker that was replaced: the last connections are gone
	TypeStage   = "stage"   // from a worker in an upgrade: what comes, and how long it may take
	TypeRepair  = "repair"  // from a degraded worker: hand over to a fresh process of the same build
)

// Hello introduces a process.
type Hello struct {
	Protocol    int    `json:"protocol"`
	MinProtocol int    `json:"min_protocol"`
	Role        string `json:"role"`
	PID         int    `json:"pid"`
	Generation  int    `json:"generation,omitempty"`
}

// ReloadRequest is `orchestrator reload`.
type ReloadRequest struct {
	Build         bool     `json:"build,omitempty"`
	Binary        string   `json:"binary,omitempty"` // absolute
	TimeoutMS     int64    `json:"timeout_ms,omitempty"`
	Force         bool     `json:"force,omitempty"`
	DropState     []string `json:"drop_state,omitempty"` // module names; "*" means all
	WaitProbation bool     `json:"wait_probation,omitempty"`
}

// EventsRequest is `orchestrator events`.
type EventsRequest struct {
	Follow bool `json:"follow,omitempty"`
}

// Outcomes of a reload.
const (
	Reloaded   = "reloaded"
	Unchanged  = "unchanged"
	Failed     = "failed"     // the build failed, or what is left does not serve everything
	Rejected   = "rejected"   // the upgrade failed; the old generation serves as before
	Superseded = "superseded" // a newer request took its place
	RolledBack = "rolled_back"
)

// What an outcome says of the probation.
const (
	ProbationPending = "pending"
	ProbationPassed  = "passed"
	ProbationCut     = "cut" // by a newer reload
	ProbationFailed  = "failed"
)

// Outcome is how an attempt to reload went.
type Outcome struct {
	Outcome      string             `json:"outcome"`
	Generation   int                `json:"generation"` // reached or tried
	Serving      int                `json:"serving"`    // the generation that serves now
	Trigger      []string           `json:"trigger"`    // paths
	Modules      []string           `json:"modules"`    // the changed ones
	StagesMS     map[string]float64 `json:"stages_ms"`
	TotalMS      float64            `json:"total_ms"`
	Stage        string             `json:"stage"` // where it failed
	FailedModule string             `json:"failed_module"`
	Error        string             `json:"error"`
	Probation    string             `json:"probation"`         // "" without one
	Lost         []string           `json:"lost,omitempty"`    // modules whose state is gone
	Rewound      []string           `json:"rewound,omitempty"` // modules whose state is that of the commit again
	Held         int                `json:"held"`              // connections that waited during the pause
	Moved        int                `json:"moved"`             // of these: gone to the new generation
	Forwarded    int                `json:"forwarded"`         // connections that stayed in the old one until it was gone
	Cut          int                `json:"cut"`               // of these: were still there then
	Cancelled    int                `json:"cancelled"`         // requests and connections that the reload has ended
	Notes        []string           `json:"notes,omitempty"`
}

// Module is one module's line in a status.
type Module struct {
	Name       string `json:"name"`
	State      string `json:"state"`
	Generation int    `json:"generation"` // since when its code and configuration are what they are
	Stateful   bool   `json:"stateful,omitempty"`
	Listen     string `json:"listen,omitempty"` // address of its own connections
	Error      string `json:"error,omitempty"`  // why it does not run
}

// Status answers `orchestrator status`. New code answers its first requests a
// moment before the supervisor hears that it serves; until then the state is
// reloading and the generation is the old one.
type Status struct {
	Name          string   `json:"name"`
	Version       string   `json:"version"`
	State         string   `json:"state"` // starting, serving, reloading, degraded, stopping
	Generation    int      `json:"generation"`
	PID           int      `json:"pid"`
	SupervisorPID int      `json:"supervisor_pid"`
	Build         string   `json:"build"`
	HotReload     bool     `json:"hot_reload"`
	Listen        []string `json:"listen"`
	Modules       []Module `json:"modules"`
	LastReload    *Outcome `json:"last_reload"`
	LastCrash     *Crash   `json:"last_crash"`

	// Of the serving worker, after a garbage collection.
	Goroutines int `json:"goroutines,omitempty"`
}

// Crash is a serving generation that died, and what became of it.
type Crash struct {
	Time       time.Time `json:"time"`
	Generation int       `json:"generation"`
	Error      string    `json:"error"`
	Serving    int       `json:"serving"` // the generation that serves in its place, 0 for none yet
	Build      string    `json:"build"`   // which that one runs
	Older      bool      `json:"older"`   // which is older than that of the crashed one
	Lost       []string  `json:"lost"`    // modules whose state is gone
}

// Event is one event of the bus, as the supervisor numbered it.
type Event struct {
	Seq        int64           `json:"seq"`
	Time       time.Time       `json:"time"`
	Generation int             `json:"generation"`
	Topic      string          `json:"topic"`
	Data       json.RawMessage `json:"data"`
}

// Upgrade tells the serving worker to hand over to a binary.
type Upgrade struct {
	Binary     string   `json:"binary"`
	Generation int      `json:"generation"`
	TimeoutMS  int64    `json:"timeout_ms"`
	Force      bool     `json:"force,omitempty"`
	DropState  []string `json:"drop_state,omitempty"`
	Changed    []string `json:"changed,omitempty"` // packages
	Unknown    bool     `json:"unknown,omitempty"`
	Repair     bool     `json:"repair,omitempty"` // the same build again
}

// Stage is a part of an upgrade.
type Stage struct {
	Name    string `json:"name"`
	LimitMS int64  `json:"limit_ms"` // 0 for none; a worker that says nothing for longer is stuck
}

// Drained ends the life of a worker whose connections could not all move.
type Drained struct {
	Generation int `json:"generation"` // that has taken over
	Cut        int `json:"cut"`        // connections that were still open
}

// Settled says how a probation ended.
type Settled struct {
	Generation int    `json:"generation"`
	Probation  string `json:"probation"`
}

// Serving is what a worker says of itself once it serves.
type Serving struct {
	Name      string   `json:"name"`
	Version   string   `json:"version"`
	HotReload bool     `json:"hot_reload"`
	Listen    []string `json:"listen"`
	Modules   []Module `json:"modules"`
	Degraded  bool     `json:"degraded,omitempty"`
	StopMS    int64    `json:"stop_ms"` // the longest that a graceful stop may take

	RestartOlderBuild bool `json:"restart_older_build,omitempty"`

	Outcome *Outcome `json:"outcome,omitempty"` // of the upgrade that brought it here
}

// Failure is a reload that failed before or in the serving generation.
type Failure struct {
	Outcome Outcome  `json:"outcome"`
	Changed []string `json:"changed,omitempty"`
	Unknown bool     `json:"unknown,omitempty"`
}

// VersionError says that two processes cannot talk.
type VersionError struct{ Theirs, TheirMin int }

func (e *VersionError) Error() string {
	mine, mineMin := versions()
	return fmt.Sprintf("control: the other process speaks protocol %d to %d, this one %d to %d: restart run with the new program, or use the program that run was started with", e.TheirMin, e.Theirs, mineMin, mine)
}

func versions() (v, lowest int) {
	v, _ = strconv.Atoi(protocol)
	lowest, _ = strconv.Atoi(minProtocol)
	return v, lowest
}

// ErrGarbled is returned for a line that is no message. The next may be one.
var ErrGarbled = errors.New("not a message")

// Conn is one connection. Sending is safe for concurrent use.
type Conn struct {
	conn net.Conn
	in   *bufio.Reader
	mu   sync.Mutex // serializes writes
}

// sendTimeout bounds a write to a process that reads no more.
const sendTimeout = 10 * time.Second

// Dial connects to the supervisor behind path and agrees on a version.
func Dial(path string, h Hello) (*Conn, error) {
	conn, err := net.DialTimeout("unix", path, 2*time.Second)
	if err != nil {
		return nil, fmt.Errorf("control: connect: %w", err)
	}
	c := &Conn{conn: conn, in: bufio.NewReader(conn)}
	if _, err := c.greet(h); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// Accept greets a process that has connected.
func Accept(conn net.Conn) (*Conn, *Hello, error) {
	c := &Conn{conn: conn, in: bufio.NewReader(conn)}
	h, err := c.greet(Hello{Role: "supervisor"})
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return c, h, nil
}

func (c *Conn) greet(mine Hello) (*Hello, error) {
	mine.Protocol, mine.MinProtocol = versions()
	mine.PID = os.Getpid()
	c.conn.SetReadDeadline(time.Now().Add(sendTimeout))
	defer c.conn.SetReadDeadline(time.Time{})
	if err := c.Send(Message{Type: TypeHello, Hello: &mine}); err != nil {
		return nil, err
	}
	m, err := c.Receive()
	switch {
	case err != nil:
		return nil, err
	case m.Type != TypeHello || m.Hello == nil:
		return nil, errors.New("control: the other process does not speak this protocol")
	case m.Hello.MinProtocol > mine.Protocol || m.Hello.Protocol < mine.MinProtocol:
		return nil, &VersionError{m.Hello.Protocol, m.Hello.MinProtocol}
	}
	return m.Hello, nil
}

// Send writes one message.
func (c *Conn) Send(m Message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("control: encode %s: %w", m.Type, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	if _, err := c.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("control: send %s: %w", m.Type, err)
	}
	return nil
}

// Receive waits for the next message, as long as it takes.
func (c *Conn) Receive() (Message, error) {
	var m Message
	line, err := c.in.ReadBytes('\n')
	if err != nil {
		return m, fmt.Errorf("control: receive: %w", err)
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return Message{}, fmt.Errorf("control: receive: %w: %w", ErrGarbled, err)
	}
	return m, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.conn.Close() }
