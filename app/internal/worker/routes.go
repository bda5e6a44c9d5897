package worker

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"example.org/orchestrator/app/internal/serve"
	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

// routes hands requests to modules by the longest matching path.
type routes struct {
	table atomic.Pointer[table]

	// starting has the modules that already run in a set that does not serve
	// yet, so that they can call each other; nil otherwise.
	starting atomic.Pointer[map[string]http.Handler]

	development bool   // hot_reload is on
	guard       *guard // nil for none

	mu    sync.Mutex     // guards calls
	calls map[string]int // calls from other modules, by the module called
}

// owner returns the module that handles a request, "" for none.
func (r *routes) owner(req *http.Request) string {
	if t := r.table.Load(); t != nil {
		for _, x := range t.list {
			if x.has(req.URL.Path) {
				return x.module
			}
		}
	}
	return ""
}

// inCalls counts the calls between modules that are under way, by the module
// called.
func (r *routes) inCalls() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.calls)
}

func (r *routes) countCall(module string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.calls == nil {
		r.calls = map[string]int{}
	}
	if r.calls[module] += n; r.calls[module] == 0 {
		delete(r.calls, module)
	}
}

// begin forgets the modules that ran before: a set is about to start.
func (r *routes) begin() { r.starting.Store(&map[string]http.Handler{}) }

// started lets modules that start later call this one.
func (r *routes) started(name string, m modules.Module) {
	running := r.starting.Load()
	h, ok := m.(http.Handler)
	if running == nil || !ok {
		return
	}
	more := maps.Clone(*running)
	more[name] = h
	r.starting.Store(&more)
}

type table struct {
	list  []route                        // longest path first
	conns map[string]modules.ConnHandler // nil for a module that is down
	index bool                           // "/" lists the modules
	name  string
}

type route struct {
	module  string
	path    string // starts and ends with a slash
	handler http.Handler
	conns   bool // the module has connections of its own
}

// mount replaces the table with the handlers of set.
func (r *routes) mount(cfg *config.Config, set *moduleSet) {
	t := &table{index: cfg.App.HotReload, name: cfg.App.Name, conns: map[string]modules.ConnHandler{}}
	for _, m := range cfg.Modules {
		value := set.find(m.Name).module
		c, conns := value.(modules.ConnHandler)
		if conns {
			t.conns[m.Name] = c
		}
		if h, ok := value.(http.Handler); ok {
			t.list = append(t.list, route{m.Name, m.Mount(), h, conns})
		}
	}
	slices.SortStableFunc(t.list, func(a, b route) int { return len(b.path) - len(a.path) })
	r.table.Store(t)
	r.starting.Store(nil)
}

// fail makes a module that could not be started again answer 503.
func (r *routes) fail(name string, err error) {
	why := fmt.Sprintf("module %s does not run", name)
	if r.development { // otherwise strangers read it
		why += fmt.Sprintf(": %v", err)
	}
	r.replace(name, unavailable{why}, nil)
}

// recovered reverses fail.
func (r *routes) recovered(name string, m modules.Module) {
	h, _ := m.(http.Handler)
	c, _ := m.(modules.ConnHandler)
	r.replace(name, h, c)
}

// replace replaces the handlers of a mounted module.
func (r *routes) replace(name string, h http.Handler, c modules.ConnHandler) {
	for {
		old := r.table.Load()
		t := &table{index: old.index, name: old.name, list: slices.Clone(old.list), conns: maps.Clone(old.conns)}
		if _, ok := t.conns[name]; ok {
			t.conns[name] = c
		}
		for i := range t.list {
			if t.list[i].module == name {
				t.list[i].handler = h
			}
		}
		if r.table.CompareAndSwap(old, t) {
			return
		}
	}
}

type unavailable struct{ why string }

func (u unavailable) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Retry-After", "1")
	http.Error(w, u.why, http.StatusServiceUnavailable)
}

func (r *routes) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if why := r.guard.refuses(req); why != "" {
		http.Error(w, why, http.StatusForbidden)
		return
	}
	t := r.table.Load()
	for _, x := range t.list {
		if inner := below(req, x.path); inner != nil {
			if x.conns {
				serve.Own(req, x.module)
			}
			x.handler.ServeHTTP(w, inner)
			return
		}
	}
	if t.index && req.URL.Path == "/" {
		t.serveIndex(w)
		return
	}
	http.NotFound(w, req)
}

// has reports whether path belongs to the route.
func (x *route) has(path string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(x.path, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// below returns req as the module at path sees it, nil if req is not below path.
func below(req *http.Request, path string) *http.Request {
	prefix := strings.TrimSuffix(path, "/")
	rest, ok := strings.CutPrefix(req.URL.Path, prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return nil
	}
	if rest == "" {
		rest = "/"
	}
	inner := new(http.Request)
	*inner = *req
	inner.URL = new(url.URL)
	*inner.URL = *req.URL
	inner.URL.Path = rest
	inner.URL.RawPath = strings.TrimPrefix(req.URL.RawPath, prefix)
	return inner
}

// serveIndex lists the modules for people.
func (t *table) serveIndex(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, "<!doctype html>\n<title>%[1]s</title>\n<h1>%[1]s</h1>\n<ul>\n", html.EscapeString(t.name))
	paths := slices.Clone(t.list)
	slices.SortFunc(paths, func(a, b route) int { return strings.Compare(a.path, b.path) })
	for _, x := range paths {
		fmt.Fprintf(w, "<li><a href=\"%[1]s\">%[2]s</a> %[1]s</li>\n", html.EscapeString(x.path), html.EscapeString(x.module))
	}
	fmt.Fprint(w, "</ul>\n")
}

// call is a request from one module to another, within the process.
func (r *routes) call(module string, req *http.Request) (*http.Response, error) {
	h := r.callable(module)
	if h == nil {
		return nil, fmt.Errorf("call %s: %w", module, modules.ErrNotRunning)
	}
	r.countCall(module, 1)
	defer r.countCall(module, -1)
	w := &recorder{header: http.Header{}, status: http.StatusOK}
	h.ServeHTTP(w, req)
	return w.response(req), nil
}

// callable returns the handler of a module, nil if the module does not run.
func (r *routes) callable(module string) http.Handler {
	if running := r.starting.Load(); running != nil {
		return (*running)[module]
	}
	if t := r.table.Load(); t != nil {
		for _, x := range t.list {
			if x.module == module {
				return x.handler
			}
		}
	}
	return nil
}

// recorder keeps an answer in memory.
type recorder struct {
	header http.Header
	status int
	wrote  bool
	body   bytes.Buffer
}

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(status int) {
	if !w.wrote {
		w.status, w.wrote = status, true
	}
}

func (w *recorder) Write(p []byte) (int, error) {
	w.wrote = true
	return w.body.Write(p)
}

func (w *recorder) response(req *http.Request) *http.Response {
	return &http.Response{
		Status:        fmt.Sprintf("%d %s", w.status, http.StatusText(w.status)),
		StatusCode:    w.status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        w.header,
		Body:          io.NopCloser(&w.body),
		ContentLength: int64(w.body.Len()),
		Request:       req,
	}
}
