//go:build unix

package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/proc"
)

// These tests are about the sources: what is built and when, and what follows.

func TestSave_becomesTheNextGeneration(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.save("two\n")
		w.wantState(serving) // nothing is touched while it builds
		w.builds().succeeds()
		c, order := k.candidate()
		if text, err := os.ReadFile(order.Binary); string(text) != "binary of two\n" || !slices.Equal(order.Changed, []string{"p/hello"}) || order.Unknown {
			t.Errorf("the order is %+v, for %q, %v", order, text, err)
		}
		c.serves(&control.Report{Generation: 2, TookOver: true, Standby: true, Changed: []string{"hello"}})
		o := w.sup.last
		if o == nil || o.Verdict != client.Reloaded || len(o.Trigger) != 1 || filepath.Base(o.Trigger[0]) != filepath.Base(source) || o.StagesMS[client.StageBuild] != 0 {
			t.Errorf("the last reload is %+v", o)
		}
		c.final(k)
		w.buildsNothing()
	}, developing)
}

func TestSave_startsFromTheSources(t *testing.T) {
	inWorld(t, func(w *world) {
		w.startsNothing()
		b := w.builds()
		if seed, err := os.ReadFile(b.job.Out); string(seed) != "binary 0" {
			t.Errorf("go build begins with %q, %v", seed, err)
		}
		b.succeeds()
		p := w.started()
		if text, _ := os.ReadFile(p.binary); string(text) != "binary of one\n" {
			t.Errorf("started %q", text)
		}
		p.connect().serves(nil)
		w.buildsNothing()
	}, developing)
}

func TestSave_startsAsItIsIfTheFirstBuildFails(t *testing.T) {
	inWorld(t, func(w *world) {
		w.builds().fails("hello.go:1: nonsense")
		p := w.started()
		if p.binary != w.opts.Binary {
			t.Errorf("started %s", p.binary)
		}
		w.wantPrinted("hello.go:1: nonsense\nthe build failed; starting " + w.opts.Binary + " which does not match the sources")
		k := p.connect()
		k.serves(nil)
		w.buildsNothing() // it would fail again
		w.save("two\n")
		w.builds().succeeds()
		k.takesOver()
	}, developing)
}

func TestSave_aMistakeIsToldWhenTheFilesAreQuiet(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.save("mistake\n")
		w.builds().fails("hello.go:1: mistake")
		time.Sleep(quietTime - time.Millisecond)
		w.wantNotPrinted("hello.go:1: mistake")
		time.Sleep(time.Millisecond)
		w.wantPrinted("hello.go:1: mistake\nbuild failed after ")
		if o := w.sup.last; o.Verdict != client.Failed || o.Stage != client.StageBuild || o.ExitCode() != client.ExitBuild || o.Serving != 1 {
			t.Errorf("the last reload is %+v", o)
		}
		f := k.hears(control.TypeFailure).Failure
		if !slices.Equal(f.App.Modules, []string{"hello"}) || f.App.Stage != "build" {
			t.Errorf("the modules hear %+v", f)
		}
		w.watcher.changed <- struct{}{}
		w.buildsNothing() // the same mistake is not built again
		w.save("one\n")
		w.buildsNothing() // the mistake is undone
		w.save("mistake\n")
		w.builds() // and made again
	}, developing)
}

func TestSave_aHalfWrittenFileIsNobodysMistake(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.save("mist")
		w.builds().fails("unexpected end of file")
		time.Sleep(writingTime - time.Millisecond)
		w.wantNotPrinted("unexpected end of file")
		w.save("mistake undone\n")
		w.builds().succeeds()
		k.takesOver()
		w.wantNotPrinted("unexpected end of file")
	}, developing)
}

// TestSave_aFailureIsNotBelieved: the sources have changed, though no event said
// so.
func TestSave_aFailureIsNotBelieved(t *testing.T) {
	inWorld(t, func(w *world) {
		w.first()
		w.save("mistake\n")
		w.builds().fails("mistake")
		w.write(source, "mended\n")
		time.Sleep(quietTime)
		w.builds()
		w.wantNotPrinted("build failed")
	}, developing)
}

func TestSave_aNewerOneCancelsTheBuild(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.save("two\n")
		old := w.builds()
		w.save("three\n")
		if !old.wasCancelled() {
			t.Fatal("the build goes on")
		}
		w.builds().succeeds()
		if _, order := k.candidate(); order.Generation != 2 {
			t.Errorf("the order is %+v", order)
		}
		w.wantNotPrinted("failed")
	}, developing)
}

// TestSave_aStreamOfThemStarvesNobody: after three cancelled builds the next one
// reads copies, and nothing cancels it.
func TestSave_aStreamOfThemStarvesNobody(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.save("0\n")
		for i := range maxCancelled {
			b := w.builds()
			if b.job.Overlay != nil {
				t.Fatalf("build %d reads copies", i)
			}
			w.save(strings.Repeat("x", i+1) + "\n")
			if !b.wasCancelled() {
				t.Fatalf("build %d goes on", i)
			}
		}
		b := w.builds()
		w.save("last\n")
		if b.job.Overlay == nil || b.wasCancelled() {
			t.Fatalf("build %d: overlay %v", maxCancelled, b.job.Overlay)
		}
		b.succeeds()
		c, order := k.candidate()
		if text, _ := os.ReadFile(order.Binary); string(text) != "binary of xxx\n" {
			t.Errorf("built %q", text)
		}
		c.serves(&control.Report{Generation: 2, TookOver: true, Standby: true})
		w.builds().succeeds() // the last one
		c.candidate()
	}, developing)
}

