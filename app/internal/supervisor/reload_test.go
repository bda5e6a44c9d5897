//go:build unix

package supervisor

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
)

func TestReload_joinsWhatIsBeingBuilt(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.save("two\n")
		b := w.builds()
		first := w.reload(client.ReloadRequest{})
		second := w.reload(client.ReloadRequest{DropState: []string{"counter"}})
		b.succeeds()
		c, order := k.candidate()
		if !slices.Equal(order.DropState, []string{"counter"}) {
			t.Errorf("the order is %+v", order)
		}
		c.serves(&control.Report{Generation: 2, TookOver: true})
		first.gets(client.Reloaded)
		second.gets(client.Reloaded)
	}, developing)
}

func TestReload_givesABuildUpThatNobodyWantsAnyMore(t *testing.T) {
	for _, saved := range []bool{false, true} {
		inWorld(t, func(w *world) {
			w.first()
			if saved {
				w.save("two\n")
			} else {
				w.write(source, "two\n")
			}
			r := w.reload(client.ReloadRequest{TimeoutMS: 1000})
			b := w.builds()
			time.Sleep(time.Second)
			o := r.gets(client.Rejected)
			if b.wasCancelled() == saved {
				t.Errorf("saved %v: cancelled %v, %+v", saved, b.wasCancelled(), o)
			}
		}, developing)
	}
}

func TestReload_tellsAMistakeAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		w.first()
		w.write(source, "mistake\n")
		r := w.reload(client.ReloadRequest{})
		w.builds().fails("hello.go:1: mistake")
		if o := r.gets(client.Failed); o.ExitCode() != client.ExitBuild || o.Error != "hello.go:1: mistake" {
			t.Errorf("outcome = %+v", o)
		}
	}, developing)
}

// TestReload_afterAFailureThatIsNotBelievedYet: the job starts again.
func TestReload_afterAFailureThatIsNotBelievedYet(t *testing.T) {
	inWorld(t, func(w *world) {
		w.first()
		w.save("mistake\n")
		w.builds().fails("mistake")
		r := w.reload(client.ReloadRequest{})
		w.builds().fails("mistake")
		r.gets(client.Failed)
		time.Sleep(time.Minute)
		w.buildsNothing()
	}, developing)
}

func TestReload_buildsWithoutHotReload(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		r := w.reload(client.ReloadRequest{Build: true})
		w.builds().succeeds()
		k.takesOver()
		if o := r.gets(client.Reloaded); len(o.Trigger) > 0 { // the previous sources are unknown
			t.Errorf("outcome = %+v", o)
		}
	})
}

// TestOwnCode_isNoted when it has changed, and not when it is unknown whether it
// has.
func TestOwnCode_isNoted(t *testing.T) {
	inWorld(t, func(w *world) {
		w.builder.own = true
		k := w.first()
		r := w.reload(client.ReloadRequest{Build: true})
		w.builds().succeeds()
		c := k.takesOver()
		if o := r.gets(client.Reloaded); len(o.Notes) > 0 {
			t.Errorf("nothing is known to have changed, and the notes are %q", o.Notes)
		}
		c.final(k)
		w.write(source, "changed\n")
		r = w.reload(client.ReloadRequest{Build: true})
		w.builds().succeeds()
		c.takesOver()
		if o := r.gets(client.Reloaded); len(o.Notes) != 1 || !strings.Contains(o.Notes[0], "p/hello is live in the supervisor after restarting run") {
			t.Errorf("the supervisor's own code has changed, and the notes are %q", o.Notes)
		}
	})
}

func TestReload_saysWhyNothingCanBeBuilt(t *testing.T) {
	for name, brk := range map[string]func(*world){
		"no go command":   func(w *world) { w.builder.broken = errors.New("no go command") },
		"a broken go.mod": func(w *world) { w.builder.listed <- errors.New("go.mod:1: what?") },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.first()
				brk(w)
				o := w.reload(client.ReloadRequest{Build: true}).gets(client.Failed)
				if o.Stage != client.StageBuild || o.Error == "" || o.ExitCode() != client.ExitBuild {
					t.Errorf("outcome = %+v", o)
				}
				w.builder.broken = nil
				w.reload(client.ReloadRequest{Build: true})
				w.builds()
			})
		})
	}
}
