//go:build unix

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"orchestrator/app/build"
	"orchestrator/app/control"
	"orchestrator/app/watch"
)

const (
	// quietTime is how long the sources must hold still before a failure is
	// believed, and cutTime if a file that changed looks as if it were being
	// written: that is nobody's mistake.
	quietTime = 60 * time.Millisecond
	cutTime   = 300 * time.Millisecond

	// After this many cancelled builds, or this long, a build may finish: it
	// then reads copies that hold still.
	maxCancelled = 3
	maxWaiting   = 2 * time.Second
)

type phase int

const (
	listing phase = iota
	building
	upgrading
	settling // failed, and waiting for the files to be quiet
)

// job is one attempt to make the running program what it should be.
type job struct {
	phase      phase
	initial    bool // builds the first generation
	repair     bool // the serving build again
	requests   []*request
	snap       watch.Snapshot // what is being built
	frozen     bool           // from copies
	waited     bool           // for somebody to finish writing the configuration
	forced     bool           // build even if nothing changed
	trigger    []string
	changed    []string // packages
	unknown    bool
	binary     string
	generation int // that it tries to make
	began      time.Time
	saved      bool // begun because of a save, not for a request
	restarts   int
	again      bool // the sources changed during the build
	cancel     context.CancelCauseFunc
	expired    error
	buildTime  time.Duration
	failure    *control.Outcome
	note       string // of the builder
}

// reloader is the part of the loop's state that makes new generations.
type reloader struct {
	builder build.Builder
	inputs  *build.Inputs
	set     watch.Set      // what they say to look at
	listed  watch.Snapshot // the content they were read from
	watcher *watch.Watcher // nil without hot reload

	current  source         // what serves, or will once it starts
	previous source         // what served before it
	refused  watch.Snapshot // what failed last: not tried again by itself

	job          *job
	proving      *proving // nil when no generation stands by
	waiting      *request // a queue of one: the latest wins
	quiet        <-chan time.Time
	saidIgnoring bool
}

// source is what a generation was made of.
type source struct {
	binary string
	snap   watch.Snapshot // of the sources when it was made
	built  bool           // from just these sources
}

// begin starts the first generation, from the sources in development.
func (s *supervisor) begin() error {
	if !s.opts.HotReload {
		s.current.binary = s.opts.Binary
		return s.startFirst(s.opts.Binary)
	}
	s.set = watch.Set{Files: []string{absolute(s.opts.ConfigFile)}}
	if err := s.needBuilder(); err != nil {
		return fmt.Errorf("hot_reload is on, but the sources cannot be built: %w; start it in the folder of its sources, or set app.hot_reload: false", err)
	}
	if !s.opts.Debug {
		s.say("builds leave out what debuggers need; build.debug: true in %s keeps it", s.opts.ConfigFile)
	}
	s.watcher = watch.New(s.opts.Log)
	s.job = &job{initial: true, forced: true, began: time.Now()}
	s.list()
	return nil
}

func (s *supervisor) needBuilder() error {
	if s.builder != nil {
		return nil
	}
	b, err := build.NewGo(s.ctx, s.opts.Package, filepath.Join(s.opts.RunDir, "tmp"), s.reaper.command)
	if err != nil {
		return err
	}
	b.Flags, b.Debug = s.opts.Flags, s.opts.Debug
	s.builder = b
	if s.opts.Direct {
		d, err := build.NewDirect(b, filepath.Join(s.opts.RunDir, "objects"))
		if err != nil {
			return err
		}
		s.builder = d
	}
	return nil
}

// looks is when to look at the sources.
func (s *supervisor) looks() <-chan struct{} {
	if s.watcher == nil || s.stopping {
		return nil
	}
	return s.watcher.C
}

