package modules_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"example.org/orchestrator/app/apptest"
	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

// base is the mandatory part of the examples.
type base struct{}

func (base) Initialize(context.Context, *eventbus.Bus, modules.Config) error { return nil }
func (base) Shutdown(context.Context) error                                  { return nil }

// A module with state: what State points to survives a reload.
type visits struct {
	base
	state struct {
		Count int `json:"count"`
	}
}

var _ modules.Stateful = (*visits)(nil)

func (v *visits) State() modules.State { return modules.State{Version: 1, Value: &v.state} }

func ExampleStateful() {
	old := &visits{}
	old.state.Count = 41
	exported, _ := json.Marshal(old.State().Value) // as the framework does after Shutdown

	fresh := &visits{}
	if err := apptest.Restore(fresh, 1, exported); err != nil {
		fmt.Println(err)
	}
	fmt.Println(fresh.state.Count)
	// Output: 41
}

// A module whose state has changed its layout.
type people struct {
	base
	state struct {
		Names []string `json:"names"`
	}
}

func (p *people) State() modules.State {
	return modules.State{
		Version: 2,
		Value:   &p.state,
		Migrate: func(from int, decode func(any) error) error {
			var one struct { // version 1 had one name
				Name string `json:"name"`
			}
			if err := decode(&one); err != nil {
				return err
			}
			p.state.Names = []string{one.Name}
			return nil
		},
	}
}

func ExampleState_migrate() {
	p := &people{}
	if err := apptest.Restore(p, 1, []byte(`{"name":"Ada"}`)); err != nil {
		fmt.Println(err)
	}
	fmt.Println(p.state.Names)
	// Output: [Ada]
}

// A module that parses its templates before anything is touched: a mistake in
// them rejects the reload, and no client notices.
type pages struct {
	base
	text string
}

func (p *pages) Prepare(_ context.Context, cfg modules.Config) error {
	settings := struct {
		Dir string `yaml:"dir"`
	}{Dir: "pages"}
	if err := cfg.Decode(&settings); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(settings.Dir, "index.html"))
	p.text = string(text)
	return err
}

func ExamplePreparer() {
	section, _ := config.ParseSection("config", "{dir: no-such-folder}")
	p := &pages{}
	err := p.Prepare(context.Background(), modules.Config{Name: "pages", Log: slog.Default(), Section: section})
	fmt.Println(errors.Is(err, os.ErrNotExist))
	// Output: true
}

// A module that vetoes a reload while its database is away.
type reports struct {
	base
	ping func(context.Context) error
}

func (r *reports) Healthy(ctx context.Context) error {
	if err := r.ping(ctx); err != nil {
		return fmt.Errorf("the database does not answer: %w", err)
	}
	return nil
}

func ExampleHealthChecker() {
	r := &reports{ping: func(context.Context) error { return errors.New("connection refused") }}
	fmt.Println(r.Healthy(context.Background()))
	// Output: the database does not answer: connection refused
}

// A module that works in the background. Its context ends when a reload begins
// or the program ends.
type cleaner struct {
	base
	every time.Duration
	clean func()
}

func (c *cleaner) Run(ctx context.Context) error {
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.clean()
		case <-ctx.Done():
			return nil
		}
	}
}

func ExampleRunner() {
	ctx, cancel := context.WithCancel(context.Background())
	c := &cleaner{every: time.Millisecond, clean: func() {
		fmt.Println("cleaned")
		cancel() // the reload comes
	}}
	fmt.Println(c.Run(ctx))
	// Output:
	// cleaned
	// <nil>
}

// A module that starts after another one, which it calls.
type billing struct {
	base
	cfg modules.Config
}

func (b *billing) DependsOn() []string { return []string{"counter"} }

func (b *billing) Initialize(_ context.Context, _ *eventbus.Bus, cfg modules.Config) error {
	b.cfg = cfg
	return nil
}

func ExampleDependent() {
	fmt.Println((&billing{}).DependsOn())
	// Output: [counter]
}

func ExampleConfig_Call() {
	b := &billing{}
	b.Initialize(context.Background(), nil, modules.Config{
		Caller: func(module string, r *http.Request) (*http.Response, error) { // the framework's Caller calls the module
			w := httptest.NewRecorder()
			fmt.Fprint(w, module, " answers ", r.Method, " ", r.URL.Path)
			return w.Result(), nil
		},
	})
	resp, err := b.cfg.Call("counter", httptest.NewRequest(http.MethodGet, "/", nil))
	if err != nil {
		fmt.Println(err)
		return
	}
	var body bytes.Buffer
	body.ReadFrom(resp.Body)
	fmt.Println(body.String())
	// Output: counter answers GET /
}

// A module that answers lines. The next generation goes on with the same
// connection.
type shouter struct{ base }

func (shouter) HandleConn(_ context.Context, c modules.Conn) error {
	for {
		line, err := c.ReadLine()
		if err != nil {
			return err // also ErrMoving, which hands the connection on
		}
		if _, err := fmt.Fprintln(c, strings.ToUpper(line)); err != nil {
			return err
		}
	}
}

func ExampleConnHandler() {
	errs := apptest.Verify(apptest.Case{New: func() modules.Module { return shouter{} }})
	fmt.Println(len(errs))
	// Output: 0
}

// A module that speaks another protocol on the connection of a request.
type upgrader struct{ shouter }

func (u upgrader) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := modules.Hijack(w)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotImplemented)
		return
	}
	// HandleConn is called with it once ServeHTTP has returned.
	fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: shout\r\nConnection: Upgrade\r\n\r\n")
}

func ExampleHijack() {
	w := httptest.NewRecorder() // has no connection to hijack
	upgrader{}.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	fmt.Println(w.Code)
	// Output: 501
}
