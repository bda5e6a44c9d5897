package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
)

// The versions of the protocol that this build speaks. Fields are only added;
// the version rises when older ones can no longer be answered.
const (
	protocol    = 2
	minProtocol = 1

	// protocolDoubtful is the first in which doubtful states follow the others.
	protocolDoubtful = 2
)

var (
	// ErrNotSupported is returned where processes cannot replace each other.
	ErrNotSupported = errors.New("handoff: not supported on this system")

	errTruncated = errors.New("handoff: file descriptors were lost in transit; is the limit of open files reached?")
)

// Stages of a handoff, as they appear in outcomes and events.
const (
	StageStart      = "start"      // the candidate's process begins
	StageConfig     = "config"     // its configuration and modules are checked
	StagePrepare    = "prepare"    // Prepare of the new modules
	StageHold       = "hold"       // the old generation stops taking requests
	StageShutdown   = "shutdown"   // Shutdown of the old modules
	StageExport     = "export"     // the old modules' states are written
	StageRestore    = "restore"    // the states are read into the new modules
	StageInitialize = "initialize" // Initialize of the new modules
	StageHealthy    = "healthy"    // Healthy of the new modules
	StageCommit     = "commit"     // the new generation owns everything from here
	StageProbation  = "probation"  // the new generation serves, the old one stands by
	StageReady      = "ready"      // the old generation learns that it may exit
)

// UpgradeError says where a handoff failed.
type UpgradeError struct {
	Stage  string
	Module string // "" when no single module is to blame
	Err    error
}

func (e *UpgradeError) Error() string {
	if e.Module == "" {
		return fmt.Sprintf("%s: %v", e.Stage, e.Err)
	}
	return fmt.Sprintf("%s: module %s: %v", e.Stage, e.Module, e.Err)
}

func (e *UpgradeError) Unwrap() error { return e.Err }

// message is everything that travels on a link. Type says which fields are
// used.
type message struct {
	Type string `json:"type"`

	// hello, candidate to old: the first message.
	Protocol    int         `json:"protocol,omitempty"`
	MinProtocol int         `json:"min_protocol,omitempty"`
	PID         int         `json:"pid,omitempty"`
	Hello       *Hello      `json:"hello,omitempty"`
	Welcome     *Welcome    `json:"welcome,omitempty"`  // old to candidate: the answer
	States      []StateInfo `json:"states,omitempty"`   // with one file: states and doubtful (old to candidate), and returned
	Doubtful    []string    `json:"doubtful,omitempty"` // states: modules whose states follow one by one
	Commit      *Commit     `json:"commit,omitempty"`   // old to candidate
	Conns       int         `json:"conns,omitempty"`    // number of files with it, in either direction; repeated in the acknowledgement
	ConnInfos   []ConnInfo  `json:"conn_infos,omitempty"`
	UnixPaths   []string    `json:"unix_paths,omitempty"` // progress, failed and prepared: paths of sockets that the candidate has made
	FreeFiles   *int        `json:"free_files,omitempty"` // prepared: how many descriptors the candidate may still open
	Early       bool        `json:"cut,omitempty"`        // final: the probation ended early

	// failed, returned and progress, candidate to old: where the candidate is;
	// doubtful, old to candidate: the module, and why its state is lost.
	Stage  string `json:"stage,omitempty"`
	Module string `json:"module,omitempty"`
	Error  string `json:"error,omitempty"`
}

// The conversation, in order, with the side that sends. A side may die after
// any message that it has sent. Between hello and accepting the candidate may send
// failed instead of a message of its own, and progress before any.
const (
	typeHello           = "hello"     // candidate
	typeWelcome         = "welcome"   // old
	typeProgress        = "progress"  // candidate
	typePrepared        = "prepared"  // candidate: waits for the states
	typeFailed          = "failed"    // candidate: gives up
	typeStates          = "states"    // old: has shut its modules down
	typeReceived        = "received"  // candidate: has the states; only if doubtful ones follow
	typeDoubtful        = "doubtful"  // old: the state of one module, which may still be written to
	typeHealthy         = "healthy"   // candidate: waits for the commit
	typeCommit          = "commit"    // old: gives everything away
	typeAccepting       = "accepting" // candidate: serves
	typeConns           = "conns"     // old: a batch of connections, which the candidate acknowledges
	typeEnd             = "end"       // old: no more connections; probation begins
	typeCheck           = "ask"       // old: health check
	typeIsHealthy       = "well"      // candidate: is healthy
	typeUnhealthy       = "unwell"    // candidate: is unhealthy and about to give everything back
	typeForwardsNothing = "parked"    // old: forwards nothing to the candidate any more
	typeReturned        = "returned"  // candidate: gives the states back
	typeServesAgain     = "taken"     // old: serves again; the candidate sends its connections, then end
	typeFinal           = "final"     // old: probation is over
	typeReady           = "ready"     // old: exits
)