// look compares what the sources say with what is being built or serves.
func (s *supervisor) look() {
	snap := watch.Take(s.set)
	switch j := s.job; {
	case j == nil:
		if snap.Equal(s.current.snap) {
			s.refused = nil
			return
		}
		if s.refused != nil && snap.Equal(s.refused) || s.serving == nil && !s.crashed() {
			return
		}
		s.start(&job{})
	case j.phase == building && !j.frozen && !snap.Equal(j.snap):
		j.again = true
		if j.restarts < maxCancelled && time.Since(j.began) < maxWaiting {
			j.cancel(errors.New("the sources changed"))
		}
	case j.phase == settling && !snap.Equal(j.snap):
		s.quiet = nil
		s.start(&job{began: j.began, requests: j.requests})
	}
}

// outcome is one that leaves the serving generation alone.
func (s *supervisor) outcome(outcome, err string) control.Outcome {
	return control.Outcome{Outcome: outcome, Serving: s.servingNumber(), Error: err, Trigger: []string{}, Modules: []string{}, StagesMS: map[string]float64{}}
}

func (s *supervisor) servingNumber() int {
	if s.serving == nil {
		return 0
	}
	return s.serving.generation
}

// start begins a job.
func (s *supervisor) start(j *job) {
	if j.began.IsZero() {
		j.began = time.Now()
	}
	s.job = j
	j.saved = len(j.requests) == 0
	var r control.ReloadRequest
	if len(j.requests) > 0 {
		r = j.requests[len(j.requests)-1].reload
	}
	switch {
	case r.Binary != "":
		j.binary, j.unknown = r.Binary, true
		s.upgrade()
	case s.watcher == nil && !r.Build:
		j.binary, j.unknown = s.opts.Binary, true
		s.upgrade()
	default:
		if err := s.needBuilder(); err != nil {
			s.failed(control.Outcome{Outcome: control.Failed, Stage: "build", Error: err.Error()})
			return
		}
		j.forced = !s.current.built
		s.sources()
	}
}

// sources builds what the sources say, after finding out what they are if
// that may have changed.
func (s *supervisor) sources() {
	if s.inputs == nil || s.stale(watch.Take(s.set)) {
		s.list()
		return
	}
	s.build()
}

// stale tells whether a build of snap may read other files than those listed.
func (s *supervisor) stale(snap watch.Snapshot) bool {
	changed := slices.DeleteFunc(snap.Diff(s.listed), s.isConfig)
	return len(changed) > 0 && (len(s.inputs.Missing) > 0 || s.inputs.Stale(changed))
}

func (s *supervisor) isConfig(path string) bool { return path == absolute(s.opts.ConfigFile) }

// list asks what a build reads.
func (s *supervisor) list() {
	j := s.job
	j.phase = listing
	var ctx context.Context
	ctx, j.cancel = context.WithCancelCause(s.ctx)
	set := s.set
	go func() {
		before, began := watch.Take(set), time.Now()
		inputs, err := s.builder.Inputs(ctx)
		s.do(func() {
			if s.job != j {
				return
			}
			if s.expired() {
				return
			}
			if err == nil || s.inputs == nil {
				s.set = sourceSet(inputs, s.opts.ConfigFile)
				if s.watcher != nil {
					s.watcher.Watch(s.set)
				}
			}
			if err == nil {
				s.inputs = inputs
			}
			s.listed = watch.Take(s.set)
			if !watch.Take(set).Equal(before) || s.set.ChangedSince(began) { // while it was listed
				if time.Since(j.began) < maxWaiting {
					s.list()
					return
				}
				s.listed = nil // go on, but trust the list once only
			}
			if err != nil {
				if j.snap = s.listed; j.snap == nil {
					j.snap = before
				}
				s.listed = nil // these inputs are of something else
				s.failed(control.Outcome{Outcome: control.Failed, Stage: "build", Error: err.Error()})
				return
			}
			s.build()
		})
	}()
}

