//go:build unix

package supervisor

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/proc"
)

// These tests are about one generation replacing another on request.

func TestUpgrade_toTheBinaryAtItsPath(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		r := w.reload(client.ReloadRequest{Force: true, DropState: []string{"counter"}, TimeoutMS: 7000})
		w.wantState(upgrading)
		if s := w.sup.status(); s.State != client.Reloading || s.Generation != 1 {
			t.Errorf("status = %s, generation %d; want reloading, 1", s.State, s.Generation)
		}
		c, order := k.candidate()
		want := control.Upgrade{Binary: w.opts.Binary, Generation: 2, TimeoutMS: 7000, Force: true, DropState: []string{"counter"}, Unknown: true}
		if order.Binary != want.Binary || order.Generation != want.Generation || order.TimeoutMS != want.TimeoutMS || !order.Force || !slices.Equal(order.DropState, want.DropState) || !order.Unknown || order.Repair {
			t.Errorf("the order is %+v, want %+v", order, want)
		}
		r.waits()
		c.serves(&control.Report{Generation: 2, TookOver: true, Standby: true, Changed: []string{"hello"}, Held: 3, Moved: 2, StagesMS: map[client.Stage]float64{client.StagePause: 1.5}, Notes: []string{"so it is"}})
		o := r.gets(client.Reloaded)
		if o.Generation != 2 || o.Serving != 2 || o.Probation != client.ProbationPending || !slices.Equal(o.Modules, []string{"hello"}) || o.Held != 3 || o.Moved != 2 || o.StagesMS[client.StagePause] != 1.5 || !slices.Equal(o.Notes, []string{"so it is"}) || o.ExitCode() != client.ExitOK {
			t.Errorf("outcome = %+v", o)
		}
		w.wantState(probation)
		c.final(k)
		if s := w.status(); s.Generation != 2 || s.LastReload.Probation != client.ProbationPassed {
			t.Errorf("status = %+v, last %+v", s, s.LastReload)
		}
	})
}

// TestUpgrade_fails has every way in which the old generation goes on.
func TestUpgrade_fails(t *testing.T) {
	for _, tt := range []struct {
		name    string
		report  control.Report
		want    client.Verdict
		code    int
		mention string
	}{
		{"before anything is touched", control.Report{Stage: client.StagePrepare, Module: "hello", Error: "no database"}, client.Rejected, 3, "no database"},
		{"after the shutdown", control.Report{Stage: client.StageInitialize, Module: "hello", Error: "panicked"}, client.Rejected, 3, "panicked"},
		{"and a module stays down", control.Report{Stage: client.StageInitialize, Module: "hello", Error: "panicked", Down: []string{"counter"}}, client.Failed, 1, "panicked; after the rollback [counter] did not start again and answers 503"},
		{"and a state is lost", control.Report{Stage: client.StageShutdown, Module: "counter", Error: "hung", Lost: []string{"counter"}}, client.Failed, 1, "hung"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				k := w.first()
				r := w.reload(client.ReloadRequest{})
				c, order := k.candidate()
				c.die(proc.Status{Code: 1})
				tt.report.Generation = order.Generation
				k.fails(tt.report)
				o := r.gets(tt.want)
				if o.ExitCode() != tt.code || o.Stage != tt.report.Stage || o.FailedModule != tt.report.Module || o.Error != tt.mention || o.Serving != 1 || o.Generation != 2 || o.Probation != "" {
					t.Errorf("outcome = %+v", o)
				}
				w.wantState(serving)
				failure := k.hears(control.TypeFailure).Failure
				if failure.RolledBack || failure.App.Error != tt.mention || !slices.Contains(failure.App.Modules, tt.report.Module) {
					t.Errorf("the modules hear %+v", failure)
				}
				w.wantPrinted("Failed to reload module '" + tt.report.Module + "': ")
				// The next one gets a new number.
				w.reload(client.ReloadRequest{})
				if next := k.hears(control.TypeUpgrade).Upgrade; next.Generation != 3 {
					t.Errorf("the next candidate is generation %d, want 3", next.Generation)
				}
			})
		})
	}
}

func TestUpgrade_isNotHeardByAStoppedProcess(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		r := w.reload(client.ReloadRequest{TimeoutMS: 1000})
		k.hears(control.TypeUpgrade)
		time.Sleep(1000 * time.Millisecond)
		if m := k.hears(control.TypeCancel); m.Error != errTimeout.Error() {
			t.Errorf("the worker hears why: %q", m.Error)
		}
		r.waits()
		time.Sleep(answerTime)
		o := r.gets(client.Rejected)
		if !strings.Contains(o.Error, "generation 1 (process 1001) does not answer; is it stopped?") || o.Stage != client.StageStart {
			t.Errorf("outcome = %+v", o)
		}
		k.hears(control.TypeCancel)
		if k.ended() != nil {
			t.Error("it was killed: a debugger may hold it")
		}
		// It goes on and reports.
		k.hears(control.TypeFailure)
		k.fails(control.Report{Generation: 2, Stage: client.StageStart, Error: "cancelled"})
		w.wantState(serving)
		if o := w.sup.last; !strings.Contains(o.Error, "does not answer") {
			t.Errorf("the last reload is %+v", o)
		}
	})
}

