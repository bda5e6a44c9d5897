//go:build unix

package supervisor

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/proc"
)

// These tests are about generations that die while they serve.

func TestCrash_isFollowedByAStartAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		k.die(proc.Status{Code: -1, Signal: "killed"})
		w.wantState(recovering)
		w.wantPrinted("generation 1 is gone (signal: killed), and with it the state in memory of [counter]; starting it again at once")
		if s := w.sup.status(); s.State != client.Starting || s.LastCrash == nil || s.LastCrash.Serving != 0 {
			t.Errorf("status = %+v", s)
		}
		p := w.started()
		if p.generation != 2 || !strings.HasPrefix(p.binary, w.opts.RunDir) {
			t.Errorf("started %v, want generation 2 of the copy", p)
		}
		p.connect().serves(nil)
		w.wantState(serving)
		c := w.sup.status().LastCrash
		if c.Generation != 1 || c.Serving != 2 || c.Older || c.Build == "" || !slices.Equal(c.Lost, []string{"counter"}) || c.Error != "signal: killed" {
			t.Errorf("the crash is %+v", c)
		}
		if e := w.sup.events.last(); len(e) != 1 || e[0].Topic != topicCrashed || e[0].Generation != 2 {
			t.Errorf("events: %+v", e)
		}
	})
}

func TestCrash_backsOffWhileItRepeats(t *testing.T) {
	inWorld(t, func(w *world) {
		w.first().die(proc.Status{Code: 1})
		for i, wait := range []time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond, 3200 * time.Millisecond, 5 * time.Second, 5 * time.Second} {
			p := w.startedAfter(wait)
			if i%2 == 0 {
				p.die(proc.Status{Code: 1}) // before it connects
				continue
			}
			k := p.connect() // or while it starts
			k.die(proc.Status{Code: 1})
		}
	})
}

func TestCrash_isForgottenAfterAWhile(t *testing.T) {
	inWorld(t, func(w *world) {
		w.first().die(proc.Status{Code: 1})
		k := w.started().connect()
		k.serves(nil)
		time.Sleep(stableTime / 2)
		k.die(proc.Status{Code: 1})
		k = w.startedAfter(100 * time.Millisecond).connect()
		k.serves(nil)
		time.Sleep(stableTime)
		synctest.Wait()
		k.die(proc.Status{Code: 1})
		w.started() // at once
	})
}

func TestCrash_aStartThatHangsIsKilled(t *testing.T) {
	inWorld(t, func(w *world) {
		w.first().die(proc.Status{Code: 1})
		p := w.started()
		time.Sleep(6 * time.Second) // twice as long as a stop may take
		synctest.Wait()
		if s := p.ended(); s == nil || s.Signal != "killed" {
			t.Errorf("it ended with %v", s)
		}
		w.startedAfter(100 * time.Millisecond)
	})
}

func TestCrash_whatCannotBeStartedIsTriedAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.mu.Lock()
		w.startErr = errors.New("text file busy")
		w.mu.Unlock()
		k.die(proc.Status{Code: 1})
		w.wantPrinted("text file busy")
		w.startedAfter(100 * time.Millisecond)
	})
}

// TestCrash_anOlderBuildIsTried: only if that is allowed, and after some tries.
func TestCrash_anOlderBuildIsTried(t *testing.T) {
	for _, allowed := range []bool{false, true} {
		inWorld(t, func(w *world) {
			k := w.first()
			older := w.sup.builds.copy[1]
			w.write("new", "binary 1")
			w.reload(client.ReloadRequest{Binary: w.dir + "/new"})
			c, order := k.candidate()
			c.serves(&control.Report{Generation: order.Generation, TookOver: true}, func(s *control.Serving) { s.RestartOlderBuild = allowed })
			c.final(k)
			c.die(proc.Status{Code: 1})
			var p *process
			for range tooManyCrashes {
				p = w.waitStarted()
				if p.binary == older {
					t.Fatal("the older build is tried too early")
				}
				p.die(proc.Status{Code: 1})
			}
			p = w.waitStarted()
			if got := p.binary == older; got != allowed {
				t.Fatalf("allowed %v: started %s, the older one is %s", allowed, p.binary, older)
			}
			p.connect().serves(nil)
			if o := w.sup.status().LastCrash.Older; o != allowed {
				t.Errorf("the crash says older: %v", o)
			}
		})
	}
}

// waitStarted waits for the next process to start and returns it.
func (w *world) waitStarted() *process {
	w.t.Helper()
	select {
	case p := <-w.starts:
		return p
	case <-time.After(time.Minute):
		w.t.Fatal("nothing is started")
		return nil
	}
}

// TestCrash_aReloadIsWhatMayRepairIt: its binary is started instead.
func TestCrash_aReloadIsWhatMayRepairIt(t *testing.T) {
	for name, when := range map[string]func(w *world){
		"while one waits for the next start": func(w *world) { w.started().die(proc.Status{Code: 1}) },
		"while one starts": func(w *world) {
			w.started().die(proc.Status{Code: 1})
			w.startedAfter(100 * time.Millisecond)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.first().die(proc.Status{Code: 1})
				when(w)
				w.write("mended", "binary 1")
				r := w.reload(client.ReloadRequest{Binary: w.dir + "/mended"})
				w.wantPrinted("nothing has served since the crash: starting " + w.dir + "/mended instead")
				p := w.started()
				if p.binary != w.dir+"/mended" {
					t.Fatalf("started %s", p.binary)
				}
				r.waits()
				k := p.connect()
				k.serves(nil)
				k.takesOver() // what was asked for
				r.gets(client.Reloaded)
			})
		})
	}
}

