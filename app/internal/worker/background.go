package worker

import (
	"context"
	"fmt"
	"sync"

	"example.org/orchestrator/modules"
)

// background is the work of a generation beside its requests: the Run calls of
// its modules, and the attempts to start again those that are down.
type background struct {
	ctx    context.Context // ends when a hold has succeeded
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

// run calls every Run.
func (s *moduleSet) run() *background {
	b := &background{}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	for _, in := range s.list {
		if in.down == nil {
			b.runOne(in)
		}
	}
	return b
}

// runOne calls the module's Run, if it has one.
func (b *background) runOne(in *instance) {
	r, ok := in.module.(modules.Runner)
	if !ok {
		return
	}
	b.tasks.Go(func() {
		err := protect("Run", func() error { return r.Run(b.ctx) })
		if err != nil && b.ctx.Err() == nil {
			in.cfg.Log.Error("module's Run ended", "err", err)
		}
	})
}

// end tells every task to return and waits for it.
func (b *background) end(ctx context.Context) error {
	b.cancel()
	done := make(chan struct{})
	go func() {
		b.tasks.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a module's Run does not return: %w", context.Cause(ctx))
	}
}
