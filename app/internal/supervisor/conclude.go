//go:build unix

package supervisor

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/sources"
)

// ending is how an attempt to reload ended, as seen by the supervisor.
type ending int

const (
	endReported    ending = iota // a worker has reported, and its report decides
	endUnchanged                 // the build is the serving one
	endBuildFailed               // there is no binary to upgrade to
	endRefused                   // the supervisor gave up: timeout, end of the program, or no answer
	endSuperseded                // a newer request replaced it
	endDied                      // the serving generation died during it
	endDiedAfter                 // the new generation died, and no old one was left to take over
	endings                      // how many there are
)

// facts are everything that an outcome depends on.
type facts struct {
	end        ending
	report     *control.Report // of a worker; nil unless one has reported
	stage      client.Stage    // where it ended, unless a report says
	err        string          // why, unless a report says
	lost       []string        // modules that lost their state with their process
	generation int             // reached or tried, unless a report says; 0 for none
	serving    int             // the generation that serves now; 0 for none
	trigger    []string        // paths of changed files
	build      time.Duration   // how long building took; 0 for no build
	total      time.Duration
	notes      []string
}

// verdict returns the verdict: the table of all of them.
func (f *facts) verdict() client.Verdict {
	switch f.end {
	case endUnchanged:
		return client.Unchanged
	case endBuildFailed, endDied, endDiedAfter:
		return client.Failed
	case endRefused:
		return client.Rejected
	case endSuperseded:
		return client.Superseded
	}
	switch r := f.report; {
	case r.TookOver:
		return client.Reloaded
	case r.Committed:
		return client.RolledBack
	case len(r.Down)+len(r.Lost) > 0: // the old generation has lost something
		return client.Failed
	default:
		return client.Rejected
	}
}

// passing reports whether the attempt was refused for a reason that has nothing to do
// with the sources, and passes: something was in its way, or nobody answered.
func (f *facts) passing() bool {
	if f.verdict() != client.Rejected {
		return false
	}
	return f.report == nil && f.stage == client.StageStart || f.report != nil && f.report.Stage == client.StageHold
}

// probation returns what is known of the probation when the attempt has ended.
func (f *facts) probation() client.Probation {
	switch {
	case f.end == endDiedAfter || f.report != nil && f.report.Committed:
		return client.ProbationFailed
	case f.report != nil && f.report.Standby:
		return client.ProbationPending
	default:
		return ""
	}
}

// conclude returns the outcome of an attempt. Nothing else makes outcomes.
func conclude(f facts) client.Outcome {
	o := client.Outcome{
		Verdict:    f.verdict(),
		Generation: f.generation,
		Serving:    f.serving,
		Trigger:    orEmpty(f.trigger),
		Modules:    []string{},
		StagesMS:   map[client.Stage]float64{},
		TotalMS:    client.Milliseconds(f.total),
		Stage:      f.stage,
		Error:      f.err,
		Probation:  f.probation(),
		Lost:       f.lost,
	}
	if r := f.report; r != nil {
		for stage, ms := range r.StagesMS {
			o.StagesMS[stage] = ms
		}
		o.Generation = r.Generation
		o.Stage, o.FailedModule, o.Error = r.Stage, r.Module, r.Error
		o.Lost, o.Reverted, o.HoldsMS = r.Lost, r.Reverted, r.HoldsMS
		o.Held, o.Moved, o.Forwarded, o.Cancelled = r.Held, r.Moved, r.Forwarded, r.Cancelled
		if r.TookOver {
			o.Modules = orEmpty(r.Changed)
		}
		if len(r.Down) > 0 {
			o.Error += fmt.Sprintf("; after the rollback %v did not start again and answers 503", r.Down)
		}
		o.Notes = slices.Clone(r.Notes)
	}
	if o.Verdict == client.Reloaded { // they describe a new generation that serves
		o.Notes = append(o.Notes, f.notes...)
	}
	if f.build > 0 {
		o.StagesMS[client.StageBuild] = client.Milliseconds(f.build)
	}
	return o
}

// revise returns the outcome of an attempt that had succeeded before its
// generation failed: its times, counts and modules stay as they were reported.
func revise(had client.Outcome, now client.Outcome) client.Outcome {
	had.Verdict, had.Serving, had.Probation = now.Verdict, now.Serving, now.Probation
	had.Stage, had.FailedModule, had.Error = now.Stage, now.FailedModule, now.Error
	had.Lost, had.Reverted, had.Notes = now.Lost, now.Reverted, now.Notes
	return had
}

func orEmpty(list []string) []string { return append([]string{}, list...) }

// affected returns the modules that a change of packages concerns: all of them
// if that is unknown.
func affected(says *control.Serving, packages []string, unknown bool) []string {
	names := []string{}
	if says == nil {
		return names
	}
	for _, m := range says.Modules {
		if unknown || slices.Contains(packages, says.Packages[m.Name]) {
			names = append(names, m.Name)
		}
	}
	return names
}

type here struct{}

// supervisorPackage is the import path of this package.
var supervisorPackage = reflect.TypeFor[here]().PkgPath()

// ownCode returns the changed packages that this process runs too: no reload
// replaces them here. They are the packages that this one depends on, and those
// that depend on it, except main, which is mostly the list of modules.
func ownCode(in *sources.Inputs, changed []string) []string {
	if in == nil {
		return nil
	}
	own := in.Related(supervisorPackage)
	var found []string
	for _, path := range changed {
		if pkg, ok := in.PackageOf(path); ok && own[pkg] {
			found = append(found, pkg)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// ownCodeNote returns the note that a change is not live everywhere.
func ownCodeNote(packages []string) string {
	return "the change in " + strings.Join(packages, ", ") + " is live in the supervisor after restarting run"
}
