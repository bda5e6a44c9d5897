//go:build unix

package supervisor

import (
	"slices"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/proc"
)

func TestProbation(t *testing.T) {
	for _, tt := range []struct {
		name string
		ends func(k, c *fakeWorker)
		want client.Verdict
		with client.Probation
		by   int // who serves afterwards
	}{
		{"passes", func(k, c *fakeWorker) { c.final(k) }, client.Reloaded, client.ProbationPassed, 2},
		{"is ended early", func(_, c *fakeWorker) {
			c.says(control.Message{Type: control.TypeFinal, Final: &control.Final{Generation: 2, Probation: client.ProbationCut}})
		}, client.Reloaded, client.ProbationCut, 2},
		{"fails, and there is none to go back to", func(k, c *fakeWorker) {
			k.die(proc.Status{Code: 1})
			c.says(control.Message{Type: control.TypeFinal, Final: &control.Final{Generation: 2, Probation: client.ProbationFailed}})
		}, client.Reloaded, client.ProbationFailed, 2},
		{"ends with a rollback", func(k, c *fakeWorker) {
			c.die(proc.Status{Code: 1})
			k.hears(control.TypeExpedite)
			k.fails(control.Report{Generation: 2, Committed: true, Stage: client.StageProbation, Error: "it exited", Reverted: []string{"counter"}})
		}, client.RolledBack, client.ProbationFailed, 1},
		{"ends with everything handed back", func(k, c *fakeWorker) {
			k.fails(control.Report{Generation: 2, Committed: true, Stage: client.StageHealthy, Module: "hello", Error: "a headache"})
			c.die(proc.Status{Code: 1})
		}, client.RolledBack, client.ProbationFailed, 1},
		{"ends with both dead", func(k, c *fakeWorker) {
			k.die(proc.Status{Code: 1})
			c.die(proc.Status{Code: 3})
		}, client.Failed, client.ProbationFailed, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				k := w.first()
				r := w.reload(client.ReloadRequest{WaitProbation: true})
				c := k.takesOver()
				time.Sleep(time.Minute) // the timeout is only for the time until the commit
				r.waits()
				tt.ends(k, c)
				o := r.gets(tt.want)
				if o.Probation != tt.with || o.Generation != 2 || !slices.Equal(o.Modules, []string{"hello"}) {
					t.Errorf("outcome = %+v", o)
				}
				if w.sup.unconfirmed != nil || w.sup.workers.number() != tt.by || w.sup.last.Verdict != tt.want || w.sup.last.Probation != tt.with {
					t.Errorf("generation %d serves, want %d; last %+v", w.sup.workers.number(), tt.by, w.sup.last)
				}
			})
		})
	}
}

// TestProbation_aRollbackIsPublished: also if the reload was reported as a
// success.
func TestProbation_aRollbackIsPublished(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		r := w.reload(client.ReloadRequest{})
		c := k.takesOver()
		r.gets(client.Reloaded)
		c.die(proc.Status{Code: 1})
		k.hears(control.TypeExpedite)
		k.fails(control.Report{Generation: 2, Committed: true, Stage: client.StageProbation, Error: "it exited", Reverted: []string{"counter"}})
		if f := k.hears(control.TypeFailure).Failure; !f.RolledBack || f.App.Outcome != string(client.RolledBack) {
			t.Errorf("the modules hear %+v", f)
		}
		w.wantPrinted("generation 1 serves again; reverted to the moment of the takeover: counter")
		topics := ""
		for _, e := range w.sup.events.last() {
			topics += e.Topic + " "
		}
		if topics != "module.rolled_back module.rolled_back app.reload_failed " { // what changed is unknown, so all modules are named
			t.Errorf("events: %s", topics)
		}
	})
}

// TestProbation_isEndedEarlyByANewerReload: the new generation starts the next
// candidate once it is final.
func TestProbation_isEndedEarlyByANewerReload(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.reload(client.ReloadRequest{})
		c := k.takesOver()
		r := w.reload(client.ReloadRequest{})
		k.hears(control.TypeExpedite)
		w.wantState(upgrading)
		c.says(control.Message{Type: control.TypeFinal, Final: &control.Final{Generation: 2, Probation: client.ProbationCut}})
		k.die(proc.Status{})
		d := c.takesOver()
		if o := r.gets(client.Reloaded); o.Generation != 3 {
			t.Errorf("outcome = %+v", o)
		}
		d.final(c)
	})
}

// TestProbation_aRollbackWhileANewerReloadWaits: the reload was ordered from the
// generation that failed, so the old generation gets the order.
func TestProbation_aRollbackWhileANewerReloadWaits(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.reload(client.ReloadRequest{})
		c := k.takesOver()
		r := w.reload(client.ReloadRequest{})
		c.hears(control.TypeUpgrade)
		k.hears(control.TypeExpedite)
		c.die(proc.Status{Code: 1})
		k.hears(control.TypeExpedite)
		k.fails(control.Report{Generation: 2, Committed: true, Stage: client.StageProbation, Error: "it exited"})
		k.hears(control.TypeFailure)
		k.takesOver()
		if o := r.gets(client.Reloaded); o.Generation != 4 {
			t.Errorf("outcome = %+v, want generation 4", o)
		}
	})
}

// TestLastWordsComeTooLate: a candidate may have said on its own link that it
// serves, before the old generation gave it up.
func TestLastWordsComeTooLate(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		r := w.reload(client.ReloadRequest{})
		c, _ := k.candidate()
		k.fails(control.Report{Generation: 2, Committed: true, Stage: client.StageCommit, Error: "it exited"})
		r.gets(client.RolledBack)
		c.serves(&control.Report{Generation: 2, TookOver: true})
		if w.sup.workers.serving.generation != 1 || w.sup.last.Verdict != client.RolledBack {
			t.Errorf("generation %d serves, last %+v", w.sup.workers.serving.generation, w.sup.last)
		}
	})
}
