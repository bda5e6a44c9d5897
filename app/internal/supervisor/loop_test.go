//go:build unix

package supervisor

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/proc"
	"example.org/orchestrator/app/internal/wire"
)

// These tests are about the life of the program: how it starts, serves and
// stops, and who may talk to it.

func TestStart_servesAndSaysWhere(t *testing.T) {
	inWorld(t, func(w *world) {
		w.wantState(starting)
		p := w.started()
		if p.generation != 1 || p.binary != w.opts.Binary {
			t.Errorf("started %v, want generation 1 of %s", p, w.opts.Binary)
		}
		k := p.connect()
		w.wantState(starting)
		k.serves(nil)
		w.wantState(serving)
		w.wantPrinted("generation 1 serves on http://127.0.0.1:1 (process 1001)")
		s := w.status()
		if s.State != client.Serving || s.Generation != 1 || s.PID != p.pid || s.Name != "test" || len(s.Modules) != 2 || s.LastReload != nil || s.HotReload {
			t.Errorf("status = %+v", s)
		}
	})
}

func TestStart_endsWithTheWorkersCode(t *testing.T) {
	for _, code := range []int{0, 1, 2} {
		inWorld(t, func(w *world) {
			w.started().die(proc.Status{Code: code})
			if got, want := w.code(), max(1, code); got != want {
				t.Errorf("the program ends with %d, want %d", got, want)
			}
			w.wantPrinted("the program could not start")
		})
	}
}

func TestStart_saysWhatCannotBeStarted(t *testing.T) {
	inWorld(t, func(w *world) {
		if code := w.code(); code != 1 || w.runErr == nil || !strings.Contains(w.runErr.Error(), "start "+w.opts.Binary+": no such binary") {
			t.Errorf("run = %d, %v", code, w.runErr)
		}
	}, func(w *world) { w.startErr = errors.New("no such binary") })
}

func TestStart_isRefusedWhereOneRuns(t *testing.T) {
	inWorld(t, func(w *world) {
		if code := w.code(); code != 1 || w.runErr == nil {
			t.Errorf("run = %d, %v; want 1 and why", code, w.runErr)
		}
		w.startsNothing()
	}, func(w *world) { w.locked = -1 })
}

func TestStart_needsSourcesInDevelopment(t *testing.T) {
	inWorld(t, func(w *world) {
		if code := w.code(); code != 1 || !strings.Contains(w.runErr.Error(), "no Go here; start it in the folder of its sources") {
			t.Errorf("run = %d, %v", code, w.runErr)
		}
	}, developing, func(w *world) { w.builder.broken = errors.New("no Go here") })
}

func TestStop(t *testing.T) {
	for _, tt := range []struct {
		name  string
		stops func(w *world, k *fakeWorker)
		want  int
		says  string
	}{
		{"gracefully", func(_ *world, k *fakeWorker) {
			k.hears(control.TypeStop)
			k.die(proc.Status{})
		}, 0, ""},
		{"with a Shutdown that failed", func(_ *world, k *fakeWorker) {
			k.hears(control.TypeStop)
			k.die(proc.Status{Code: 1})
		}, 1, ""},
		{"too slowly", func(_ *world, k *fakeWorker) {
			k.hears(control.TypeStop)
			time.Sleep(3 * time.Second)
		}, 1, "the program did not stop in time: killing it"},
		{"at once, when told twice", func(w *world, k *fakeWorker) {
			k.hears(control.TypeStop)
			time.Sleep(secondTime)
			w.signals <- syscall.SIGINT
		}, 128 + int(syscall.SIGINT), "killing everything"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				k := w.first()
				w.signals <- syscall.SIGTERM
				w.wantState(stopping)
				if s := w.sup.status(); s.State != client.Stopping {
					t.Errorf("status says %s", s.State)
				}
				tt.stops(w, k)
				if got := w.code(); got != tt.want {
					t.Errorf("the program ends with %d, want %d", got, tt.want)
				}
				w.wantPrinted(tt.says)
			})
		})
	}
}

// TestStop_isOneHoweverManySignals: a service manager and pkill send them to every
// process at once, and workers relay theirs.
func TestStop_isOneHoweverManySignals(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		k.says(control.Message{Type: control.TypeSignal, Signal: "terminated"})
		w.wantState(stopping)
		w.signals <- syscall.SIGTERM
		w.signals <- syscall.SIGTERM
		k.hears(control.TypeStop)
		time.Sleep(secondTime)
		k.says(control.Message{Type: control.TypeSignal, Signal: "terminated"})
		k.hearsNothing()
		k.die(proc.Status{})
		if got := w.code(); got != 0 {
			t.Errorf("the program ends with %d, want 0", got)
		}
		w.wantNotPrinted("killing everything")
	})
}

