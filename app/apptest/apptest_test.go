package apptest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gopkg.in/yaml.v3"

	"example.org/orchestrator/app/apptest"
	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/modules"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type number struct{ N int }

// good is a hostile module that behaves.
func good() *apptest.Hostile { return &apptest.Hostile{Value: &number{}} }

func use(m modules.Module) error {
	switch v := m.(*apptest.Hostile).Value.(type) {
	case *number:
		v.N = 7
	case *shares:
		v.A.N++
	}
	return nil
}

// shares has one number in two places, which are two numbers after a reload.
type shares struct{ A, B *number }

func TestAGoodModulePasses(t *testing.T) {
	apptest.Run(t, apptest.Case{New: func() modules.Module { return good() }, Use: use, Golden: "testdata/number"})
}

// TestTheKitFinds breaks the contract in each way that the kit promises to
// find.
func TestTheKitFinds(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		breakIt    func(h *apptest.Hostile) (release func())
	}{
		{"a Shutdown that fails", "Shutdown without Initialize, twice: Shutdown: hostile", func(h *apptest.Hostile) func() { h.OnShutdown = apptest.Fail; return nil }},
		{"a Shutdown that panics", "Shutdown panicked: hostile", func(h *apptest.Hostile) func() { h.OnShutdown = apptest.Panic; return nil }},
		{"a Shutdown that fails the second time", "Shutdown: hostile", func(h *apptest.Hostile) func() {
			n := 0
			h.OnShutdown = func(ctx context.Context) error {
				if n++; n > 1 {
					return apptest.Fail(ctx)
				}
				return nil
			}
			return nil
		}},
		{"a Shutdown that hangs", "Shutdown does not return", func(h *apptest.Hostile) (release func()) { h.OnShutdown, release = apptest.Hang(); return release }},
		{"an Initialize that panics", "Initialize panicked: hostile", func(h *apptest.Hostile) func() { h.OnInitialize = apptest.Panic; return nil }},
		{"a Shutdown that fails after a failed Initialize", "with wrong settings: Shutdown: hostile", func(h *apptest.Hostile) func() {
			h.Settings = &refuses{h}
			return nil
		}},
		{"an Initialize that leaks", "goroutines are left after Shutdown", func(h *apptest.Hostile) (release func()) {
			h.OnInitialize, release = apptest.Leak()
			return release
		}},
		{"an Initialize that overwrites the state", "Initialize must not change what State points to", func(h *apptest.Hostile) func() {
			h.OnInitialize = func(context.Context) error { h.Value.(*number).N = 0; return nil }
			return nil
		}},
		{"a Run that ignores its context", "Run does not return", func(h *apptest.Hostile) (release func()) { h.OnRun, release = apptest.Hang(); return release }},
		{"a Run that fails", "Run: hostile", func(h *apptest.Hostile) func() { h.OnRun = apptest.Fail; return nil }},
		{"an unhealthy module", "Healthy after Initialize: hostile", func(h *apptest.Hostile) func() { h.OnHealthy = apptest.Fail; return nil }},
		{"a state that lies", "two exports after Shutdown differ", func(h *apptest.Hostile) func() { h.Value = &apptest.Liar{}; return nil }},
		{"a state that panics on garbage", "panicked: runtime error: index out of range", func(h *apptest.Hostile) func() { h.Value = &steady{}; return nil }},
		{"a Migrate that accepts anything", `version 0 of a state, "garbage", gave <nil>; want an error`, func(h *apptest.Hostile) func() {
			h.Version, h.Migrate = 1, func(int, func(any) error) error { return nil }
			return nil
		}},
		{"a part of the state in two places", "is a part of it shared", func(h *apptest.Hostile) func() {
			h.Value = &shares{}
			h.OnInitialize = func(context.Context) error {
				if v := h.Value.(*shares); v.A == nil {
					v.A = &number{}
					v.B = v.A
				}
				return nil
			}
			return nil
		}},
		{"an unexported field", "an unexported field would be lost", func(h *apptest.Hostile) func() { h.Value = &struct{ n int }{}; return nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var releases []func()
			errs := apptest.Verify(apptest.Case{HookTimeout: 20 * time.Millisecond, Use: use, New: func() modules.Module {
				h := good()
				if release := tt.breakIt(h); release != nil {
					releases = append(releases, release)
				}
				return h
			}})
			for _, release := range releases {
				release()
			}
			if err := errors.Join(errs...); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify = %v, want %q", err, tt.want)
			}
		})
	}
	for _, tt := range []struct {
		name, want string
		module     modules.Module
	}{
		{"a handler that panics", "GET / panicked: hostile", &talker{path: func(string) { panic("hostile") }}},
		{"a dependency given twice", "a name is empty or given twice", &talker{depends: []string{"a", "a"}}},
		{"a connection that is not handed on", "want ErrMoving", &talker{conn: func(_ context.Context, c modules.Conn) error {
			c.ReadLine()
			return nil
		}}},
		{"a connection whose client is gone", "HandleConn of a client that leaves does not return", &talker{conn: func(ctx context.Context, _ modules.Conn) error {
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), modules.ErrMoving) {
				time.Sleep(100 * time.Millisecond)
			}
			return context.Cause(ctx)
		}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			errs := apptest.Verify(apptest.Case{HookTimeout: 20 * time.Millisecond, New: func() modules.Module { return tt.module }})
			if err := errors.Join(errs...); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify = %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("a golden state that does not load", func(t *testing.T) {
		errs := apptest.Verify(apptest.Case{New: func() modules.Module { return good() }, Use: use, Golden: "testdata/broken"})
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), "testdata/broken/0.json: decode the state of version 0") {
			t.Errorf("Verify = %v, want the file", errs)
		}
	})
	t.Run("a stateful module without Use", func(t *testing.T) {
		errs := apptest.Verify(apptest.Case{New: func() modules.Module { return good() }})
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), "Case.Use must change its state") {
			t.Errorf("Verify = %v, want that Use is missing", errs)
		}
	})
}

// steady is a streamed state that each export leaves as it was.
type steady struct{ apptest.Liar }

func (s *steady) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write([]byte{byte(s.N)})
	return int64(n), err
}

// refuses are settings that are always wrong, of a module that then fails to
// shut down.
type refuses struct{ h *apptest.Hostile }

func (r *refuses) UnmarshalYAML(*yaml.Node) error {
	r.h.OnShutdown = apptest.Fail
	return errors.New("wrong settings")
}

// talker is a module with requests and connections.
type talker struct {
	path    func(string)
	depends []string
	conn    func(context.Context, modules.Conn) error
}

func (*talker) Initialize(context.Context, *eventbus.Bus, modules.Config) error { return nil }
func (*talker) Shutdown(context.Context) error                                  { return nil }
func (k *talker) DependsOn() []string                                           { return k.depends }

func (k *talker) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	if k.path != nil {
		k.path(r.URL.Path)
	}
}

func (k *talker) HandleConn(ctx context.Context, c modules.Conn) error {
	if k.conn != nil {
		return k.conn(ctx, c)
	}
	_, err := c.ReadLine()
	return err
}
