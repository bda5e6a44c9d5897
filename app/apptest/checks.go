package apptest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

type check struct {
	name string
	run  func(*life) error
	of   []contract.Hook // the hooks that it checks
}

var checks = []check{
	{"signatures and state are as the contract wants", signatures, nil},
	{"the settings are accepted, and wrong ones are not", settings, []contract.Hook{contract.Settings}},
	{"DependsOn names others, and always the same", dependencies, []contract.Hook{contract.DependsOn}},
	{"Shutdown without Initialize, twice", shutdownAlone, []contract.Hook{contract.Shutdown}},
	{"Shutdown after Prepare alone", shutdownAfterPrepare, []contract.Hook{contract.Prepare, contract.Shutdown}},
	{"Shutdown after a cancelled Initialize", shutdownAfterCancelled, []contract.Hook{contract.Initialize, contract.Shutdown}},
	{"Shutdown after an Initialize with wrong settings", shutdownAfterWrongSettings, []contract.Hook{contract.Initialize, contract.Shutdown}},
	{"Shutdown after an Initialize beside another instance", shutdownBesideAnother, []contract.Hook{contract.Initialize, contract.Healthy, contract.Shutdown}},
	{"Shutdown after a life, twice, and a life after it", lives, []contract.Hook{contract.Initialize, contract.Shutdown, contract.Subscribers}},
	{"Run ends with its context and can run again", runs, []contract.Hook{contract.Run, contract.RunEnds}},
	{"requests are answered, from the first one on", answers, []contract.Hook{contract.ServeHTTP}},
	{"connections are handed on, and end with their client", connections, []contract.Hook{contract.HandleConn}},
	{"the state survives", survives, []contract.Hook{contract.State, contract.Export, contract.Restore}},
	{"the state is the same in memory as through the export", carries, []contract.Hook{contract.State, contract.Export, contract.Restore}},
	{"a garbage state is refused", garbage, []contract.Hook{contract.Restore}},
	{"golden states load", golden, []contract.Hook{contract.Restore}},
}

func signatures(l *life) error { return contract.Check(l.c.New()) }

// wrongSettings are those of no module.
const wrongSettings = "{of-no-module: [1]}"

// settings checks that the settings of the case fit, and that a key that no module has
// is refused.
func settings(l *life) error {
	m := l.c.New()
	if _, ok := m.(modules.Configured); !ok {
		return nil
	}
	if err := contract.Configure(m, l.section); err != nil {
		return fmt.Errorf("the settings of the case: %w", err)
	}
	if wrong, err := config.ParseSection("config", wrongSettings); err != nil {
		return err
	} else if contract.Configure(l.c.New(), wrong) == nil {
		return errors.New("settings with an unknown key are accepted")
	}
	return nil
}

func dependencies(l *life) error {
	d, ok := l.fresh().m.(modules.Dependent)
	if !ok {
		return nil
	}
	names := d.DependsOn()
	seen := map[string]bool{}
	for _, name := range names {
		if name == "" || seen[name] {
			return fmt.Errorf("DependsOn = %q: a name is empty or given twice", names)
		}
		seen[name] = true
	}
	if again := l.fresh().m.(modules.Dependent).DependsOn(); !slices.Equal(names, again) {
		return fmt.Errorf("DependsOn = %q, and then %q", names, again)
	}
	return nil
}

// answers sends requests that no module expects: there must be an answer,
// whatever it is.
func answers(l *life) error {
	i := l.fresh()
	h, ok := i.m.(http.Handler)
	if !ok {
		return nil
	}
	if err := i.start(); err != nil {
		return errors.Join(err, i.shutdown())
	}
	var errs []error
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, "APPTEST"} {
		for _, path := range []string{"/", "/no/such/path"} {
			err := i.hook(context.Background(), method+" "+path, func(ctx context.Context) error {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, method, path, strings.NewReader("apptest")))
				return nil
			})
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, i.shutdown())...)
}