func TestStop_beforeAnythingServes(t *testing.T) {
	inWorld(t, func(w *world) {
		p := w.started()
		w.signals <- syscall.SIGTERM
		if got := w.code(); got != 0 || p.ended().Signal != "terminated" {
			t.Errorf("the program ends with %d, the worker with %v", got, p.ended())
		}
	})
}

func TestStop_killsAStartThatIgnoresIt(t *testing.T) {
	inWorld(t, func(w *world) {
		p := w.started()
		p.deaf = true
		w.signals <- syscall.SIGTERM
		began := time.Now()
		if got := w.code(); got != 1 || p.ended().Signal != "killed" {
			t.Errorf("the program ends with %d, the worker with %v", got, p.ended())
		}
		if took := time.Since(began); took < stopLimit || took > stopLimit+time.Second {
			t.Errorf("that took %v, want %v", took, stopLimit)
		}
	})
}

func TestStop_reachesAWorkerThatComesLate(t *testing.T) {
	inWorld(t, func(w *world) {
		p := w.started()
		p.deaf = true
		w.signals <- syscall.SIGTERM
		k := p.connect()
		k.hears(control.TypeStop)
		k.die(proc.Status{})
		if got := w.code(); got != 0 {
			t.Errorf("the program ends with %d, want 0", got)
		}
	})
}

func TestStop_answersWhoeverWaits(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		running := w.reload(client.ReloadRequest{})
		c, _ := k.candidate()
		queued := w.reload(client.ReloadRequest{})
		w.signals <- syscall.SIGTERM
		for _, r := range []*fakeClient{running, queued} {
			if o := r.gets(client.Rejected); o.Error != errStopping.Error() || o.ExitCode() != client.ExitRejected {
				t.Errorf("outcome = %+v", o)
			}
		}
		k.hears(control.TypeStop)
		c.hears(control.TypeStop)
		if o := w.reload(client.ReloadRequest{}).gets(client.Rejected); o.Error != errStopping.Error() {
			t.Errorf("a reload after the stop = %+v", o)
		}
	})
}

func TestSIGHUP(t *testing.T) {
	for _, tt := range []struct {
		name               string
		started, terminal  bool // in a terminal; the terminal is still there
		wantStop, wantLoad bool
	}{
		{"as a service", false, false, false, true},
		{"in a terminal", true, true, false, true},
		{"of a terminal that was closed", true, false, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				k := w.first()
				w.terminal = tt.terminal
				w.signals <- syscall.SIGHUP
				if tt.wantStop {
					k.hears(control.TypeStop)
				} else {
					k.hears(control.TypeUpgrade)
				}
			}, func(w *world) { w.terminal = tt.started })
		})
	}
}

func TestSIGHUP_makesTheRunDirAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		synctest.Wait() // the binary has been copied
		if err := os.RemoveAll(w.opts.RunDir); err != nil {
			t.Fatal(err)
		}
		w.signals <- syscall.SIGHUP
		k.hears(control.TypeUpgrade)
		w.wantPrinted("the run_dir had been removed: made it again")
		if _, err := os.Stat(wire.Socket(w.opts.RunDir)); err != nil {
			t.Error(err)
		}
		if kept := w.sup.builds.copy[1]; !exists(kept) {
			t.Errorf("there is no copy of the running binary at %q", kept)
		}
	})
}

// TestAForeignClient asks for something that this supervisor does not know.
func TestAForeignClient(t *testing.T) {
	inWorld(t, func(w *world) {
		w.first()
		k := w.ask(control.Message{Type: "teleport"})
		if m := <-k.answer; m.Type != control.TypeError || !strings.Contains(m.Error, `does not know "teleport"`) {
			t.Errorf("the answer is %+v", m)
		}
	})
}

// TestAWorkerThatTalksNonsense: only the nonsense is ignored.
func TestAWorkerThatTalksNonsense(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		k.conn.Send("nonsense")
		k.says(control.Message{Type: "unheard of"})
		for _, empty := range []string{control.TypeServing, control.TypeReport, control.TypeStage, control.TypeFinal, control.TypeDrained, control.TypeEvent, control.TypeStatus} {
			k.says(control.Message{Type: empty})
		}
		w.wantState(serving)
		w.wantPrinted("ignored a message")
	})
}

