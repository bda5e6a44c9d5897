package client

import "time"

// Verdict is how an attempt to reload ended.
type Verdict string

// All verdicts.
const (
	Reloaded   Verdict = "reloaded"
	Unchanged  Verdict = "unchanged"   // the build is already serving
	Failed     Verdict = "failed"      // the build failed, or not everything is served any more
	Rejected   Verdict = "rejected"    // the upgrade failed; the old generation serves as before
	Superseded Verdict = "superseded"  // a newer request took its place
	RolledBack Verdict = "rolled_back" // the new generation failed after it had taken over
)

// Stage is a part of a reload. The list below is in order.
type Stage string

// All stages. Those from start to ready belong to package handoff.
const (
	StageBuild      Stage = "build"
	StageStart      Stage = "start"
	StageConfig     Stage = "config"
	StagePrepare    Stage = "prepare"
	StageHold       Stage = "hold"
	StageShutdown   Stage = "shutdown"
	StageExport     Stage = "export"
	StageRestore    Stage = "restore"
	StageInitialize Stage = "initialize"
	StageHealthy    Stage = "healthy"
	StageCommit     Stage = "commit"
	StageProbation  Stage = "probation"
	StageReady      Stage = "ready"

	// A generation announces these to the supervisor; an upgrade fails in one of
	// them if the generation dies there.
	StageReturn   Stage = "return"   // an unhealthy candidate hands back
	StageRollback Stage = "rollback" // the old generation starts its modules again
	StageDrain    Stage = "drain"    // the old generation forwards for pinned connections

	// StagePause appears in StagesMS only: the time in which nobody was served.
	StagePause Stage = "pause"
)

// Probation is how a new generation fared while the old one stood by.
type Probation string

// All results of a probation; "" if there was none.
const (
	ProbationPending Probation = "pending"
	ProbationPassed  Probation = "passed"
	ProbationCut     Probation = "cut" // ended early by a newer reload
	ProbationFailed  Probation = "failed"
)

// Exit codes of the command line, part of the contract.
const (
	ExitOK         = 0
	ExitFailed     = 1
	ExitUsage      = 2 // the command line or, for run and check, the configuration is wrong
	ExitRejected   = 3 // rejected, superseded or rolled back: the old generation serves
	ExitNotRunning = 4
	ExitBuild      = 5 // the build failed, the old generation still serves
)

// Milliseconds is d in the unit of all times of an [Outcome], to the
// microsecond.
func Milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Outcome is how an attempt to reload went. Times are in milliseconds.
type Outcome struct {
	Verdict      Verdict           `json:"outcome"`
	Generation   int               `json:"generation"` // the generation that was reached or tried
	Serving      int               `json:"serving"`    // the generation that serves now, 0 for none
	Trigger      []string          `json:"trigger"`    // paths of the changed sources
	Modules      []string          `json:"modules"`    // modules whose code or configuration changed
	StagesMS     map[Stage]float64 `json:"stages_ms"`
	TotalMS      float64           `json:"total_ms"`
	HoldsMS      []float64         `json:"holds_ms,omitempty"` // how long each attempt to hold took; all but the last were in vain
	Stage        Stage             `json:"stage"`              // where it failed
	FailedModule string            `json:"failed_module"`      // which module failed there, if one did
	Error        string            `json:"error"`
	Probation    Probation         `json:"probation"`
	Lost         []string          `json:"lost,omitempty"`     // modules whose state is gone
	Reverted     []string          `json:"reverted,omitempty"` // modules whose state was reverted to that of the commit
	Held         int               `json:"held"`               // connections that waited during the pause
	Moved        int               `json:"moved"`              // of the held connections: moved to the new generation
	Forwarded    int               `json:"forwarded"`          // connections that stayed in the old generation until it was drained
	Closed       int               `json:"cut"`                // of the forwarded connections: still open at the end of the drain
	Cancelled    int               `json:"cancelled"`          // requests and connections that the reload cancelled
	Notes        []string          `json:"notes,omitempty"`
}

// Good reports whether the program now serves what was asked for.
func (o *Outcome) Good() bool { return o.Verdict == Reloaded || o.Verdict == Unchanged }

// ExitCode returns the exit code of a command that has waited for the outcome.
func (o *Outcome) ExitCode() int {
	switch {
	case o.Good():
		return ExitOK
	case o.Verdict == Failed && o.Stage == StageBuild:
		return ExitBuild
	case o.Verdict == Failed:
		return ExitFailed
	default:
		return ExitRejected
	}
}
