package counter_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"example.org/orchestrator/app/apptest"
	"example.org/orchestrator/modules"
	"example.org/orchestrator/modules/counter"
)

func TestContract(t *testing.T) {
	apptest.Run(t, apptest.Case{New: counter.New, Golden: "testdata/state", Use: func(m modules.Module) error {
		ask(m, http.MethodPost)
		return nil
	}})
}

func ask(m modules.Module, method string) (int, string) {
	w := httptest.NewRecorder()
	m.(http.Handler).ServeHTTP(w, httptest.NewRequest(method, "/", nil))
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestGoldenStatesMeanWhatTheyMeant(t *testing.T) {
	m := counter.New()
	if err := apptest.Restore(m, 1, []byte(`{"count":41}`)); err != nil {
		t.Fatal(err)
	}
	if code, got := ask(m, http.MethodPost); code != http.StatusOK || got != "42" {
		t.Errorf("POST after 41 = %d %q, want 42", code, got)
	}
	if code, got := ask(m, http.MethodGet); code != http.StatusOK || got != "42" {
		t.Errorf("GET = %d %q, want 42", code, got)
	}
	if code, _ := ask(m, http.MethodDelete); code != http.StatusMethodNotAllowed {
		t.Errorf("DELETE = %d, want %d", code, http.StatusMethodNotAllowed)
	}
}