func TestStatus_waitsForTheWorkerOnlySoLong(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		first := w.ask(control.Message{Type: control.TypeStatus})
		second := w.ask(control.Message{Type: control.TypeStatus})
		k.hears(control.TypeStatus) // one question for both
		k.hearsNothing()
		k.says(control.Message{Type: control.TypeStatus, Status: &client.Status{Goroutines: 42}})
		for _, c := range []*fakeClient{first, second} {
			if m := <-c.answer; m.Status == nil || m.Status.Goroutines != 42 {
				t.Errorf("status = %+v", m.Status)
			}
		}
		began := time.Now()
		if s := w.status(); s.Goroutines != 0 || time.Since(began) > 2*workerAnswerTime {
			t.Errorf("status of a silent worker = %+v after %v", s, time.Since(began))
		}
	})
}

func TestStatus_ofAWorkerThatDies(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		c := w.ask(control.Message{Type: control.TypeStatus})
		k.die(proc.Status{Code: 1})
		synctest.Wait()
		if m := <-c.answer; m.Status == nil || m.Status.Generation != 1 {
			t.Errorf("status = %+v", m.Status)
		}
	})
}

func TestEvents(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		event := func(topic string) {
			k.says(control.Message{Type: control.TypeEvent, Event: &client.Event{Generation: 1, Topic: topic}})
		}
		event("module.reloaded")
		event("orders.placed") // nobody has asked for it
		past := w.ask(control.Message{Type: control.TypeEvents, Events: &client.EventsRequest{}})
		live := w.ask(control.Message{Type: control.TypeEvents, Events: &client.EventsRequest{Follow: true}})
		synctest.Wait()
		k.hearsNothing()
		all := w.ask(control.Message{Type: control.TypeEvents, Events: &client.EventsRequest{Follow: true, All: true}})
		if m := k.hears(control.TypeFollow); !m.Follow {
			t.Error("the worker is told that nobody follows")
		}
		event("app.reloaded")
		event("orders.placed")
		synctest.Wait()
		for _, tt := range []struct {
			c    *fakeClient
			want string
		}{
			{past, "1module.reloaded end"},
			{live, "1module.reloaded 3app.reloaded"},
			{all, "1module.reloaded 3app.reloaded 4orders.placed"},
		} {
			var got []string
			for len(tt.c.answer) > 0 {
				if m := <-tt.c.answer; m.Type == control.TypeEvent {
					got = append(got, string(rune('0'+m.Event.Seq))+m.Event.Topic)
				} else {
					got = append(got, m.Type)
				}
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("events = %s, want %s", s, tt.want)
			}
		}
		all.conn.Close()
		if m := k.hears(control.TypeFollow); m.Follow {
			t.Error("the worker is told that somebody still follows")
		}
		live.conn.Close()
		synctest.Wait()
		if n := len(w.sup.events.followers); n != 0 {
			t.Errorf("%d followers after the last has gone", n)
		}
	})
}

// TestAWorkerThatDoesNotRead: the loop goes on.
func TestAWorkerThatDoesNotRead(t *testing.T) {
	inWorld(t, func(w *world) {
		w.first()
		for range 100 { // nobody reads what each of them sends to the worker
			w.ask(control.Message{Type: control.TypeStatus})
		}
		if s := w.status(); s.State != client.Serving {
			t.Errorf("status = %+v", s)
		}
	})
}

// TestHotReloadIsSwitched: the configuration of the serving generation does it.
func TestHotReloadIsSwitched(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.wantPrinted(logIgnoring)
		if w.sup.plan.watcher != nil {
			t.Error("the sources are watched without hot reload")
		}
		c, order := k.candidate2(w)
		c.serves(&control.Report{Generation: order.Generation, TookOver: true}, func(s *control.Serving) { s.HotReload = true })
		synctest.Wait()
		if w.sup.plan.watcher == nil {
			t.Error("the sources are not watched with hot reload on")
		}
		c.final(k)
		w.watcher.changed <- struct{}{}
		b := w.builds() // the sources have never been looked at
		b.succeeds()
		d, order := c.candidate()
		d.serves(&control.Report{Generation: order.Generation, TookOver: true}, func(s *control.Serving) { s.HotReload = false })
		synctest.Wait()
		if !w.watcher.closed || strings.Count(w.printed(), logIgnoring) != 2 {
			t.Errorf("closed %v, said %d times", w.watcher.closed, strings.Count(w.printed(), logIgnoring))
		}
	})
}

// candidate2 asks for a reload and returns its candidate.
func (k *fakeWorker) candidate2(w *world) (*fakeWorker, control.Upgrade) {
	w.t.Helper()
	w.reload(client.ReloadRequest{})
	return k.candidate()
}