// TestSave_aBuildOfBothIsThrownAway: the sources changed during it, though no
// event has said so yet.
func TestSave_aBuildOfBothIsThrownAway(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.save("two\n")
		b := w.builds()
		w.write(source, "three\n")
		b.succeeds()
		k.hearsNothing()
		w.builds().succeeds()
		k.candidate()
	}, developing)
}

func TestSave_undoneWhileItBuilds(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.save("two\n")
		b := w.builds()
		w.save("one\n")
		if !b.wasCancelled() {
			t.Fatal("the build goes on")
		}
		w.buildsNothing()
		k.hearsNothing()
		if w.sup.job != nil {
			t.Error("a job is left")
		}
	}, developing)
}

// TestSave_thatChangesNothing: the same binary is not reloaded.
func TestSave_thatChangesNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.save("one // with a comment\n")
		b := w.builds()
		if err := os.WriteFile(b.job.Out, []byte("binary of one\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		b.done <- nil
		w.wantPrinted("unchanged: the build is the one that serves, generation 1")
		k.hearsNothing()
		w.watcher.changed <- struct{}{}
		w.buildsNothing()
		// On request it is reloaded all the same.
		w.reload(client.ReloadRequest{})
		k.hears(control.TypeUpgrade)
	}, developing)
}

func TestSave_ofTheConfigurationBuildsNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		serves := w.sup.plan.current.binary
		w.write("main.yaml", "app: {drain: 1s}\n")
		w.watcher.changed <- struct{}{}
		w.buildsNothing()
		if c, order := k.candidate(); order.Binary != serves || order.Unknown || len(order.Changed) > 0 {
			t.Errorf("%v is started: %+v", c, order)
		}
	}, developing)
}

// TestSave_ofAConfigurationThatIsRemoved: the candidate refuses it.
func TestSave_ofAConfigurationThatIsRemoved(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		if err := os.Remove(w.opts.ConfigFile); err != nil {
			t.Fatal(err)
		}
		w.watcher.changed <- struct{}{}
		time.Sleep(writingTime)
		k.hears(control.TypeUpgrade)
	}, developing)
}

func TestSave_ofAConfigurationThatIsBeingWritten(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.write("main.yaml", "")
		w.watcher.changed <- struct{}{}
		k.hearsNothing()
		w.write("main.yaml", "app:\n")
		time.Sleep(writingTime)
		k.hearsNothing() // the configuration is as it was
		w.write("main.yaml", "app: {drain")
		w.watcher.changed <- struct{}{}
		time.Sleep(writingTime)
		k.hears(control.TypeUpgrade) // it stays half-written: the candidate decides
	}, developing)
}

func TestSave_whileANewGenerationIsOnProbation(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.save("two\n")
		w.builds().succeeds()
		c := k.takesOver()
		w.save("three\n")
		b := w.builds()
		// The second fails meanwhile: what is built is compared with the first.
		c.die(proc.Status{Code: 1})
		k.hears(control.TypeExpedite)
		k.fails(control.Report{Generation: 2, Committed: true, Stage: client.StageProbation, Error: "it exited"})
		k.hears(control.TypeFailure)
		b.succeeds()
		if _, order := k.candidate(); order.Generation != 3 || !slices.Equal(order.Changed, []string{"p/hello"}) {
			t.Errorf("the order is %+v", order)
		}
	}, developing)
}

// TestSave_whatWasRolledBackIsNotTriedAgain: not until it changes.
func TestSave_whatWasRolledBackIsNotTriedAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.save("two\n")
		w.builds().succeeds()
		c := k.takesOver()
		c.die(proc.Status{Code: 1})
		k.hears(control.TypeExpedite)
		k.fails(control.Report{Generation: 2, Committed: true, Stage: client.StageProbation, Error: "it exited"})
		k.hears(control.TypeFailure)
		w.watcher.changed <- struct{}{}
		w.buildsNothing()
		w.save("one\n") // what serves
		w.buildsNothing()
		w.save("three\n")
		w.builds()
	}, developing)
}

func TestSave_aCandidateThatFailsIsToldWhenTheFilesAreQuiet(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.save("two\n")
		w.builds().succeeds()
		c, _ := k.candidate()
		c.die(proc.Status{Code: 1})
		k.fails(control.Report{Generation: 2, Stage: client.StageInitialize, Module: "hello", Error: "no database"})
		w.wantNotPrinted("no database")
		time.Sleep(quietTime)
		w.wantPrinted("reload rejected in initialize of module hello: no database; generation 1 still serves")
	}, developing)
}

