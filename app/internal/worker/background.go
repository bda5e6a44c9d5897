package worker

import (
	"context"
	"slices"
	"sync"
	"time"

	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/modules"
)

// background is the work of a generation besides its requests: the Run calls of
// its modules, and the attempts to start modules that are down.
type background struct {
	do    func(module string, task func(ctx context.Context)) // runs task in a goroutine; end cancels ctx
	stop  context.CancelFunc
	ended chan struct{} // has room for one; receives when a task has ended

	mu      sync.Mutex // guards running
	running map[string]int
}

func newBackground() *background {
	ctx, stop := context.WithCancel(context.Background())
	b := &background{stop: stop, ended: make(chan struct{}, 1), running: map[string]int{}}
	b.do = func(module string, task func(context.Context)) {
		b.count(module, 1)
		go func() { // end waits for it
			defer b.count(module, -1)
			task(ctx)
		}()
	}
	return b
}

func (b *background) count(module string, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running[module] += n; b.running[module] == 0 {
		delete(b.running, module)
	}
	if n < 0 {
		select {
		case b.ended <- struct{}{}:
		default:
		}
	}
}

// still names the modules of which a task runs.
func (b *background) still() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	names := make([]string, 0, len(b.running))
	for name := range b.running {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// run calls the module's Run, if it has one, once before has returned nil; before
// may be nil.
func (b *background) run(in *instance, before func(ctx context.Context, module string) error) {
	r, ok := in.module.(modules.Runner)
	if !ok {
		return
	}
	b.do(in.name, func(ctx context.Context) {
		if before != nil && before(ctx, in.name) != nil {
			return
		}
		err := contract.Protect(contract.Run.Name, func() error { return r.Run(ctx) })
		switch {
		case ctx.Err() != nil:
		case err != nil:
			in.cfg.Log.Error("module's Run ended", "err", err)
		default:
			in.cfg.Log.Warn("module's Run returned although its context has not ended")
		}
	})
}

// await waits until no task of a module runs, or ctx ends.
func (b *background) await(ctx context.Context, module string) error {
	for slices.Contains(b.still(), module) {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ctx.Err()
}

// end cancels every task and waits for all of them, for at most limit. It names
// the modules of which one still runs.
func (b *background) end(limit time.Duration) (still []string) {
	b.stop()
	over := time.After(limit)
	for {
		if still = b.still(); len(still) == 0 {
			return nil
		}
		select {
		case <-b.ended:
		case <-over:
			return still
		}
	}
}