func TestCrash_aSaveIsWhatMayRepairIt(t *testing.T) {
	inWorld(t, func(w *world) {
		w.first().die(proc.Status{Code: 1})
		w.started().die(proc.Status{Code: 1})
		w.save("mended\n")
		w.builds().succeeds()
		p := w.started()
		if text, _ := os.ReadFile(p.binary); string(text) != "binary of mended\n" {
			t.Fatalf("started %q", text)
		}
		p.connect().serves(nil)
		w.buildsNothing()
	}, developing)
}

// TestCrash_aReloadDuringTheFirstRestartWaits: for the end of that restart.
func TestCrash_aReloadDuringTheFirstRestartWaits(t *testing.T) {
	inWorld(t, func(w *world) {
		w.first().die(proc.Status{Code: 1})
		p := w.started()
		r := w.reload(client.ReloadRequest{})
		r.waits()
		k := p.connect()
		k.serves(nil)
		k.takesOver()
		r.gets(client.Reloaded)
	})
}

// TestCrash_aReloadThatWaitsIsStarted: once it is clear that nothing else starts.
func TestCrash_aReloadThatWaitsIsStarted(t *testing.T) {
	inWorld(t, func(w *world) {
		w.first().die(proc.Status{Code: 1})
		p := w.started()
		w.write("mended", "binary 1")
		w.reload(client.ReloadRequest{Binary: w.dir + "/mended"}).waits()
		p.die(proc.Status{Code: 1})
		if p := w.started(); p.binary != w.dir+"/mended" {
			t.Errorf("started %s", p.binary)
		}
	})
}

// TestCrash_duringADrain: the restart does not wait for the end of the drain.
func TestCrash_duringADrain(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.reload(client.ReloadRequest{})
		c := k.takesOver()
		c.says(control.Message{Type: control.TypeFinal, Final: &control.Final{Generation: 2, Probation: client.ProbationPassed}})
		c.die(proc.Status{Code: 1})
		k.hears(control.TypeExpedite)
		w.startsNothing()
		k.die(proc.Status{})
		w.started()
	})
}

// TestCrash_aCandidateThatHangsAlone: it is killed after as long as a stop may
// take.
func TestCrash_aCandidateThatHangsAlone(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.reload(client.ReloadRequest{})
		c, _ := k.candidate()
		k.die(proc.Status{Code: 1})
		c.hears(control.TypeExpedite)
		w.startsNothing()
		time.Sleep(3*time.Second + answerTime)
		synctest.Wait()
		if s := c.ended(); s == nil || s.Signal != "killed" {
			t.Fatalf("the candidate ended with %v", s)
		}
		w.wantPrinted("has not taken over 5s after generation 1 died: killing it")
		w.started()
	})
}

// TestCrash_theCandidateGoesOn: it has all the state.
func TestCrash_theCandidateGoesOn(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		r := w.reload(client.ReloadRequest{})
		c, order := k.candidate()
		k.die(proc.Status{Code: 1})
		c.hears(control.TypeExpedite)
		c.serves(&control.Report{Generation: order.Generation, TookOver: true, Notes: []string{"the old generation died"}})
		if o := r.gets(client.Reloaded); o.Probation != "" || len(o.Notes) != 1 {
			t.Errorf("outcome = %+v", o)
		}
		if w.sup.crashes.last != nil {
			t.Error("a crash is told, and nothing was lost")
		}
	})
}

// TestCrash_afterARollback: the build that serves again is started.
func TestCrash_afterARollback(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		first := w.sup.builds.copy[1]
		w.write("new", "binary 1")
		w.reload(client.ReloadRequest{Binary: w.dir + "/new"})
		c := k.takesOver()
		c.die(proc.Status{Code: 1})
		k.hears(control.TypeExpedite)
		k.fails(control.Report{Generation: 2, Committed: true, Stage: client.StageProbation, Error: "it exited"})
		k.die(proc.Status{Code: 1})
		if p := w.started(); p.binary != first {
			t.Errorf("started %s, want %s", p.binary, first)
		}
	})
}

func TestCrash_makesARemovedRunDirAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		os.RemoveAll(w.opts.RunDir)
		k.die(proc.Status{Code: 1})
		w.started()
		w.wantPrinted("the run_dir had been removed")
	})
}

func TestCrash_ofAGenerationThatNobodyKnowsTheEndOf(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		k.conn.Close() // its link ends, and it lives
		time.Sleep(statusTime + time.Millisecond)
		synctest.Wait()
		w.startsNothing() // two must not serve
		k.die(proc.Status{Code: 1})
		w.started()
		w.wantPrinted("generation 1 is gone (it died)")
	})
}