// TestNobodyReadsTheTerminal: the loop ignores errors of Write. That it never
// waits is tested in package console, and in app/e2e with a real terminal.
func TestNobodyReadsTheTerminal(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		w.reload(client.ReloadRequest{})
		k.takesOver()
	}, func(w *world) { w.opts.Out = deafTerminal{} })
}

type deafTerminal struct{}

func (deafTerminal) Write([]byte) (int, error) { return 0, errors.New("input/output error") }

// TestSave_aListingDuringWhichTheSourcesChange: it is made again.
func TestSave_aListingDuringWhichTheSourcesChange(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.first()
		listings := 0
		w.builder.onList = func() {
			if listings++; listings == 1 {
				w.write(source, "three\n")
			}
		}
		w.write("new.go", "package p\n") // a new file has to be listed
		w.save("two\n")
		w.builds().succeeds()
		_, order := k.candidate()
		if text, _ := os.ReadFile(order.Binary); string(text) != "binary of three\n" || listings != 2 {
			t.Errorf("built %q after %d listings, want three after 2", text, listings)
		}
	}, developing)
}

// TestSave_startsAProgramThatCouldNotStart: a first start that fails is not the end of
// the edit-save-see loop.
func TestSave_startsAProgramThatCouldNotStart(t *testing.T) {
	inWorld(t, func(w *world) {
		w.builds().succeeds()
		w.started().die(proc.Status{Code: 2})
		w.wantPrinted("waiting for a change of the sources")
		w.startsNothing()
		if o := w.status().LastReload; o == nil || o.Verdict != client.Failed || o.Stage != client.StageStart || !strings.Contains(o.Error, "exit status 2") {
			t.Errorf("status says %+v", o)
		}
		w.save("two\n")
		w.builds().succeeds()
		w.started().die(proc.Status{Code: 2})
		r := w.reload(client.ReloadRequest{}) // as it is
		r.waits()
		k := w.started().connect()
		k.serves(nil)
		k.takesOver() // as asked
		r.gets(client.Reloaded)
	}, developing)
}

// TestSave_aWrongConfigurationEndsAStart, but not the wait for a fix.
func TestSave_aWrongConfigurationEndsAStart(t *testing.T) {
	for _, waits := range []bool{false, true} {
		inWorld(t, func(w *world) {
			w.builds().succeeds()
			if waits {
				w.started().die(proc.Status{Code: 2}) // a panic
				w.wantPrinted("waiting for a change")
				w.save("two\n")
				w.builds().succeeds()
			}
			w.started().die(proc.Status{Code: control.ExitConfig})
			if !waits {
				if code := w.code(); code != client.ExitUsage {
					t.Errorf("run ends with %d", code)
				}
				return
			}
			w.wantPrinted("waiting for a change")
			w.save("three\n")
			w.builds().succeeds()
			w.started().connect().serves(nil)
		}, developing)
	}
}

func TestSave_startsAProgramThatCouldNotStartAsItWas(t *testing.T) {
	inWorld(t, func(w *world) {
		w.builds().fails("hello.go:1: nonsense")
		w.started().die(proc.Status{Code: 2})
		w.save("two\n")
		w.builds().succeeds()
		w.started().connect().serves(nil)
		w.wantState(serving)
	}, developing)
}

// TestSave_isTriedAgain: what refuses a save for a while does not refuse it for ever.
func TestSave_isTriedAgain(t *testing.T) {
	for why, r := range map[string]control.Report{
		"busy":     {Stage: client.StageHold, Error: "still running"},
		"mistaken": {Stage: client.StageInitialize, Error: "a mistake"},
	} {
		t.Run(why, func(t *testing.T) {
			inWorld(t, func(w *world) {
				k := w.first()
				w.save("two\n")
				w.builds().succeeds()
				_, order := k.candidate()
				r.Generation = order.Generation
				k.fails(r)
				time.Sleep(quietTime)
				k.hears(control.TypeFailure)
				time.Sleep(retryTime - time.Second)
				w.buildsNothing()
				time.Sleep(2 * time.Second)
				if why == "mistaken" {
					w.buildsNothing()
					w.wantNotPrinted("tried again")
					return
				}
				w.wantPrinted("the sources are tried again in 5s")
				w.builds().succeeds()
				k.takesOver()
			}, developing)
		})
	}
}

// TestSave_thatIsUndone: what has healed is said, and status no longer shows the mistake.
func TestSave_thatIsUndone(t *testing.T) {
	inWorld(t, func(w *world) {
		w.first()
		w.save("mistake\n")
		w.builds().fails("hello.go:1: mistake")
		time.Sleep(quietTime)
		w.wantPrinted("build failed")
		w.save("one\n")
		w.buildsNothing()
		w.wantPrinted("undone: the sources are again those of generation 1")
		if o := w.status().LastReload; o == nil || o.Verdict != client.Unchanged || o.Error != "" {
			t.Errorf("status says %+v", o)
		}
		w.save("one\n")
		if n := strings.Count(w.printed(), "undone"); n != 1 {
			t.Errorf("it says so %d times", n)
		}
	}, developing)
}