// connections has the client close one connection, and hands another one on.
func connections(l *life) error {
	i := l.fresh()
	h, ok := i.m.(modules.ConnHandler)
	if !ok {
		return nil
	}
	if err := i.start(); err != nil {
		return errors.Join(err, i.shutdown())
	}
	leaves := i.hook(context.Background(), "HandleConn of a client that leaves", func(ctx context.Context) error {
		c, client := newConn()
		client.Close()
		h.HandleConn(ctx, c)
		return nil
	})
	moves := i.hook(context.Background(), "HandleConn of a connection that moves", func(ctx context.Context) error {
		c, client := newConn()
		defer client.Close()
		ctx, cancel := context.WithCancelCause(ctx)
		c.move()
		cancel(modules.ErrMoving)
		if err := h.HandleConn(ctx, c); !errors.Is(err, modules.ErrMoving) {
			return fmt.Errorf("HandleConn = %v; want ErrMoving, or the connection would be closed", err)
		}
		return nil
	})
	return errors.Join(leaves, moves, i.shutdown())
}

func shutdownAlone(l *life) error {
	i := l.fresh()
	return errors.Join(i.shutdown(), i.shutdown())
}

func shutdownAfterPrepare(l *life) error {
	i := l.fresh()
	return errors.Join(i.prepare(), i.shutdown())
}

// shutdownAfterCancelled accepts an Initialize that succeeds: it may be done
// before it notices that its context has ended.
func shutdownAfterCancelled(l *life) error {
	i := l.fresh()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := i.initialize(ctx)
	if errors.Is(err, contract.ErrPanicked) {
		return errors.Join(err, i.shutdown())
	}
	return errors.Join(i.shutdown(), i.shutdown())
}

// shutdownAfterWrongSettings makes Initialize fail if the module has settings.
func shutdownAfterWrongSettings(l *life) error {
	wrong, err := config.ParseSection("config", wrongSettings)
	if err != nil {
		return err
	}
	l.section = wrong
	i := l.fresh()
	err = i.initialize(context.Background())
	if !errors.Is(err, contract.ErrPanicked) {
		err = nil
	}
	return errors.Join(err, i.shutdown(), i.shutdown())
}

// shutdownBesideAnother makes Initialize fail if the module needs something
// exclusive, because another instance has it.
func shutdownBesideAnother(l *life) error {
	first, second := l.fresh(), l.fresh()
	if err := first.start(); err != nil {
		return errors.Join(err, first.shutdown())
	}
	err := second.initialize(context.Background())
	if !errors.Is(err, contract.ErrPanicked) {
		err = nil
	}
	return errors.Join(err, second.shutdown(), second.shutdown(), first.healthy(), first.shutdown())
}

func lives(l *life) error {
	for range 2 {
		i := l.fresh()
		err := i.start()
		if err == nil && l.c.Use != nil {
			err = l.c.Use(i.m)
		}
		if err = errors.Join(err, i.shutdown(), i.shutdown()); err != nil {
			return err
		}
	}
	return nil
}

func runs(l *life) error {
	i := l.fresh()
	r, ok := i.m.(modules.Runner)
	if !ok {
		return nil
	}
	if err := i.start(); err != nil {
		return errors.Join(err, i.shutdown())
	}
	var errs []error
	for range 2 {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- contract.Protect("Run", func() error { return r.Run(ctx) }) }()
		cancel()
		select {
		case err := <-done:
			if err != nil && !errors.Is(err, context.Canceled) {
				errs = append(errs, fmt.Errorf("Run: %w", err))
			}
		case <-time.After(l.c.HookTimeout):
			errs = append(errs, fmt.Errorf("Run does not return, %v after its context ended", l.c.HookTimeout))
		}
	}
	return errors.Join(append(errs, i.shutdown())...)
}

// exported returns the state of a module that has been used and shut down.
func (l *life) exported() ([]byte, error) {
	i := l.fresh()
	err := i.start()
	if err == nil && l.c.Use != nil {
		err = l.c.Use(i.m)
	}
	if err = errors.Join(err, i.shutdown()); err != nil {
		return nil, err
	}
	first, err := i.export()
	if err != nil {
		return nil, err
	}
	second, err := i.export()
	if err == nil && !bytes.Equal(first, second) {
		err = fmt.Errorf("two exports after Shutdown differ: %.200q and %.200q", first, second)
	}
	return first, err
}

