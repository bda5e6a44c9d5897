//go:build unix

package supervisor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/sources"
)

// makeBuilder looks for the go command, which takes a moment.
func (s *supervisor) makeBuilder() {
	j := s.job
	ctx := j.background()
	s.tasks.Go(func() {
		builder, err := s.sys.builder(ctx)
		if !s.post(builderMade{j, builder, err}) && builder != nil {
			builder.Close()
		}
	})
}

func (s *supervisor) builderMade(h builderMade) {
	switch {
	case h.err != nil:
	case s.plan.builder == nil:
		s.plan.builder = h.builder
	default:
		h.builder.Close()
	}
	switch {
	case s.job != h.j || s.endIfExpired(client.StageBuild):
	case s.plan.builder == nil:
		s.buildFailed(h.err)
	default:
		s.fromSources()
	}
}

// fromSources begins a build of the sources.
func (s *supervisor) fromSources() {
	s.job.forced = !s.plan.current.built
	if s.job.snap == nil {
		s.job.snap = s.plan.look()
	}
	s.build()
}

// buildAnew builds the sources as they are now.
func (s *supervisor) buildAnew() {
	s.job.snap = s.plan.look()
	s.build()
}

// build builds the job's snapshot. It makes a new listing first if this build
// may read other files than the last one.
func (s *supervisor) build() {
	if s.plan.stale(s.job.snap) {
		s.list()
		return
	}
	s.buildListed()
}

// list asks the builder what a build reads.
func (s *supervisor) list() {
	j, builder := s.job, s.plan.builder
	set, config, older, before := s.plan.set, s.plan.config, s.plan.current.snap, s.job.snap
	j.phase = listPhase
	ctx := j.background()
	s.tasks.Go(func() {
		began := time.Now()
		inputs, err := builder.Inputs(ctx)
		if ctx.Err() != nil { // the job was cancelled
			s.post(listed{j: j, err: err})
			return
		}
		newSet := inputs.Set(config)
		s.post(listed{
			j:       j,
			inputs:  inputs,
			now:     sources.TakeAfter(newSet, older),
			changed: !before.Current(set) || newSet.ChangedSince(began),
			err:     err,
		})
	})
}

func (s *supervisor) listed(h listed) {
	j, p := h.j, &s.plan
	if s.job != j || s.endIfExpired(client.StageBuild) {
		return
	}
	if h.inputs == nil { // it was cancelled
		s.buildFailed(h.err)
		return
	}
	if h.err == nil || p.inputs == nil {
		p.know(h.inputs)
		j.snap, p.listed = h.now, h.now
	}
	if h.err == nil {
		p.inputs = h.inputs
	}
	if h.changed {
		if time.Since(j.began) < maxWaiting {
			j.snap = p.look()
			s.list()
			return
		}
		p.listed = nil // go on, and list again before the next build
	}
	if h.err != nil {
		p.listed = nil // these inputs belong to other sources
		s.buildFailed(h.err)
		return
	}
	s.buildListed()
}

// buildListed goes on once it is known what the build reads. A job that is
// overdue builds copies, which nobody edits.
func (s *supervisor) buildListed() {
	j, p := s.job, &s.plan
	j.phase, j.again = buildPhase, false
	var copies map[string]string
	if j.frozen = j.overdue(); j.frozen {
		var err error
		if copies, err = s.freeze(); err != nil {
			s.buildFailed(err)
			return
		}
	}
	j.paths = j.snap.Diff(p.current.snap)
	if !j.initial {
		s.nameChange()
	}
	switch {
	case len(j.paths) == 0 && len(j.requests) == 0 && !j.forced: // the change has been undone
		s.job, p.refused = nil, nil
		s.next()
	case len(p.code(j.paths)) > 0 || j.forced || p.current.binary == "":
		s.compile(copies)
	case len(j.paths) > 0 && !j.frozen && !p.configIs(j.snap): // the configuration was being written
		j.restarts++
		s.buildAnew()
	case len(j.paths) > 0 && !j.waited && halfWritten(p.config):
		j.waited = true
		j.phase = listPhase // there is nothing to cancel
		s.after(writingTime, configWaited{j})
	default: // only the configuration changed
		j.binary = p.current.binary
		s.upgrade()
	}
}

// freeze copies the sources and makes the job build the copies.
func (s *supervisor) freeze() (copies map[string]string, err error) {
	dir := s.frozenDir()
	os.RemoveAll(dir)
	copies, snap, err := sources.Copy(s.plan.set, dir)
	if err != nil {
		return nil, fmt.Errorf("copy the sources: %w", err)
	}
	s.job.snap = snap
	delete(copies, s.plan.config)
	return copies, nil
}

