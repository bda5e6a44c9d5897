// Package failpoint lets a test decide at which step of a handoff a process
// fails, and how. Only programs built with -tags failpoints contain any of it.
//
// $ORCHESTRATOR_FAILPOINT names a file that holds a place and an action, such
// as "candidate.before.healthy kill". The first process that reaches the place
// removes the file and performs the action, so that each failure happens once.
package failpoint

// Sides of a handoff.
const (
	Candidate  = "candidate"
	Old        = "old"
	Supervisor = "supervisor"
)
