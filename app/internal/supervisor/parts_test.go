//go:build unix

package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/sources"
)

// These tests are tables for the parts that the loop owns, without the loop.

func TestPlaceFor(t *testing.T) {
	building := &job{phase: buildPhase}
	for _, tt := range []struct {
		name        string
		job         *job
		now         state
		crashLoop   bool
		fromSources bool
		want        place
	}{
		{"nothing serves yet", nil, starting, false, false, placeQueue},
		{"the first build", &job{initial: true, phase: buildPhase}, starting, false, true, placeQueue},
		{"it serves", nil, serving, false, false, placeStart},
		{"on probation", nil, probation, false, false, placeStart},
		{"a first restart", nil, recovering, false, false, placeQueue},
		{"a restart that has failed", nil, recovering, true, false, placeStart},
		{"a build is what is wanted", building, serving, false, true, placeJoin},
		{"a listing is what is wanted", &job{phase: listPhase}, serving, false, true, placeJoin},
		{"a build, but a binary is wanted", building, serving, false, false, placeQueue},
		{"an upgrade", &job{phase: upgradePhase}, upgrading, false, true, placeQueue},
		{"a failure that is not believed yet", &job{phase: failedPhase}, serving, false, false, placeRetry},
	} {
		if got := placeFor(tt.job, tt.now, tt.crashLoop, tt.fromSources); got != tt.want {
			t.Errorf("%s: placeFor = %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestQueue(t *testing.T) {
	var q queue
	a, b := &request{}, &request{}
	if q.take() != nil || q.put(a) != nil || q.put(b) != a {
		t.Error("the queue does not have room for exactly one, the latest")
	}
	if q.drop(a) || !q.drop(b) || q.take() != nil {
		t.Error("drop removes what does not wait, or leaves what does")
	}
	q.put(a)
	if q.take() != a || q.take() != nil {
		t.Error("take does not take")
	}
}

// snapshot returns a snapshot of a single file.
func snapshot(t *testing.T, text string) *sources.Snapshot {
	t.Helper()
	file := filepath.Join(snapshotDir, "a.go")
	if err := os.MkdirAll(snapshotDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return sources.Take(sources.Set{Files: []string{file}})
}

// snapshotDir is the same for all snapshots, so that they can be compared.
var snapshotDir = filepath.Join(os.TempDir(), fmt.Sprint("orchestrator-plan-", os.Getpid()))

func TestPlan_wants(t *testing.T) {
	t.Cleanup(func() { os.RemoveAll(snapshotDir) })
	serves, failed, other := snapshot(t, "serves"), snapshot(t, "failed"), snapshot(t, "other")
	now := time.Now()
	young := func(phase phase, restarts int) *job {
		return &job{phase: phase, snap: other, began: now.Add(-time.Second), restarts: restarts}
	}
	for _, tt := range []struct {
		name  string
		snap  *sources.Snapshot
		job   *job
		alive bool
		want  wish
	}{
		{"what serves", serves, nil, true, wishMatches},
		{"what failed last", failed, nil, true, wishNothing},
		{"something else", other, nil, true, wishReload},
		{"something else, before anything serves", other, nil, false, wishNothing},
		{"what is being built", other, young(buildPhase, 0), true, wishNothing},
		{"something else than is being built", failed, young(buildPhase, 0), true, wishCancel},
		{"likewise, after many cancelled builds", failed, young(buildPhase, maxCancelled), true, wishBuildAgain},
		{"likewise, after a long time", failed, &job{phase: buildPhase, snap: other, began: now.Add(-maxWaiting)}, true, wishBuildAgain},
		{"likewise, from copies", failed, &job{phase: buildPhase, snap: other, began: now, frozen: true}, true, wishNothing},
		{"something else than is listed", failed, young(listPhase, 0), true, wishNothing},
		{"something else than is handed over", failed, young(upgradePhase, 0), true, wishNothing},
		{"something else than has just failed", failed, young(failedPhase, 0), true, wishRetry},
		{"what has just failed", other, young(failedPhase, 0), true, wishNothing},
	} {
		p := plan{current: origin{snap: serves}, refused: failed}
		if got := p.wants(tt.snap, tt.job, tt.alive, now); got != tt.want {
			t.Errorf("%s: wants = %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestHalfWritten(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		text string
		want bool
	}{{"", true}, {"package p", true}, {"package p\n", false}, {"\n", false}} {
		file := filepath.Join(dir, "a.go")
		if err := os.WriteFile(file, []byte(tt.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := halfWritten(file); got != tt.want {
			t.Errorf("halfWritten(%q) = %v, want %v", tt.text, got, tt.want)
		}
	}
	if !halfWritten(filepath.Join(dir, "gone.go")) {
		t.Error("a file that is gone counts as whole")
	}
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{0: 0, 1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 6: 3200 * time.Millisecond, 7: 5 * time.Second, 1000: 5 * time.Second} {
		if got := backoff(n); got != want {
			t.Errorf("backoff(%d) = %v, want %v", n, got, want)
		}
	}
}

func TestCrashes_again(t *testing.T) {
	older := filepath.Join(t.TempDir(), "older")
	if err := os.WriteFile(older, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		c      crashes
		older  string
		want   string
		tried  int
		inARow int
	}{
		{"the first", crashes{}, older, "same", 0, 1},
		{"many, without leave", crashes{inARow: 9}, older, "same", 0, 10},
		{"many, with leave", crashes{inARow: 3, mayOlder: true}, older, older, 3, 4},
		{"too few, with leave", crashes{inARow: 2, mayOlder: true}, older, "same", 0, 3},
		{"many, and the older one is gone", crashes{inARow: 3, mayOlder: true}, "/gone", "same", 0, 4},
		{"another build was made", crashes{inARow: 3, mayOlder: true, instead: "mended"}, older, "mended", 0, 4},
	} {
		wait, binary, tried := tt.c.nextAttempt("same", tt.older)
		if binary != tt.want || tried != tt.tried || tt.c.inARow != tt.inARow || wait != backoff(tt.inARow-1) {
			t.Errorf("%s: again = %v, %s, %d, and %d in a row; want %s, %d, %d", tt.name, wait, binary, tried, tt.c.inARow, tt.want, tt.tried, tt.inARow)
		}
	}
}

func TestCrashes_serves(t *testing.T) {
	c := crashes{instead: "mended", last: &client.Crash{Generation: 1}}
	if got := c.serves(3, "mended", "id", "older"); got == nil || got.Serving != 3 || got.Older || got.Build != "id" || c.instead != "" {
		t.Errorf("serves = %+v, instead %q", got, c.instead)
	}
	if c.serves(4, "x", "id", "older") != nil {
		t.Error("a crash is told twice")
	}
	c.last = &client.Crash{Generation: 4}
	if got := c.serves(5, "older", "id", "older"); !got.Older {
		t.Errorf("serves = %+v, want older", got)
	}
}

func TestBuilds(t *testing.T) {
	dir := t.TempDir()
	b := newBuilds(dir)
	for i := range 4 { // generations 1 to 4, each with its own build
		binary := filepath.Join(b.dir, fmt.Sprint("id", i), "orchestrator")
		os.MkdirAll(filepath.Dir(binary), 0o755)
		os.WriteFile(binary, nil, 0o755)
		if n := b.add(binary); n != i+1 {
			t.Fatalf("generation %d, want %d", n, i+1)
		}
		if b.serves(i+1, i > 0) {
			t.Errorf("generation %d has to be copied though it is there", i+1)
		}
	}
	if folder(b.older) != "id2" || folder(b.oldest) != "id1" {
		t.Errorf("older %s, oldest %s; want id2, id1", b.older, b.oldest)
	}
	running := func(n int) bool { return n == 3 || n == 4 }
	all := []string{"id0", "id1", "id2", "id3", "new", "keep-7"}
	if got := b.unneeded(all, running, b.older); !slices.Equal(got, []string{"id0", "id1"}) {
		t.Errorf("unneeded = %q, want id0 and id1", got)
	}
	if len(b.binary) != 2 {
		t.Errorf("it remembers %v", b.binary)
	}
	// Generation 3 serves again: 4 was rolled back.
	b.servesOn(3)
	if b.lastServed != 3 || folder(b.older) != "id1" {
		t.Errorf("last %d, older %s; want 3, id1", b.lastServed, b.older)
	}
	// A restart after a crash makes no build older.
	n := b.add(b.startable(3))
	b.serves(n, false)
	if folder(b.older) != "id1" {
		t.Errorf("older %s, want id1", b.older)
	}
	// A binary from elsewhere has to be copied.
	if n := b.add(filepath.Join(dir, "elsewhere")); !b.serves(n, true) {
		t.Error("a binary from elsewhere is not copied")
	}
	if b.startable(n) != b.copy[3] {
		t.Errorf("startable = %s", b.startable(n))
	}
}

func TestBuilds_areNamedAfterTheirContent(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	os.WriteFile(from, []byte("binary"), 0o755)
	first, err := copyBuild(from, filepath.Join(dir, "builds"), 1)
	if err != nil {
		t.Fatal(err)
	}
	again, err := copyBuild(from, filepath.Join(dir, "builds"), 2)
	if err != nil || again != first {
		t.Errorf("copyBuild = %s, %v; want %s", again, err, first)
	}
	os.WriteFile(first, []byte("damaged"), 0o755)
	if mended, err := copyBuild(from, filepath.Join(dir, "builds"), 3); err != nil || mended != first {
		t.Errorf("copyBuild over a damaged one = %s, %v", mended, err)
	}
	if text, _ := os.ReadFile(first); string(text) != "binary" {
		t.Errorf("the copy has %q", text)
	}
	if id := buildID(first); id != filepath.Base(filepath.Dir(first)) || buildID("/usr/bin/x") != "x" {
		t.Errorf("buildID = %s", id)
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, "builds")); len(entries) != 1 {
		t.Errorf("%d folders are left", len(entries))
	}
	if _, err := copyBuild("/gone", filepath.Join(dir, "builds"), 4); err == nil {
		t.Error("a binary that is gone was copied")
	}
}

func TestEventLog(t *testing.T) {
	var l eventLog
	slow, quick := make(chan client.Event), make(chan client.Event, 2*maxEvents)
	l.follow(slow, false)
	l.follow(quick, false)
	for range maxEvents + 5 {
		l.publish(client.Event{Topic: topicCrashed})
	}
	kept := l.last()
	if len(kept) != maxEvents || kept[0].Seq != 6 || kept[maxEvents-1].Seq != maxEvents+5 {
		t.Errorf("%d events are kept, from %d on", len(kept), kept[0].Seq)
	}
	if _, ok := <-slow; ok || len(quick) != maxEvents+5 {
		t.Errorf("the slow one has a gap (%v), the quick one %d events", ok, len(quick))
	}
	l.leave(quick)
	l.leave(quick) // leaving twice does no harm
	l.publish(client.Event{})
	for range 10 { // far more than may be kept
		l.publish(client.Event{Topic: topicCrashed, Data: make([]byte, maxKept/3)})
	}
	if n := len(l.last()); n != 3 {
		t.Errorf("%d large events are kept, want 3", n)
	}
}

func TestStatusQuery(t *testing.T) {
	var q statusQuery
	a, b := &worker{}, &worker{}
	first, second := make(chan client.Status, 1), make(chan client.Status, 1)
	if !q.add(a, first) || q.add(a, second) {
		t.Error("a worker is not asked exactly once")
	}
	q.answered(a, client.Status{Goroutines: 1})
	if (<-first).Goroutines != 1 || (<-second).Goroutines != 1 {
		t.Error("one answer is not for all")
	}
	if !q.add(b, first) {
		t.Error("another worker is not asked")
	}
	q.abandon()
	if _, ok := <-first; ok {
		t.Error("there was an answer of a worker that has died")
	}
	for range 2 * maxStatusWaiting {
		q.add(b, make(chan client.Status, 1))
	}
	if len(q.waiting) != maxStatusWaiting {
		t.Errorf("%d wait", len(q.waiting))
	}
}

// TestTheTableOfHearings: it has each type of message once.
func TestTheTableOfHearings(t *testing.T) {
	seen := map[string]bool{}
	for _, h := range hearings {
		if seen[h.message] || len(h.in) == 0 || h.do == nil {
			t.Errorf("%s is there twice, or means nothing", h.message)
		}
		seen[h.message] = true
	}
	for _, message := range []string{control.TypeServing, control.TypeReport, control.TypeStage, control.TypeFinal, control.TypeDrained, control.TypeRepair, control.TypeEvent, control.TypeStatus} {
		if !seen[message] {
			t.Errorf("nobody hears %s", message)
		}
	}
}