// freezer returns a function that copies the sources for a build in the background.
func (s *supervisor) freezer() func() (map[string]string, error) {
	dir, set, config := s.frozenDir(), s.plan.set, s.plan.config
	return func() (map[string]string, error) {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
		copies, _, err := sources.Copy(set, dir)
		delete(copies, config)
		return copies, err
	}
}

func (s *supervisor) frozenDir() string {
	return filepath.Join(sources.Absolute(s.opts.RunDir), "frozen")
}

// nameChange records what the job changes, compared with what serves.
func (s *supervisor) nameChange() {
	j, p := s.job, &s.plan
	j.paths = j.snap.Diff(p.current.snap)
	j.trigger = relative(j.paths)
	j.changed, j.unknown = p.inputs.Affected(p.code(j.paths))
	if len(j.paths) == 0 || p.current.snap == nil {
		j.unknown = true // requested for a reason that only the requester knows
	}
	if p.current.snap == nil { // it is unknown what serves, so nothing is known to have changed
		j.trigger = nil
	} else {
		j.own = ownCode(p.inputs, j.paths)
	}
}

// compile builds the job's binary in the background.
func (s *supervisor) compile(copies map[string]string) {
	s.restoreRunDir()
	j, builder := s.job, s.plan.builder
	ctx := j.background()
	dir, seed := s.builds.dir, ""
	if j.initial {
		seed = s.opts.Binary
	}
	task := build.Spec{Sources: j.snap, Overlay: copies, Freeze: s.freezer()}
	s.tasks.Go(func() {
		began := time.Now()
		binary, note, err := compileInto(ctx, builder, task, dir, seed)
		s.post(built{j, binary, note, time.Since(began), err})
	})
}

// compileInto builds into a folder below dir that is named after the result.
// With a seed, an earlier binary, go build need not link what is up to date.
func compileInto(ctx context.Context, builder build.Builder, task build.Spec, dir, seed string) (binary, note string, err error) {
	fresh := filepath.Join(dir, "new")
	if err := os.RemoveAll(fresh); err != nil {
		return "", "", fmt.Errorf("build: clear builds: %w", err)
	}
	if err := os.MkdirAll(fresh, 0o700); err != nil {
		return "", "", fmt.Errorf("build: make a folder in run_dir: %w", err)
	}
	task.Out = filepath.Join(fresh, "orchestrator")
	if seed != "" && copyFile(seed, task.Out) != nil {
		os.Remove(task.Out)
	}
	if note, err = builder.Build(ctx, task); err != nil {
		return "", note, err
	}
	binary, err = nameBuild(fresh, dir)
	if err != nil {
		return "", "", fmt.Errorf("build: name the build: %w", err)
	}
	return binary, note, nil
}

// built goes on with the result of a build, unless the sources have changed
// since it began: the result may be of neither the old nor the new ones.
func (s *supervisor) built(h built) {
	j, p := h.j, &s.plan
	j.buildTime += h.took
	j.note = h.note
	if s.job != j || s.stop.begun || s.endIfExpired(client.StageBuild) {
		return
	}
	if !j.frozen && (j.again || !j.snap.Current(p.set)) {
		j.restarts++
		s.buildAnew()
		return
	}
	switch {
	case j.initial:
		s.builtFirst(h.binary, h.err)
	case h.err != nil:
		s.buildFailed(h.err)
	case h.binary == p.current.binary && len(j.requests) == 0 && !slices.Contains(j.paths, p.config):
		p.current.snap = j.snap
		s.finish(s.conclude(facts{end: endUnchanged, generation: s.workers.number()}))
	default:
		j.binary = h.binary
		s.upgrade()
	}
}

// builtFirst starts the first generation, from the program as it is if the build
// failed.
func (s *supervisor) builtFirst(binary string, err error) {
	j, p := s.job, &s.plan
	s.job = nil
	p.current = origin{binary: binary, snap: j.snap, built: true}
	if err != nil {
		s.printf("%s\nthe build failed; starting %s which does not match the sources", err, s.opts.Binary)
		p.current = origin{binary: s.opts.Binary}
		p.refused = j.snap
	}
	if err := s.startFirst(p.current.binary); err != nil {
		s.cannotStart(err.Error(), 1)
	}
}

func (s *supervisor) buildFailed(err error) {
	s.failed(facts{end: endBuildFailed, stage: client.StageBuild, err: err.Error()})
}

// relative shortens paths below the working directory.
func relative(paths []string) []string {
	wd, err := os.Getwd()
	short := make([]string, 0, len(paths))
	for _, p := range paths {
		if rel, relErr := filepath.Rel(wd, p); err == nil && relErr == nil && !strings.HasPrefix(rel, "..") {
			p = rel
		}
		short = append(short, p)
	}
	return short
}