func sourceSet(in *build.Inputs, configFile string) watch.Set {
	set := watch.Set{Files: append(slices.Clone(in.Files), absolute(configFile)), Dirs: slices.Clone(in.Missing)}
	for _, p := range in.Packages {
		set.Dirs = append(set.Dirs, p.Dir)
		for _, f := range p.Files {
			if dir := filepath.Dir(f); dir != "." {
				set.Trees = append(set.Trees, filepath.Join(p.Dir, dir))
			} else if len(p.Patterns) > 0 {
				set.Files = append(set.Files, filepath.Join(p.Dir, f))
			}
		}
		for _, pattern := range p.Patterns { // what is not embedded yet
			pattern = strings.TrimPrefix(pattern, "all:")
			if meta := strings.IndexAny(pattern, "*?["); meta >= 0 {
				set.Folders = append(set.Folders, filepath.Join(p.Dir, filepath.Dir(pattern[:meta]+"x")))
			} else if info, err := os.Stat(filepath.Join(p.Dir, pattern)); err == nil && info.IsDir() {
				set.Trees = append(set.Trees, filepath.Join(p.Dir, pattern))
			}
		}
	}
	slices.Sort(set.Trees)
	set.Trees = slices.Compact(set.Trees)
	return set
}

// build begins to build, unless only the configuration changed.
func (s *supervisor) build() {
	j := s.job
	j.phase, j.again = building, false
	j.frozen = j.restarts >= maxCancelled || time.Since(j.began) >= maxWaiting && j.restarts > 0
	var overlay map[string]string
	if j.frozen {
		dir := filepath.Join(absolute(s.opts.RunDir), "frozen")
		os.RemoveAll(dir)
		where, snap, err := watch.Copy(s.set, dir)
		if err != nil {
			s.failed(control.Outcome{Outcome: control.Failed, Stage: "build", Error: fmt.Sprintf("copy the sources: %v", err)})
			return
		}
		delete(where, absolute(s.opts.ConfigFile))
		overlay, j.snap = where, snap
	} else {
		j.snap = watch.Take(s.set)
	}
	if !j.initial && !j.frozen && s.listed != nil && s.stale(j.snap) {
		s.list()
		return
	}
	paths := j.snap.Diff(s.current.snap)
	code := slices.DeleteFunc(slices.Clone(paths), s.isConfig)
	if !j.initial {
		s.nameChange()
	}
	if len(paths) == 0 && len(j.requests) == 0 && !j.forced {
		s.job, s.refused = nil, nil // the change was undone meanwhile
		return
	}
	if len(code) == 0 && !j.forced && s.current.binary != "" {
		if len(paths) > 0 && !j.waited && unfinished(absolute(s.opts.ConfigFile)) {
			j.waited = true
			j.phase = listing // nothing to cancel
			time.AfterFunc(cutTime, func() {
				s.do(func() {
					if s.job == j {
						s.sources()
					}
				})
			})
			return
		}
		j.binary = s.current.binary
		s.upgrade()
		return
	}
	var ctx context.Context
	ctx, j.cancel = context.WithCancelCause(s.ctx)
	began := time.Now()
	go func() {
		binary, note, err := s.compile(ctx, overlay, j.initial)
		s.do(func() {
			j.buildTime += time.Since(began)
			j.note = note
			if s.job == j {
				s.built(binary, err)
			}
		})
	}()
}

// nameChange tells how what is being built differs from what serves.
func (s *supervisor) nameChange() {
	j := s.job
	paths := j.snap.Diff(s.current.snap)
	j.trigger = relative(paths)
	j.changed, j.unknown = s.inputs.Affected(slices.DeleteFunc(paths, s.isConfig))
	if len(paths) == 0 || s.current.snap == nil {
		j.unknown = true // asked for, for a reason only the asker knows
	}
	if s.current.snap == nil {
		j.trigger = nil
	}
}

