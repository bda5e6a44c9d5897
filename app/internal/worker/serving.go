package worker

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/serve"
	"example.org/orchestrator/handoff"
)

// runningUpgrade is an upgrade under way.
type runningUpgrade struct {
	done     chan bool // receives one value: whether the candidate is final
	cancel   context.CancelCauseFunc
	expedite func() // ends the next generation's probation and the drain now
}

func (g *generation) beginUpgrade(order control.Upgrade) *runningUpgrade {
	ctx, cancel := context.WithCancelCause(context.Background())
	now := make(chan struct{})
	h := &runningUpgrade{done: make(chan bool, 1), cancel: cancel, expedite: sync.OnceFunc(func() { close(now) })}
	go func() { // serve waits for it
		defer cancel(nil)
		h.done <- g.upgrade(ctx, order, now)
	}()
	return h
}

// serve carries out the supervisor's orders until the generation ends, and
// returns the exit code. An upgrade waits for the end of this generation's own
// probation.
func (g *generation) serve(orders <-chan control.Message) int {
	var (
		next     *control.Upgrade
		upgrade  *runningUpgrade
		upgraded chan bool
	)
	for {
		if upgrade == nil && g.final == nil {
			if g.stopping.Load() {
				return g.stop()
			}
			if next != nil {
				upgrade = g.beginUpgrade(*next)
				next, upgraded = nil, upgrade.done
			}
		}
		select {
		case final := <-upgraded:
			upgrade, upgraded = nil, nil
			if final {
				g.out.flush(time.Second)
				g.server.Close()
				return client.ExitOK
			}
		case stays := <-g.final:
			g.final = nil
			if !stays {
				g.out.flush(time.Second)
				return client.ExitFailed
			}
		case m := <-orders:
			switch m.Type {
			case control.TypeUpgrade: // one at a time: the previous one has reported
				next = m.Upgrade
			case control.TypeCancel:
				if next != nil {
					g.refuse(next, m.Error)
					next = nil
				} else if upgrade != nil {
					upgrade.cancel(errors.New(m.Error))
				}
			case control.TypeExpedite:
				if upgrade != nil {
					upgrade.expedite()
				}
			case control.TypeFailure:
				if m.Failure != nil {
					g.publishFailure(m.Failure)
				}
			case control.TypeStatus:
				runtime.GC()
				g.send(control.Message{Type: control.TypeStatus, Status: &client.Status{Goroutines: runtime.NumGoroutine()}})
			case control.TypeStop:
				g.stopping.Store(true)
				if upgrade != nil {
					upgrade.cancel(errors.New("the program is stopping"))
					upgrade.expedite()
				}
			}
		}
	}
}

// refuse answers an upgrade that has not begun.
func (g *generation) refuse(order *control.Upgrade, why string) {
	g.send(control.Message{Type: control.TypeReport, Report: &control.Report{
		Generation: order.Generation, Stage: handoff.StageStart, Error: why,
	}})
}

// stop stops the program's last generation gracefully: requests in flight have
// the drain time to end, then the modules shut down.
func (g *generation) stop() int {
	code := client.ExitOK
	if _, err := g.lastHold(forceTime); err != nil {
		g.log.Warn("stopping with requests unfinished", "err", err)
	}
	if err := g.endRuns(context.Background()); err != nil {
		g.log.Warn("stopping all the same", "err", err)
	}
	g.starting.Lock()
	defer g.starting.Unlock()
	if err := g.set.shutdown(context.Background(), never); err != nil {
		g.log.Error("shutdown failed", "err", err)
		code = client.ExitFailed
	}
	g.server.Close()
	g.upgrader.Stop()
	g.out.flush(time.Second)
	return code
}

// lastHold gives requests the drain time to end, then cancels them and gives
// them the time last. An error says what still runs.
func (g *generation) lastHold(last time.Duration) (*serve.Held, error) {
	return g.server.ForceHold(context.Background(), g.cfg.App.Drain, last)
}

// endRuns ends the background work and waits for it, for at most the time of a
// hook.
func (g *generation) endRuns(ctx context.Context) error {
	g.mu.Lock()
	runs := g.runs
	g.runs = nil
	g.mu.Unlock()
	if runs == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, g.cfg.App.HookTimeout, errors.New("app.hook_timeout exceeded"))
	defer cancel()
	return runs.end(ctx)
}