func survives(l *life) error {
	if l.fresh().state() == nil {
		return nil
	}
	if l.c.Use == nil {
		return errors.New("the module is stateful: Case.Use must change its state")
	}
	empty, err := l.fresh().export()
	if err != nil {
		return err
	}
	want, err := l.exported()
	if err != nil {
		return err
	}
	if bytes.Equal(empty, want) {
		return fmt.Errorf("Case.Use leaves the state as a fresh one: %.200q", want)
	}
	i := l.fresh()
	if err := i.restore(i.state().Version, want); err != nil {
		return err
	}
	if got, err := i.export(); err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("a restored state is %.200q, %v; it was exported as %.200q", got, err, want)
	}
	err = i.start()
	if err = errors.Join(err, i.shutdown()); err != nil {
		return err
	}
	if got, err := i.export(); err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("after Initialize and Shutdown the state is %.200q, %v; restored was %.200q: Initialize must not change what State points to", got, err, want)
	}
	return nil
}

// carries checks that a rollback, which gives the value in memory to a fresh module,
// leads to the same as a reload, which exports and restores it. They differ if parts of
// the value are shared, or if something is not exported.
func carries(l *life) error {
	if l.fresh().state() == nil || l.c.Use == nil {
		return nil
	}
	// again uses a module that has got the state of another in some way.
	again := func(pass func(from, to *instance) error) ([]byte, error) {
		from, to := l.fresh(), l.fresh()
		if err := from.used(); err != nil {
			return nil, err
		}
		if err := pass(from, to); err != nil {
			return nil, err
		}
		if err := to.used(); err != nil {
			return nil, err
		}
		return to.export()
	}
	exported := func(from, to *instance) error {
		text, err := from.export()
		if err != nil {
			return err
		}
		return to.restore(to.state().Version, text)
	}
	inMemory := func(from, to *instance) error {
		err := contract.Carry(*from.state(), *to.state())
		if errors.Is(err, contract.ErrEncodesItself) {
			return exported(from, to)
		}
		return err
	}
	want, err := again(exported)
	if err != nil {
		return err
	}
	if twice, err := again(exported); err != nil || !bytes.Equal(twice, want) {
		return err // Case.Use does something else each time
	}
	got, err := again(inMemory)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("carried in memory and used again the state is %.200q; exported, restored and used again it is %.200q: is a part of it shared, or not exported?", got, want)
	}
	return err
}

// used starts the module, uses it and shuts it down.
func (i *instance) used() error {
	err := i.start()
	if err == nil {
		err = i.l.c.Use(i.m)
	}
	return errors.Join(err, i.shutdown())
}

func garbage(l *life) error {
	state := l.fresh().state()
	if state == nil {
		return nil
	}
	good, err := l.exported()
	if err != nil {
		return err
	}
	inputs := [][]byte{{}, []byte("garbage"), []byte("{"), []byte("["), bytes.Repeat([]byte{0xff, 0}, 512), good[:len(good)/2]}
	_, streams := state.Value.(io.ReaderFrom) // it may accept any bytes, but not panic
	var errs []error
	for version := 0; version <= state.Version; version++ {
		if version < state.Version && state.Migrate == nil {
			continue
		}
		for _, input := range inputs {
			err := l.fresh().restore(version, input)
			if errors.Is(err, contract.ErrPanicked) || err == nil && !streams {
				errs = append(errs, fmt.Errorf("version %d of a state, %.40q, gave %v; want an error", version, input, err))
			}
		}
	}
	if err := l.fresh().restore(state.Version+1, good); err == nil {
		errs = append(errs, errors.New("a state of a newer version is accepted"))
	}
	return errors.Join(errs...)
}

func golden(l *life) error {
	if l.c.Golden == "" {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(l.c.Golden, "*.json"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no golden states in %s: %w", l.c.Golden, err)
	}
	var errs []error
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		number, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".json"), "-")
		version, err := strconv.Atoi(number)
		if err != nil {
			return fmt.Errorf("%s: a golden state is named after its version", file)
		}
		i := l.fresh()
		if i.state() == nil {
			return fmt.Errorf("%s: the module has no state", file)
		}
		if err := i.restore(version, data); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
			continue
		}
		if err := errors.Join(i.start(), i.shutdown()); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
		}
	}
	return errors.Join(errs...)
}