// Hello is what a candidate says about itself.
type Hello struct {
	Generation int      `json:"generation"`
	Modules    []string `json:"modules"`

	// Settings are those of the reload, from the configuration that is being
	// loaded. The old generation keeps its own if the candidate has none: its
	// configuration is wrong, or it is of an older build.
	Settings json.RawMessage `json:"settings,omitempty"`
}

// Welcome is what the old generation says about itself.
type Welcome struct {
	Generation int           `json:"generation"`
	Modules    []ModuleInfo  `json:"modules"`
	Reload     ReloadDetails `json:"reload"`
	PatienceMS int64         `json:"patience_ms"` // the longest that the old generation may be silent
}

// ModuleInfo describes a module of the old generation.
type ModuleInfo struct {
	Name         string            `json:"name"`
	Digest       string            `json:"digest"` // digest of its settings
	Stateful     bool              `json:"stateful"`
	StateVersion int               `json:"state_version"`
	StateFields  map[string]string `json:"state_fields,omitempty"` // path of a field -> its type
	Since        int               `json:"since"`                  // generation in which it changed last
	Down         bool              `json:"down,omitempty"`         // it does not run and answers 503
}

// ReloadDetails pass from the supervisor's order to the candidate.
type ReloadDetails struct {
	Changed   []string `json:"changed,omitempty"`    // import paths of the changed packages and of those that import them
	Unknown   bool     `json:"unknown,omitempty"`    // what changed is not known
	DropState []string `json:"drop_state,omitempty"` // modules that start without their state; "*" means all
	Repair    bool     `json:"repair,omitempty"`     // the same build again, after a failed rollback
}

// StateInfo describes one module's state within the transferred file.
type StateInfo struct {
	Module   string `json:"module"`
	Version  int    `json:"version"`
	Offset   int64  `json:"offset"`
	Size     int64  `json:"size"`
	Checksum uint32 `json:"checksum"` // CRC-32C
}

// Conn is a connection on its way to another process.
type Conn struct {
	net.Conn
	ConnInfo
}

// ConnInfo is what moves with a connection. This package does not interpret it.
type ConnInfo struct {
	Owner  string `json:"owner,omitempty"`
	Unread []byte `json:"unread,omitempty"` // bytes the client has sent that have not been handled
	Unsent []byte `json:"unsent,omitempty"` // bytes the client has yet to receive
	Kept   []byte `json:"kept,omitempty"`   // bytes that the owner keeps for its next handler

	LeftMS  int64 `json:"left_ms,omitempty"` // of the time that the client has for its next request
	Lenient int   `json:"lenient,omitempty"` // bytes of empty lines that may come before that
}

// size estimates how many bytes the info adds to a message.
func (i ConnInfo) size() int {
	return 64 + len(i.Owner) + (len(i.Unread)+len(i.Unsent)+len(i.Kept))*4/3
}

// Commit is what the old generation says when it hands over.
type Commit struct {
	StagesMS map[string]float64 `json:"stages_ms"` // measured by the old generation
	HeldMS   float64            `json:"held_ms"`   // how long the old generation has been holding
	TotalMS  float64            `json:"total_ms"`  // time since the old generation was told to upgrade

	Held      int  `json:"held,omitempty"`      // connections that waited during the hold
	Forwarded int  `json:"forwarded,omitempty"` // connections that stay; their requests are forwarded
	Cancelled int  `json:"cancelled,omitempty"` // requests and connections that the hold has cancelled
	Probation bool `json:"probation"`           // the old generation stands by afterwards

	// Left are the modules of which something still runs in the old generation:
	// they must not work in the background here before it has exited.
	Left  []string `json:"left,omitempty"`
	Lost  []string `json:"lost,omitempty"`  // modules whose state could not be exported
	Notes []string `json:"notes,omitempty"` // for people: what the handoff has cost

	HoldsMS []float64 `json:"holds_ms,omitempty"` // how long each attempt to hold took

	SlowMS map[string]float64 `json:"slow_ms,omitempty"` // how long slow requests take, by kinds that the server knows
}