// compile builds into a folder that is named after what came out. It runs in
// a goroutine of its own.
func (s *supervisor) compile(ctx context.Context, overlay map[string]string, seed bool) (out, note string, err error) {
	builds := filepath.Join(absolute(s.opts.RunDir), "builds")
	fresh := filepath.Join(builds, "new")
	if err := os.RemoveAll(fresh); err != nil {
		return "", "", fmt.Errorf("build: clear builds: %w", err)
	}
	if err := os.MkdirAll(fresh, 0o755); err != nil {
		return "", "", fmt.Errorf("build: make a folder in run_dir: %w", err)
	}
	out = filepath.Join(fresh, "orchestrator")
	if seed {
		if copyFile(s.opts.Binary, out) != nil { // go build need not link what is up to date
			os.Remove(out)
		}
	}
	if note, err = s.builder.Build(ctx, out, overlay); err != nil {
		return "", note, err
	}
	id, err := build.Sum(out)
	if err != nil {
		return "", "", fmt.Errorf("build: read the binary: %w", err)
	}
	out, err = nameBuild(fresh, filepath.Join(builds, id))
	if err != nil {
		return "", "", fmt.Errorf("build: name the build: %w", err)
	}
	return out, note, nil
}

// built goes on with what the build gave, unless it is of sources that have
// changed since: that is neither the old nor the new.
func (s *supervisor) built(binary string, err error) {
	j := s.job
	if s.stopping {
		return
	}
	if s.expired() {
		return
	}
	if !j.frozen && (j.again || !watch.Take(s.set).Equal(j.snap)) {
		j.restarts++
		s.sources()
		return
	}
	if j.initial {
		s.builtFirst(binary, err)
		return
	}
	if err != nil {
		s.failed(control.Outcome{Outcome: control.Failed, Stage: "build", Error: err.Error()})
		return
	}
	j.binary = binary
	if binary == s.current.binary && len(j.requests) == 0 && !slices.ContainsFunc(j.snap.Diff(s.current.snap), s.isConfig) {
		s.current.snap = j.snap
		o := s.outcome(control.Unchanged, "")
		o.Generation = s.servingNumber()
		s.finish(o)
		return
	}
	s.upgrade()
}

// expired ends the job if nobody waits for it any more.
func (s *supervisor) expired() bool {
	if s.job.expired == nil {
		return false
	}
	s.failed(control.Outcome{Outcome: control.Rejected, Stage: "build", Error: s.job.expired.Error()})
	return true
}

// builtFirst starts the first generation.
func (s *supervisor) builtFirst(binary string, err error) {
	j := s.job
	s.job = nil
	s.current.snap, s.current.built = j.snap, err == nil
	if err != nil {
		s.say("%s\nthe build failed; starting %s as it is, which is not what the sources say", err, s.opts.Binary)
		binary = s.opts.Binary
		s.refused = j.snap
		s.current.snap = nil
	}
	s.current.binary = binary
	if err := s.startFirst(binary); err != nil {
		s.say("%v", err)
		s.stopping, s.code = true, 1
	}
}

// failed ends the job, at once if somebody waits for it and else when the
// files are quiet.
func (s *supervisor) failed(o control.Outcome) {
	j := s.job
	if j.initial { // something has to run
		s.builtFirst("", errors.New(o.Error))
		return
	}
	if len(j.requests) == 0 && !s.stopping {
		j.phase, j.failure = settling, &o
		wait := quietTime
		if slices.ContainsFunc(j.snap.Diff(s.current.snap), unfinished) {
			wait = cutTime
		}
		s.quiet = time.After(wait)
		return
	}
	s.finish(o)
}

// unfinished tells whether a file looks as if it were being written: it is
// empty, or gone, or does not end with the end of a line.
func unfinished(path string) bool {
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

// settle believes a failure if the sources have not changed since.
func (s *supervisor) settle() {
	s.quiet = nil
	j := s.job
	if j == nil || j.phase != settling {
		return
	}
	if !watch.Take(s.set).Equal(j.snap) {
		s.start(&job{began: j.began})
		return
	}
	s.finish(*j.failure)
}
