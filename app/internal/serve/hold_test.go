package serve_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/serve"
)

// cutAll is a hold that comes about whatever is in flight.
func cutAll(t *testing.T, s *serve.Server) *serve.Held {
	t.Helper()
	h, err := s.Hold(t.Context(), serve.Terms{Within: time.Millisecond, Patience: patience, Cut: serve.CutAll})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// until polls for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// states returns what is in flight, as text.
func states(s *serve.Server) []string {
	list := []string{}
	for _, is := range s.InFlight(patience) {
		list = append(list, fmt.Sprint(is.Route, " ", is.State))
	}
	slices.Sort(list)
	return list
}

// in waits until exactly this is in flight.
func in(t *testing.T, s *serve.Server, want ...string) {
	t.Helper()
	slices.Sort(want)
	until(t, fmt.Sprintf("in flight is %q", want), func() bool { return slices.Equal(states(s), want) })
}

func TestWhatIsInFlight(t *testing.T) {
	goOn := make(chan struct{})
	defer close(goOn)
	s, address := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/upload":
			io.Copy(io.Discard, r.Body)
		case "/download":
			w.Write(make([]byte, 64<<20))
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			w.WriteHeader(http.StatusOK)
			<-r.Context().Done()
		case "/feed":
			w.(interface{ Endless() func() }).Endless()
			<-r.Context().Done()
		case "/file":
			w.Header().Set("Content-Disposition", `attachment; filename="text/event-stream"`)
			w.WriteHeader(http.StatusOK)
			<-goOn
		case "/slow":
			<-goOn
		}
	})
	idle, half := dial(t, address), dial(t, address)
	idle.send(request)
	idle.answer()
	half.send("GET /half HT")
	in(t, s)

	slow := dial(t, address)
	slow.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	in(t, s, "GET /slow ending")
	in(t, s, "GET /slow late")
	dial(t, address).send("PUT /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
	in(t, s, "GET /slow late", "PUT /upload stalled")
	unread := dial(t, address)
	unread.send("POST /nobody/reads/it HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
	in(t, s, "GET /slow late", "PUT /upload stalled", "the end of POST /nobody/reads/it stalled")
	unread.Close()
	dial(t, address).send("GET /download HTTP/1.1\r\nHost: x\r\n\r\n")
	in(t, s, "GET /slow late", "PUT /upload stalled", "GET /download stalled")
	dial(t, address).send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
	dial(t, address).send("GET /feed HTTP/1.1\r\nHost: x\r\n\r\n")
	dial(t, address).send("GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
	in(t, s, "GET /slow late", "PUT /upload stalled", "GET /download stalled", "GET /events endless", "GET /feed endless", "GET /file late")
}

// TestExpectations: a request is late when it takes longer than the slowest of
// its route's last answers.
func TestExpectations(t *testing.T) {
	var wait time.Duration
	goOn := make(chan struct{})
	s, address := newServer(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/now" {
			return
		}
		select {
		case <-time.After(wait):
		case <-goOn:
		}
	})
	c := dial(t, address)
	wait = 3 * patience
	c.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	c.answer()
	c.send("GET /now HTTP/1.1\r\nHost: x\r\n\r\n")
	c.answer()
	wait = time.Minute
	for _, route := range []string{"GET /slow", "GET /never/seen"} { // the second has the class of the first
		began := time.Now()
		c.send(route + " HTTP/1.1\r\nHost: x\r\n\r\n")
		in(t, s, route+" ending")
		in(t, s, route+" late")
		if took := time.Since(began); took < 3*patience {
			t.Errorf("%s is late after %v, but the slowest took %v", route, took, 3*patience)
		}
		goOn <- struct{}{}
		c.answer()
	}
}

// TestACutHoldIsAnswered: whoever has got nothing learns what has happened, with
// a status that says whether to try again.
func TestACutHoldIsAnswered(t *testing.T) {
	finish := make(chan struct{})
	defer close(finish)
	cause := make(chan error, 1)
	s, address := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/upload":
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				http.Error(w, "the handler's own", http.StatusTeapot)
			}
		case "/returns":
			<-r.Context().Done()
			cause <- context.Cause(r.Context())
		case "/answers":
			<-r.Context().Done()
			http.Error(w, "the handler's own", http.StatusTeapot)
		case "/begun":
			io.WriteString(w, "half of an answer")
			<-r.Context().Done()
		case "/ignores":
			<-finish
		}
	})
	wants := []struct{ sent, want string }{
		{"PUT /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", "408 Request Timeout"},
		{"GET /returns HTTP/1.1\r\nHost: x\r\n\r\n", "503 Service Unavailable"},
		{"GET /answers HTTP/1.1\r\nHost: x\r\n\r\n", "418 the handler's own"},
		{"GET /begun HTTP/1.1\r\nHost: x\r\n\r\n", "503 Service Unavailable"},
		{"GET /ignores HTTP/1.1\r\nHost: x\r\n\r\n", "503 Service Unavailable"},
	}
	clients := make([]*client, len(wants))
	for i, w := range wants {
		clients[i] = dial(t, address)
		clients[i].send(w.sent)
	}
	in(t, s, "PUT /upload stalled", "GET /returns late", "GET /answers late", "GET /begun late", "GET /ignores late")
	h := cutAll(t, s)
	for i, w := range wants {
		if got := clients[i].answer(); got != w.want {
			t.Errorf("%q was answered %q, want %q", w.sent, got, w.want)
		}
	}
	if err := <-cause; !errors.Is(err, options.Reloading) {
		t.Errorf("cause = %v, want %v", err, options.Reloading)
	}
	if n, routes := s.Cancelled(); n != len(wants) || len(routes) != len(wants) {
		t.Errorf("cancelled are %d: %q, want all %d", n, routes, len(wants))
	}
	if left := h.Left(); len(left) != 1 || left[0].Route != "GET /ignores" {
		t.Errorf("left behind is %v, want the handler that does not end", left)
	}
	h.Release()
}

