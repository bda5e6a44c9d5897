package kv_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"example.org/orchestrator/app/apptest"
	"example.org/orchestrator/modules"
	"example.org/orchestrator/modules/kv"
)

func TestContract(t *testing.T) {
	dir := t.TempDir()
	n := 0
	apptest.Run(t, apptest.Case{
		New: kv.New,
		Config: func() string {
			n++
			return fmt.Sprintf("path: %s", filepath.Join(dir, fmt.Sprint(n), "kv.db"))
		},
		Use: func(m modules.Module) error {
			w := httptest.NewRecorder()
			m.(http.Handler).ServeHTTP(w, httptest.NewRequest(http.MethodPut, "/key", strings.NewReader("value")))
			if w.Code != http.StatusNoContent {
				return fmt.Errorf("PUT /key: %d %s", w.Code, w.Body)
			}
			return nil
		},
	})
}
