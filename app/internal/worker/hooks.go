package worker

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/handoff"
	"example.org/orchestrator/modules"
)

// fault returns an error of a stage, and of a module unless it is "".
func fault(stage, module string, err error) *handoff.UpgradeError {
	return &handoff.UpgradeError{Stage: stage, Module: module, Err: err}
}

// inOrder yields the instances in the order in which h runs.
func (s *moduleSet) inOrder(h contract.Hook) iter.Seq[*instance] {
	if h.Order != contract.ReverseOrder {
		return slices.Values(s.list)
	}
	return func(yield func(*instance) bool) {
		for _, in := range slices.Backward(s.list) {
			if !yield(in) {
				return
			}
		}
	}
}

// do reports the progress and calls a hook of one module. An error names the
// stage and the module.
func (s *moduleSet) do(ctx context.Context, h contract.Hook, in *instance, f func(context.Context) error) error {
	s.progress(h.Stage, in.name)
	if err := s.call(ctx, h, f); err != nil {
		return fault(h.Stage, in.name, err)
	}
	return nil
}

// prepare runs every Prepare.
func (s *moduleSet) prepare(ctx context.Context) error {
	for in := range s.inOrder(contract.Prepare) {
		if err := s.prepareOne(ctx, in); err != nil {
			return err
		}
	}
	return nil
}

// prepareOne runs the Prepare of a module, if it has one that has not run.
func (s *moduleSet) prepareOne(ctx context.Context, in *instance) error {
	p, ok := in.module.(modules.Preparer)
	if !ok || in.touched {
		return nil
	}
	in.touched = true
	return s.do(ctx, contract.Prepare, in, func(ctx context.Context) error { return p.Prepare(ctx, in.cfg) })
}

// initialize starts every module and asks for its health. If mayFail(name), a
// failing module is marked down instead of failing the start: it was already
// down in the old generation.
func (s *moduleSet) initialize(ctx context.Context, mayFail func(name string) bool) error {
	for in := range s.inOrder(contract.Initialize) {
		err := s.start(ctx, in)
		if err != nil && !mayFail(in.name) {
			return err
		}
		in.down = err
	}
	for in := range s.inOrder(contract.Healthy) {
		err := s.healthy(ctx, in)
		if err != nil && !mayFail(in.name) {
			return err
		}
		if in.down == nil {
			in.down = err
		}
	}
	return nil
}

// never is a mayFail that lets no module fail.
func never(string) bool { return false }

// healthy asks a module that runs for its health.
func (s *moduleSet) healthy(ctx context.Context, in *instance) error {
	h, ok := in.module.(modules.HealthChecker)
	if !ok || in.down != nil {
		return nil
	}
	return s.do(ctx, contract.Healthy, in, h.Healthy)
}

// start initializes one module with a fresh client of the bus.
func (s *moduleSet) start(ctx context.Context, in *instance) error {
	in.touched = true
	in.bus = s.root.Client(in.name)
	err := s.do(ctx, contract.Initialize, in, func(ctx context.Context) error { return in.module.Initialize(ctx, in.bus, in.cfg) })
	if err == nil {
		s.started(in.name, in.module)
	}
	return err
}

// silent is a progress that reports nothing.
func silent(stage, module string) {}

// shutdown stops every touched module, even if one fails. It returns the first
// error of a module, unless mayFail(in, err).
func (s *moduleSet) shutdown(ctx context.Context, mayFail func(in *instance, err error) bool) error {
	var first error
	for in := range s.inOrder(contract.Shutdown) {
		if err := s.stop(ctx, in); err != nil && !mayFail(in, err) && first == nil {
			first = err
		}
	}
	return first
}

// mustStop is a mayFail that lets no module fail.
func mustStop(*instance, error) bool { return false }

// stop stops a module, and then its subscribers.
func (s *moduleSet) stop(ctx context.Context, in *instance) error {
	if !in.touched {
		return nil
	}
	in.touched = false
	err := s.call(ctx, contract.Shutdown, in.module.Shutdown)
	if in.bus != nil {
		in.bus.Close()
		err = errors.Join(err, s.call(ctx, contract.Subscribers, in.bus.Wait))
	}
	if in.stuck = errors.Is(err, errLate); in.stuck {
		in.doubtful = true
		err = fmt.Errorf("%w; reload with --force leaves it behind", err)
	}
	if err != nil {
		return fault(contract.Shutdown.Stage, in.name, err)
	}
	return nil
}

// errLate marks a hook that has missed its deadline and was left behind.
var errLate = errors.New("still runs")

// lateTime is how long after its deadline a hook may still return: a hook that
// returns because of its deadline has not missed it.
const lateTime = 50 * time.Millisecond

// call runs a hook with its deadline and turns a panic into an error. A hook
// that misses its deadline is left behind: its goroutine ends when it returns.
func (s *moduleSet) call(ctx context.Context, h contract.Hook, f func(context.Context) error) error {
	s.alive()
	limit := s.hook
	if debugged() {
		limit = 24 * time.Hour
	}
	over := fmt.Errorf("%s after %v (app.hook_timeout)", h.Name, limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, over)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- contract.Protect(h.Name, func() error { return f(ctx) }) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(lateTime):
		return fmt.Errorf("%w: %w", errLate, context.Cause(ctx))
	}
}
