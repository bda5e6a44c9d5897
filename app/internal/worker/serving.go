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
				g.out.Flush(time.Second)
				g.server.Close()
				return client.ExitOK
			}
		case stays := <-g.final:
			g.final = nil
			if !stays {
				g.out.Flush(time.Second)
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
				g.send(control.Message{Type: control.TypeStatus, Status: &client.Status{Goroutines: runtime.NumGoroutine()}})
			case control.TypeFollow:
				g.told.follow(m.Follow)
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
	held := g.lastHold()
	for _, is := range held.Left() {
		g.log.Warn("stopping although it still runs", "module", is.Owner, "what", is.Route)
	}
	if n, routes := g.server.Cancelled(); n > 0 {
		g.log.Warn("stopping with requests unfinished", "cut", n, "routes", routes)
	}
	for _, module := range g.endRuns(g.cfg.App.RunTimeout) {
		g.log.Warn("stopping although it still runs", "module", module, "what", "Run")
	}
	if n := g.flushEvents(g.cfg.App.RunTimeout); n > 0 {
		g.log.Warn("events were not handled in time, and are lost", "events", n, "after", g.cfg.App.RunTimeout)
	}
	g.starting.Lock()
	defer g.starting.Unlock()
	g.announce(handoff.StageShutdown, g.limits().one(), true)
	if err := g.set.shutdown(context.Background(), mustStop); err != nil {
		g.log.Error("shutdown failed", "err", err)
		code = client.ExitFailed
		g.send(control.Message{Type: control.TypeUnclean}) // the exit status may be lost: the old generation may reap this process
	}
	g.server.Close()
	g.upgrader.Stop()
	g.out.Flush(time.Second)
	return code
}

// lastHold gives requests the drain time to end, then cuts them.
func (g *generation) lastHold() *serve.Held {
	app := g.cfg.App
	held, err := g.server.Hold(context.Background(), serve.Terms{Within: app.Drain, Patience: app.MaxPause, Cut: serve.CutAtLast})
	if err != nil {
		panic(err) // such a hold always comes about
	}
	held.EndEndless()
	return held
}

// endRuns ends the background work. It names the modules of which something still
// runs after limit.
func (g *generation) endRuns(limit time.Duration) (still []string) {
	g.mu.Lock()
	runs := g.runs
	g.mu.Unlock()
	if runs == nil {
		return nil
	}
	return runs.end(limit)
}

// flushEvents gives the subscribers of all modules the time to handle what is
// queued. It returns how many events they have not.
func (g *generation) flushEvents(limit time.Duration) (left int) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return g.bus.Flush(ctx)
}

// runAgain begins the background work again after a hold that was released.
func (g *generation) runAgain() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.beginRunsLocked(g.set, g.runs)
}
