//go:build unix

package supervisor

import (
	"os"
	"slices"
	"time"

	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/sources"
)

const (
	// quietTime is how long the sources must stay unchanged before a failure
	// is believed. It is writingTime if a file that changed looks half-written,
	// which is nobody's mistake.
	quietTime   = 60 * time.Millisecond
	writingTime = 300 * time.Millisecond

	// What a save was refused for may have passed after this time.
	retryTime = 5 * time.Second

	// After this many cancelled builds, or this long, the next build is not
	// cancelled: it reads copies, which nobody edits.
	maxCancelled = 3
	maxWaiting   = 2 * time.Second
)

// plan is what the program should be according to the sources, and what it is.
type plan struct {
	config  string // the configuration file, absolute
	builder build.Builder
	watcher watcher           // nil without hot reload
	inputs  *sources.Inputs   // what a build reads; nil before the first listing
	set     sources.Set       // the files and folders to look at
	listed  *sources.Snapshot // the sources at the last listing; nil to list again

	current  origin            // origin of what serves, or is about to start
	previous origin            // origin of what served before
	refused  *sources.Snapshot // the last sources that failed: not tried again until they change

	saidIgnoring bool // the log says that changes are ignored
}

// origin is what a generation was made from.
type origin struct {
	binary string
	snap   *sources.Snapshot // the sources at that time; nil if unknown
	built  bool              // from exactly these sources
}

// wish is what a look at the sources calls for.
type wish int

const (
	wishNothing    wish = iota
	wishReload          // the sources differ from what serves
	wishMatches         // the sources match what serves again
	wishBuildAgain      // the sources differ from what is being built: build again afterwards
	wishCancel          // as wishBuildAgain, but the build may be cancelled
	wishRetry           // the sources differ from a failed build, which is not believed yet
)

// wants decides what snap calls for while j runs. alive says that a generation
// serves or that a start is being retried.
func (p *plan) wants(snap *sources.Snapshot, j *job, alive bool, now time.Time) wish {
	switch {
	case j == nil && snap.Equal(p.current.snap):
		return wishMatches
	case j == nil && p.refused != nil && snap.Equal(p.refused):
		return wishNothing
	case j == nil && alive:
		return wishReload
	case j == nil:
		return wishNothing
	case j.phase == buildPhase && !j.frozen && !snap.Equal(j.snap):
		if j.restarts < maxCancelled && now.Sub(j.began) < maxWaiting {
			return wishCancel
		}
		return wishBuildAgain
	case j.phase == failedPhase && !snap.Equal(j.snap):
		return wishRetry
	default:
		return wishNothing
	}
}

// stale reports whether a build of snap may read files that inputs does not have.
func (p *plan) stale(snap *sources.Snapshot) bool {
	return p.inputs == nil || p.inputs.Stale(snap, p.code(snap.Diff(p.listed)))
}

// code returns paths without the configuration.
func (p *plan) code(paths []string) []string {
	return slices.DeleteFunc(slices.Clone(paths), func(path string) bool { return path == p.config })
}

// look takes a snapshot of the sources. It keeps in memory what changed since the
// present generation was made, for the build that may follow.
func (p *plan) look() *sources.Snapshot { return sources.TakeAfter(p.set, p.current.snap) }

// know adopts what a listing has found.
func (p *plan) know(in *sources.Inputs) {
	p.set = in.Set(p.config)
	if p.watcher != nil {
		p.watcher.Watch(p.set)
	}
}

// serves records what a new generation was made from.
func (p *plan) serves(binary string, snap *sources.Snapshot) {
	p.current.binary = binary
	if p.current.built = snap != nil; p.current.built {
		p.current.snap = snap
	}
}

// configIs reports whether the configuration is still as it is in snap.
func (p *plan) configIs(snap *sources.Snapshot) bool {
	was, there := snap.Sum(p.config)
	is, still := sources.Take(sources.Set{Files: []string{p.config}}).Sum(p.config)
	return was == is && there == still
}

// quietTime returns how long the sources must stay as they are in snap before
// its failure is believed.
func (p *plan) quietTime(snap *sources.Snapshot) time.Duration {
	if slices.ContainsFunc(snap.Diff(p.current.snap), halfWritten) {
		return writingTime
	}
	return quietTime
}

// halfWritten reports whether a file looks as if it is being written: it is
// empty, or missing, or does not end with a newline.
func halfWritten(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return true
	}
	defer f.Close()
	var last [1]byte
	info, err := f.Stat()
	if err == nil {
		_, err = f.ReadAt(last[:], info.Size()-1)
	}
	return err != nil || last[0] != '\n'
}
