package serve_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	h2 "github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// TestH2Spec runs the cases of h2spec against this server and against net/http alone,
// over TLS: each gives the same.
func TestH2Spec(t *testing.T) {
	t.Parallel()
	h := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprintln(w, "answer")
	}
	alone := httptest.NewUnstartedServer(http.HandlerFunc(h))
	alone.TLS, alone.EnableHTTP2 = selfSigned(t), true
	alone.Config.ErrorLog = slog.NewLogLogger(quiet.Handler(), slog.LevelError)
	alone.StartTLS()
	t.Cleanup(alone.Close)
	_, ours := newSecure(t, h)
	both := func(only func(name string) bool) (alone1, ours1 map[string]string) {
		var all sync.WaitGroup
		all.Go(func() { alone1 = h2spec(t, alone.Listener.Addr().String(), only) })
		all.Go(func() { ours1 = h2spec(t, ours[len("https://"):], only) })
		all.Wait()
		return alone1, ours1
	}
	want, got := both(func(string) bool { return true })
	passed := 0
	differ := map[string]bool{}
	for name := range want {
		if want[name] == "passed" {
			passed++
		}
		if got[name] != want[name] {
			differ[name] = true
		}
	}
	if passed < 100 {
		t.Errorf("net/http alone passes %d of %d cases: is it tried at all?", passed, len(want))
	}
	// Some cases race with the server: net/http alone gives now this, now that.
	for range 20 {
		if len(differ) == 0 {
			break
		}
		again, _ := both(func(name string) bool { return differ[name] })
		for name, result := range again {
			if result == got[name] {
				delete(differ, name)
			}
		}
	}
	for name := range differ {
		t.Errorf("%s: %s, with net/http alone always %s", name, got[name], want[name])
	}
	t.Logf("%d cases, of which %d pass", len(want), passed)
}

// h2spec returns what became of each case that only returns true for.
func h2spec(t *testing.T, address string, only func(name string) bool) map[string]string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Error(err)
		return nil
	}
	n, _ := strconv.Atoi(port)
	c := &config.Config{Host: host, Port: n, Path: "/", Timeout: 2 * time.Second, // net/http closes a second after its GOAWAY
		MaxHeaderLen: 4000, TLS: true, Insecure: true, Strict: true}
	results := map[string]string{}
	var mu sync.Mutex // guards results
	var all sync.WaitGroup
	room := make(chan struct{}, 8)
	var visit func(g *spec.TestGroup)
	visit = func(g *spec.TestGroup) {
		for i, tc := range slices.Concat(g.Tests, g.StrictTests) {
			name := fmt.Sprintf("%s/%d %s", g.ID(), i+1, tc.Desc)
			if !only(name) {
				continue
			}
			all.Go(func() {
				room <- struct{}{}
				defer func() { <-room }()
				result := "passed"
				conn, err := spec.Dial(c)
				if err == nil {
					err = tc.Run(c, conn)
					conn.Close()
				}
				switch {
				case errors.Is(err, spec.ErrSkipped):
					result = "skipped"
				case err != nil:
					result = "failed"
				}
				mu.Lock()
				defer mu.Unlock()
				results[name] = result
			})
		}
		for _, inner := range g.Groups {
			visit(inner)
		}
	}
	for _, g := range []*spec.TestGroup{generic.Spec(), h2.Spec(), hpack.Spec()} {
		visit(g)
	}
	all.Wait()
	return results
}
