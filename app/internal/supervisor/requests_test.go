//go:build unix

package supervisor

import (
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/proc"
)

func TestRequests(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		first := w.reload(client.ReloadRequest{})
		second := w.reload(client.ReloadRequest{})
		third := w.reload(client.ReloadRequest{Binary: "/other"})
		if o := second.gets(client.Superseded); o.ExitCode() != client.ExitRejected || o.Serving != 1 {
			t.Errorf("the second = %+v", o)
		}
		c := k.commits()
		first.gets(client.Reloaded)
		k.hears(control.TypeExpedite)
		c.says(control.Message{Type: control.TypeFinal, Final: &control.Final{Generation: 2, Probation: client.ProbationCut}})
		k.die(proc.Status{})
		d, order := c.candidate()
		if order.Binary != "/other" {
			t.Errorf("the third gets %s", order.Binary)
		}
		d.serves(&control.Report{Generation: order.Generation, TookOver: true})
		third.gets(client.Reloaded)
	})
}

func TestRequests_expire(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		running := w.reload(client.ReloadRequest{TimeoutMS: 2000})
		queued := w.reload(client.ReloadRequest{TimeoutMS: 1000})
		k.candidate()
		time.Sleep(time.Second)
		if o := queued.gets(client.Rejected); o.Error != errTimeout.Error() {
			t.Errorf("the one that waits = %+v", o)
		}
		running.waits()
		time.Sleep(time.Second)
		k.hears(control.TypeCancel)
		running.waits() // the worker's report is the outcome
		k.fails(control.Report{Generation: 2, Stage: client.StageHold, Error: errTimeout.Error()})
		running.gets(client.Rejected)
	})
}

// TestRequests_haveNoLimitUnlessTheyName: the configuration's deadlines bound a
// reload, and one with a timeout does not shorten a save that it has joined.
func TestRequests_haveNoLimitUnlessTheyName(t *testing.T) {
	for want, reload := range map[int64]client.ReloadRequest{0: {}, 7000: {TimeoutMS: 7000}} {
		inWorld(t, func(w *world) {
			k := w.first()
			w.reload(reload)
			if _, order := k.candidate(); order.TimeoutMS != want {
				t.Errorf("the limit is %d ms, want %d", order.TimeoutMS, want)
			}
		})
	}
}

// TestRequests_beforeAnythingServes: they wait until something does.
func TestRequests_beforeAnythingServes(t *testing.T) {
	inWorld(t, func(w *world) {
		r := w.reload(client.ReloadRequest{})
		r.waits()
		k := w.started().connect()
		k.serves(nil)
		k.takesOver()
		r.gets(client.Reloaded)
	})
}
