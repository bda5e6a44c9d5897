package worker

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/orchestrator/app/apptest"
	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/config"
	"example.org/orchestrator/handoff"
	"example.org/orchestrator/modules"
)

// setOf returns a set of hostile modules, in this order.
func setOf(hostile map[string]*apptest.Hostile, order ...string) *moduleSet {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s := &moduleSet{
		root:     eventbus.New(eventbus.Options{Log: log}),
		hook:     5 * time.Second,
		maxState: 1 << 20,
		limits:   map[string]int64{},
		progress: func(string, string) {},
		started:  func(string, modules.Module) {},
	}
	for _, name := range order {
		s.limits[name] = 1 << 10
		s.list = append(s.list, newInstance(name, hostile[name], modules.Config{}))
	}
	return s
}

func TestALateHookIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang, release := apptest.Hang()
		s := setOf(map[string]*apptest.Hostile{"m": {OnInitialize: hang}}, "m")
		began := time.Now()
		err := s.initialize(context.Background(), never)
		where := (*handoff.UpgradeError)(nil)
		if !errors.As(err, &where) || where.Stage != handoff.StageInitialize || where.Module != "m" || !errors.Is(err, errLate) {
			t.Errorf("initialize = %v, want that Initialize of m is late", err)
		}
		if took := time.Since(began); took < s.hook || took > s.hook+time.Second {
			t.Errorf("that took %v, want %v", took, s.hook)
		}
		release()
		synctest.Wait()
	})
}

// TestAStuckShutdownLosesOneState: the others are exported.
func TestAStuckShutdownLosesOneState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang, release := apptest.Hang()
		s := setOf(map[string]*apptest.Hostile{"a": {}, "stuck": {OnShutdown: hang}, "b": {}}, "a", "stuck", "b")
		if err := s.initialize(context.Background(), never); err != nil {
			t.Fatal(err)
		}
		if err := s.shutdown(context.Background(), mustStop); err == nil || !strings.Contains(err.Error(), "module stuck") {
			t.Errorf("shutdown = %v, want the module that is stuck", err)
		}
		states, err := s.export(context.Background(), mustStop)
		if err != nil {
			t.Fatal(err)
		}
		defer states.Close()
		if got := states.Modules(); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("exported %v, want a and b", got)
		}
		release()
		synctest.Wait()
	})
}

// TestAShutdownThatHeedsItsDeadline: it has ended, and the state is exported.
func TestAShutdownThatHeedsItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		heed := func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }
		s := setOf(map[string]*apptest.Hostile{"slow": {OnShutdown: heed}}, "slow")
		if err := s.initialize(context.Background(), never); err != nil {
			t.Fatal(err)
		}
		if err := s.shutdown(context.Background(), mustStop); err == nil || !strings.Contains(err.Error(), "app.hook_timeout") {
			t.Errorf("shutdown = %v, want its deadline", err)
		}
		states, err := s.export(context.Background(), mustStop)
		if err != nil {
			t.Fatal(err)
		}
		defer states.Close()
		if got := states.Modules(); !slices.Equal(got, []string{"slow"}) {
			t.Errorf("exported %v, want slow", got)
		}
	})
}

// TestStateIsNotAskedWhileAModuleServes: what a candidate is told comes from a
// fresh value. A State that gathers its value would race with the handlers.
func TestStateIsNotAskedWhileAModuleServes(t *testing.T) {
	s := setOf(map[string]*apptest.Hostile{"m": {Version: 3, Value: &struct{ N int }{}}}, "m")
	s.list[0].module = panics{&apptest.Hostile{}}
	g := &generation{cfg: &config.Config{}, set: s}
	infos := g.describe()
	if len(infos) != 1 || !infos[0].Stateful || infos[0].StateVersion != 3 || infos[0].StateFields["N"] != "int" {
		t.Errorf("describe = %+v", infos)
	}
}

type panics struct{ *apptest.Hostile }

func (panics) State() modules.State { panic("hostile") }

