package worker

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

type page struct{}

func (page) Initialize(context.Context, *eventbus.Bus, modules.Config) error { return nil }
func (page) Shutdown(context.Context) error                                  { return nil }
func (page) ServeHTTP(w http.ResponseWriter, _ *http.Request)                {}

// TestStrangersDoNotReadErrors: why a module is down is for whoever develops it.
func TestStrangersDoNotReadErrors(t *testing.T) {
	for development, want := range map[bool]bool{true: true, false: false} {
		r := &routes{development: development}
		cfg := &config.Config{Modules: []config.Module{{Name: "m"}}}
		r.mount(cfg, &moduleSet{list: []*instance{newInstance("m", page{}, modules.Config{})}})
		r.fail("m", errors.New("postgres://user:secret@db"))
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/m/", nil))
		if got := strings.Contains(w.Body.String(), "secret"); got != want || w.Code != http.StatusServiceUnavailable {
			t.Errorf("in development %v: %d %s", development, w.Code, w.Body)
		}
	}
}
