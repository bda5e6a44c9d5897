package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/modules"
)

// background is the work of a generation besides its requests: the Run calls of
// its modules, and the attempts to start modules that are down.
type background struct {
	do    func(task func(ctx context.Context)) // runs task in a goroutine; end cancels ctx
	stop  context.CancelFunc
	tasks sync.WaitGroup
}

func newBackground() *background {
	ctx, stop := context.WithCancel(context.Background())
	b := &background{stop: stop}
	b.do = func(task func(context.Context)) { b.tasks.Go(func() { task(ctx) }) }
	return b
}

// run calls the module's Run, if it has one.
func (b *background) run(in *instance) {
	r, ok := in.module.(modules.Runner)
	if !ok {
		return
	}
	b.do(func(ctx context.Context) {
		err := contract.Protect(contract.Run.Name, func() error { return r.Run(ctx) })
		if err != nil && ctx.Err() == nil {
			in.cfg.Log.Error("module's Run ended", "err", err)
		}
	})
}

// errRunsOn means that background work did not end in time.
var errRunsOn = errors.New("a module's Run does not return")

// end cancels every task and waits for all of them. It returns errRunsOn if ctx
// ends before that.
func (b *background) end(ctx context.Context) error {
	b.stop()
	done := make(chan struct{})
	go func() { // ends with the last task, or never
		b.tasks.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errRunsOn, context.Cause(ctx))
	}
}