func TestPanicsNameTheirModule(t *testing.T) {
	for stage, h := range map[string]*apptest.Hostile{
		handoff.StagePrepare:    {OnPrepare: apptest.Panic},
		handoff.StageInitialize: {OnInitialize: apptest.Panic},
		handoff.StageHealthy:    {OnHealthy: apptest.Panic},
	} {
		s := setOf(map[string]*apptest.Hostile{"good": {}, "bad": h}, "good", "bad")
		err := s.prepare(context.Background())
		if err == nil {
			err = s.initialize(context.Background(), never)
		}
		where := (*handoff.UpgradeError)(nil)
		if !errors.As(err, &where) || where.Stage != stage || where.Module != "bad" || !strings.Contains(err.Error(), "panicked: hostile") {
			t.Errorf("%s: %v, want a panic of bad", stage, err)
		}
		if err := s.shutdown(context.Background(), mustStop); err != nil {
			t.Errorf("%s: shutdown = %v", stage, err)
		}
	}
}

// TestAStateThatCannotBeExported: it is not silently lost, nor are the others.
func TestAStateThatCannotBeExported(t *testing.T) {
	s := setOf(map[string]*apptest.Hostile{
		"a":     {Value: &struct{ N int }{1}},
		"large": {Value: &struct{ Text string }{strings.Repeat("x", 2<<10)}},
		"b":     {Value: &struct{ N int }{2}},
	}, "a", "large", "b")
	states, err := s.export(context.Background(), mustStop)
	if states == nil || !errors.Is(err, handoff.ErrTooLarge) || !strings.Contains(err.Error(), "module large") {
		t.Fatalf("export = %v, want that the state of large is too large, and the others", err)
	}
	defer states.Close()
	fresh := setOf(map[string]*apptest.Hostile{"a": {Value: &struct{ N int }{}}, "b": {Value: &struct{ N int }{}}}, "a", "b")
	if err := fresh.restore(func(string) *handoff.States { return states }); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"a": 1, "b": 2} {
		if got := fresh.find(name).module.(*apptest.Hostile).Value.(*struct{ N int }).N; got != want {
			t.Errorf("%s has %d, want %d", name, got, want)
		}
	}
}

func TestStatesOfOtherVersionsAreRefusedBeforehand(t *testing.T) {
	lift := func(int, func(any) error) error { return nil }
	for _, tt := range []struct {
		name, want string
		old, new   *apptest.Hostile
	}{
		{"the same", "", &apptest.Hostile{Value: &struct{ N int }{}}, &apptest.Hostile{Value: &struct{ N int }{}}},
		{"another type", `field "N" was int and is string`, &apptest.Hostile{Value: &struct{ N int }{}}, &apptest.Hostile{Value: &struct{ N string }{}}},
		{"a field less", `field "M" (int) is gone`, &apptest.Hostile{Value: &struct{ N, M int }{}}, &apptest.Hostile{Value: &struct{ N int }{}}},
		{"newer than the build", "newer than this build's 1", &apptest.Hostile{Version: 2}, &apptest.Hostile{Version: 1}},
		{"older without Migrate", "it has no Migrate", &apptest.Hostile{Version: 1}, &apptest.Hostile{Version: 2}},
		{"older with Migrate", "", &apptest.Hostile{Version: 1}, &apptest.Hostile{Version: 2, Migrate: lift}},
	} {
		info := handoff.ModuleInfo{Name: "m", Stateful: true, StateVersion: tt.old.State().Version}
		info.StateFields, _ = contract.LayoutOf(tt.old.State().Value)
		_, err := setOf(map[string]*apptest.Hostile{"m": tt.new}, "m").accepts([]handoff.ModuleInfo{info})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: accepts = %v, want %q", tt.name, err, tt.want)
		}
		if err != nil && !strings.Contains(err.Error(), "--drop-state=m") {
			t.Errorf("%s: %v does not say what to do", tt.name, err)
		}
	}
}