func TestUpgrade_isKilledInAStageThatTakesTooLong(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		r := w.reload(client.ReloadRequest{})
		c, _ := k.candidate()
		k.says(control.Message{Type: control.TypeStage, Stage: &control.Stage{Name: client.StageHold, LimitMS: 4000}})
		time.Sleep(4*time.Second + answerTime - time.Millisecond)
		synctest.Wait()
		if k.ended() != nil {
			t.Fatal("it is dead too early")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if k.ended() == nil || k.ended().Signal != "killed" {
			t.Fatalf("it lives: %v", k.ended())
		}
		c.die(proc.Status{Code: 1})
		w.wantPrinted("generation 1 (process 1001) is stuck in hold for 6s: killing it")
		o := r.gets(client.Failed)
		if o.Stage != client.StageHold || !slices.Equal(o.Lost, []string{"counter"}) || o.ExitCode() != client.ExitFailed {
			t.Errorf("outcome = %+v", o)
		}
		w.started()
	})
}

// TestUpgrade_aStageWithoutALimit: a debugger holds the worker.
func TestUpgrade_aStageWithoutALimit(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.reload(client.ReloadRequest{TimeoutMS: 1e7})
		k.candidate()
		k.says(control.Message{Type: control.TypeStage, Stage: &control.Stage{Name: client.StageHold}})
		time.Sleep(time.Hour)
		synctest.Wait()
		if k.ended() != nil {
			t.Error("it was killed")
		}
	})
}

// TestReports_ofSomebodyElse: only the job's own generation ends it.
func TestReports_ofSomebodyElse(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		r := w.reload(client.ReloadRequest{})
		k.candidate()
		k.fails(control.Report{Generation: 17, Error: "what?"})
		r.waits()
		w.wantState(upgrading)
	})
}

func TestRepair(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		k.serves(nil, func(s *control.Serving) { s.Degraded = true })
		if s := w.sup.status(); s.State != client.Degraded {
			t.Errorf("status says %s", s.State)
		}
		k.says(control.Message{Type: control.TypeRepair})
		w.wantPrinted("generation 1 is still degraded")
		c, order := k.candidate()
		if !order.Repair || !strings.HasPrefix(order.Binary, w.opts.RunDir) {
			t.Errorf("the order is %+v, want a repair by the copy of what runs", order)
		}
		c.serves(&control.Report{Generation: order.Generation, TookOver: true, Standby: true})
		if w.sup.last != nil {
			t.Errorf("the last reload is a repair: %+v", w.sup.last)
		}
		c.final(k)
	})
}

// TestRepair_waitsItsTurn: it waits for a reload, which repairs too if it
// succeeds.
func TestRepair_waitsItsTurn(t *testing.T) {
	for _, succeeds := range []bool{true, false} {
		inWorld(t, func(w *world) {
			k := w.first()
			r := w.reload(client.ReloadRequest{})
			c, order := k.candidate()
			k.says(control.Message{Type: control.TypeRepair})
			k.hearsNothing()
			if succeeds {
				c.serves(&control.Report{Generation: order.Generation, TookOver: true})
				r.gets(client.Reloaded)
				k.hearsNothing()
				c.hearsNothing()
				return
			}
			k.fails(control.Report{Generation: order.Generation, Stage: client.StageHold, Error: "busy"})
			r.gets(client.Rejected)
			k.hears(control.TypeFailure)
			if next := k.hears(control.TypeUpgrade).Upgrade; !next.Repair {
				t.Errorf("the next order is %+v", next)
			}
		})
	}
}

func TestDrained(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.reload(client.ReloadRequest{})
		c := k.takesOver()
		c.says(control.Message{Type: control.TypeFinal, Final: &control.Final{Generation: 2, Probation: client.ProbationPassed}})
		k.says(control.Message{Type: control.TypeDrained, Drained: &control.Drained{Generation: 2, Closed: 5}})
		w.wantPrinted("generation 1 has closed 5 connections")
		if w.sup.last.Closed != 5 {
			t.Errorf("the last reload is %+v", w.sup.last)
		}
	})
}

// TestHearings sends every message of a worker in every state: what is not in
// the table changes nothing.
func TestHearings(t *testing.T) {
	bring := map[state]func(w *world) *fakeWorker{
		starting: func(w *world) *fakeWorker { return w.started().connect() },
		serving:  func(w *world) *fakeWorker { return w.first() },
		upgrading: func(w *world) *fakeWorker {
			k := w.first()
			w.reload(client.ReloadRequest{})
			k.candidate()
			return k
		},
		probation: func(w *world) *fakeWorker {
			k := w.first()
			w.reload(client.ReloadRequest{})
			return k.takesOver()
		},
		recovering: func(w *world) *fakeWorker {
			w.first().die(proc.Status{Code: 1})
			return w.started().connect()
		},
		stopping: func(w *world) *fakeWorker {
			k := w.first()
			synctest.Wait()
			w.signals <- syscall.SIGTERM
			return k
		},
	}
	words := map[string]control.Message{
		control.TypeReport: {Report: &control.Report{Generation: 2, Error: "no"}},
		control.TypeStage:  {Stage: &control.Stage{Name: client.StageHold, LimitMS: 60_000}},
		control.TypeFinal:  {Final: &control.Final{Generation: 2, Probation: client.ProbationPassed}},
		control.TypeRepair: {},
	}
	for now, begin := range bring {
		for word, m := range words {
			t.Run(now.String()+" "+word, func(t *testing.T) {
				inWorld(t, func(w *world) {
					k := begin(w)
					w.wantState(now)
					heard := false
					for _, h := range hearings {
						heard = heard || h.message == word && slices.Contains(h.in, now)
					}
					job, standby, stage := w.sup.job, w.sup.unconfirmed, w.sup.workers.linked[k.generation].stage
					m.Type = word
					k.says(m)
					changed := job != w.sup.job || standby != w.sup.unconfirmed || stage != w.sup.workers.linked[k.generation].stage
					if changed && !heard {
						t.Errorf("%s in state %v changes something", word, now)
					}
				})
			})
		}
	}
}