// TestACutAnswerIsBroken: a client that has got a part of an answer can tell that
// it is not whole, unless the answer is an event stream or its handler says so.
func TestACutAnswerIsBroken(t *testing.T) {
	s, address := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		var complete func()
		switch r.URL.Path {
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
		case "/feed", "/whole":
			complete = w.(interface{ Endless() func() }).Endless()
		}
		io.WriteString(w, "one\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		if r.URL.Path == "/whole" {
			io.WriteString(w, "end\n")
			complete()
		}
	})
	read := map[string]*client{}
	for _, path := range []string{"/events", "/feed", "/whole", "/download"} {
		c := dial(t, address)
		c.send("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
		read[path] = c
	}
	in(t, s, "GET /events endless", "GET /feed endless", "GET /whole endless", "GET /download late")
	h := cutAll(t, s)
	h.EndEndless()
	h.Release()
	for path, whole := range map[string]bool{"/events": true, "/feed": false, "/whole": true, "/download": false} {
		resp, err := http.ReadResponse(read[path].in, nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if !strings.HasPrefix(string(text), "one\n") || (err == nil) != whole {
			t.Errorf("%s was answered %q, %v; want it whole: %v", path, text, err, whole)
		}
	}
}

// TestAHoldInVainCutsNothing, not even what is endless.
func TestAHoldInVainCutsNothing(t *testing.T) {
	goOn := make(chan struct{})
	s, address := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" {
			w.Header().Set("Content-Type", "text/event-stream")
		}
		w.(http.Flusher).Flush()
		select {
		case <-goOn:
			io.WriteString(w, "went on")
		case <-r.Context().Done():
			io.WriteString(w, "cut")
		}
	})
	events, long := dial(t, address), dial(t, address)
	events.send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
	long.send("GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
	in(t, s, "GET /events endless", "GET /long late")
	if _, err := s.Hold(t.Context(), serve.Terms{Within: patience, Patience: patience, Cut: serve.CutStalled}); err == nil {
		t.Fatal("the hold came about beside a request")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("called off"))
	if _, err := s.Hold(ctx, serve.Terms{Within: time.Minute, Patience: patience}); err == nil || err.Error() != "called off" {
		t.Fatalf("Hold = %v, want the cause", err)
	}
	close(goOn)
	if a, b := events.answer(), long.answer(); a != "200 went on" || b != "200 went on" {
		t.Errorf("answers %q and %q, want both uncut", a, b)
	}
	if n, routes := s.Cancelled(); n != 0 {
		t.Errorf("cancelled are %d: %q, want none", n, routes)
	}
}

// TestStalledIsCutAlone: what only waits for its client never refuses a hold.
func TestStalledIsCutAlone(t *testing.T) {
	s, address := newServer(t, func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	for range 3 { // a connection that has a cut request behind it is closed, so each is new
		slow, unread := dial(t, address), dial(t, address)
		slow.send("PUT /slow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")
		unread.send("PUT /expect HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
		in(t, s, "PUT /slow stalled", "PUT /expect stalled")
		h, err := s.Hold(t.Context(), serve.Terms{Within: 10 * time.Second, Patience: patience, Cut: serve.CutStalled})
		if err != nil {
			t.Fatal(err)
		}
		if len(h.Left()) > 0 {
			t.Errorf("left behind are %v, want none", h.Left())
		}
		h.Release()
		if a, b := slow.answer(), unread.answer(); a != "408 Request Timeout" || b != "408 Request Timeout" {
			t.Errorf("answers %q and %q", a, b)
		}
		s.Cancelled()
	}
}

// TestAStopWaits: nothing is cut before the time is over, however late it is.
func TestAStopWaits(t *testing.T) {
	s, address := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(6 * patience)
		io.WriteString(w, "finished")
	})
	c := dial(t, address)
	c.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	in(t, s, "GET /slow late")
	if _, err := s.Hold(t.Context(), serve.Terms{Within: 10 * time.Second, Patience: patience, Cut: serve.CutAtLast}); err != nil {
		t.Fatal(err)
	}
	if got := c.answer(); got != "200 finished" {
		t.Errorf("answer = %q", got)
	}
}
