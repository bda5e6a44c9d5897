package modules_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"example.org/orchestrator/modules"
)

// markable is a writer of the framework.
type markable struct {
	http.ResponseWriter
	marked, complete bool
}

func (m *markable) Endless() func() {
	m.marked = true
	return func() { m.complete = true }
}

type wrapper struct{ http.ResponseWriter }

func (w wrapper) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func TestEndless(t *testing.T) {
	m := &markable{ResponseWriter: httptest.NewRecorder()}
	modules.Endless(wrapper{wrapper{m}})()
	if !m.marked || !m.complete {
		t.Errorf("marked %v, complete %v", m.marked, m.complete)
	}
	modules.Endless(httptest.NewRecorder())() // does nothing
}
