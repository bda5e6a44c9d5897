//go:build unix

package supervisor

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/proc"
)

// These tests are for faults that were found by reading or by chance.

// TestFound_aTerminalThatGoesWhileTheLockIsAwaited: the program stops.
func TestFound_aTerminalThatGoesWhileTheLockIsAwaited(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.signals <- syscall.SIGHUP
		k.hears(control.TypeStop)
	}, func(w *world) {
		w.terminal = true // when run was started
		w.whileLocking = func() { w.terminal = false }
	})
}

// TestFound_aReloadToTheSameBinary: it makes no build older.
func TestFound_aReloadToTheSameBinary(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.reload(client.ReloadRequest{})
		c := k.takesOver()
		c.final(k)
		if b := &w.sup.builds; b.older == b.startable(2) {
			t.Errorf("the older build is the one that serves: %s", b.older)
		}
	})
}

// TestFound_anUndoneSave: a request that waited behind it goes on.
func TestFound_anUndoneSave(t *testing.T) {
	for name, waits := range map[string]func(w *world, k *fakeWorker){
		"a repair": func(_ *world, k *fakeWorker) { k.says(control.Message{Type: control.TypeRepair}) },
		"a reload": func(w *world, _ *fakeWorker) { w.reload(client.ReloadRequest{Binary: w.opts.Binary}) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				k := w.first()
				w.save("two\n")
				w.builds()
				waits(w, k)
				w.save("one\n")
				k.hears(control.TypeUpgrade)
			}, developing)
		})
	}
}

// TestFound_aFailedRepair: it does not upgrade to something else.
func TestFound_aFailedRepair(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.opts.HotReload = false // by a reload of the configuration
		w.write("main.yaml", "app: {hot_reload: false}\n")
		w.watcher.changed <- struct{}{}
		c := k.takesOver()
		c.final(k)
		w.write(source, "two\n")
		c.says(control.Message{Type: control.TypeRepair})
		c.hears(control.TypeUpgrade)
		c.fails(control.Report{Generation: 3, Stage: client.StageStart, Error: "no"})
		time.Sleep(time.Minute)
		c.hearsNothing()
	}, developing)
}

// TestFound_anOverdueBuild: it reads the files that a new import adds.
func TestFound_anOverdueBuild(t *testing.T) {
	inWorld(t, func(w *world) {
		if err := os.Mkdir(w.dir+"/extra", 0o755); err != nil {
			t.Fatal(err)
		}
		w.write("extra/x.go", "package extra\n")
		k := w.first()
		w.save("package p\n// 0\n")
		for i := range maxCancelled {
			w.builds()
			if i < maxCancelled-1 {
				w.save(fmt.Sprintf("package p\n// %d\n", i+1))
			} else {
				w.save("package p\nimport \"p/extra\"\n")
			}
		}
		b := w.builds()
		if b.job.Overlay[w.dir+"/extra/x.go"] == "" {
			t.Errorf("the new package is not among the copies: %v", b.job.Overlay)
		}
		b.succeeds()
		c := k.takesOver()
		c.final(k)
		w.write("extra/x.go", "package extra // changed\n")
		w.watcher.changed <- struct{}{}
		w.builds()
	}, developing)
}

// TestFound_anExpiredReload: it is not tried again after a rollback.
func TestFound_anExpiredReload(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.reload(client.ReloadRequest{})
		c := k.takesOver()
		r := w.reload(client.ReloadRequest{TimeoutMS: 1000})
		k.hears(control.TypeExpedite)
		c.hears(control.TypeUpgrade)
		time.Sleep(time.Second)
		c.hears(control.TypeCancel)
		c.die(proc.Status{Code: 2})
		k.hears(control.TypeExpedite)
		k.fails(control.Report{Generation: 2, Committed: true, Stage: client.StageProbation, Error: "it exited"})
		r.gets(client.Rejected)
		k.hears(control.TypeFailure) // of the second
		k.hears(control.TypeFailure) // of the third
		k.hearsNothing()
	})
}

// TestFound_deathsArePublished: followers of the events see them, with the
// modules.
func TestFound_deathsArePublished(t *testing.T) {
	for name, die := range map[string]func(w *world, k *fakeWorker){
		"in an upgrade": func(_ *world, k *fakeWorker) {
			k.hears(control.TypeUpgrade)
			k.die(proc.Status{Code: 2})
		},
		"of both": func(_ *world, k *fakeWorker) {
			c := k.takesOver()
			k.die(proc.Status{Code: 2})
			c.die(proc.Status{Code: 2})
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				k := w.first()
				w.reload(client.ReloadRequest{})
				die(w, k)
				synctest.Wait()
				var topics []string
				for _, e := range w.sup.events.last() {
					topics = append(topics, e.Topic)
				}
				if got := strings.Join(topics, " "); got != "module.reload_failed module.reload_failed app.reload_failed" {
					t.Errorf("events: %s", got)
				}
				w.wantNotPrinted("failed in :")
			})
		})
	}
}

// TestFound_connectionsClosedBeforeTheEndOfTheProbation: requests that wait for
// that end are told how many.
func TestFound_connectionsClosedBeforeTheEndOfTheProbation(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		r := w.reload(client.ReloadRequest{WaitProbation: true})
		c := k.takesOver()
		k.says(control.Message{Type: control.TypeDrained, Drained: &control.Drained{Generation: 2, Closed: 3}})
		c.final(k)
		if o := r.gets(client.Reloaded); o.Closed != 3 {
			t.Errorf("outcome = %+v", o)
		}
	})
}

// TestFound_aReloadBeforeAProgramThatCannotStart: the reload is answered.
func TestFound_aReloadBeforeAProgramThatCannotStart(t *testing.T) {
	inWorld(t, func(w *world) {
		p := w.started()
		r := w.reload(client.ReloadRequest{})
		p.die(proc.Status{Code: 1})
		if o := r.gets(client.Rejected); o.Error != errNotStarted.Error() {
			t.Errorf("outcome = %+v", o)
		}
	})
}

// TestFound_aGenerationThatDoesNotConfirm: whoever waits for the end of the probation is
// answered, and told.
func TestFound_aGenerationThatDoesNotConfirm(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		r := w.reload(client.ReloadRequest{WaitProbation: true})
		c := k.takesOver()
		k.die(proc.Status{})
		r.waits()
		time.Sleep(confirmTime)
		if o := r.gets(client.Reloaded); o.Probation != client.ProbationPending || !strings.Contains(o.String(), "does not say that it is final") {
			t.Errorf("outcome = %v", &o)
		}
		c.says(control.Message{Type: control.TypeFinal, Final: &control.Final{Generation: 2, Probation: client.ProbationPassed}})
		if o := w.status().LastReload; o.Probation != client.ProbationPassed {
			t.Errorf("after it has: %v", o)
		}
	})
}
