// Package apptest checks whether a module keeps the contract of package modules.
// A module's test is one call:
//
//	func TestContract(t *testing.T) {
//		apptest.Run(t, apptest.Case{New: counter.New, Golden: "testdata/state"})
//	}
//
// The kit calls the module as the framework would, in the test's process and
// without a network: it does not replace tests of what the module does. It
// looks for goroutines that are left, so it must not run beside other tests (no
// t.Parallel).
//
// The package also has [Hostile], a module that breaks the contract on purpose,
// for tests of code that runs modules.
package apptest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

// Case is what the kit needs to know about a module.
type Case struct {
	// New is the module's factory.
	New func() modules.Module

	// Config returns the module's settings, as YAML, for one check. Equal texts
	// name the same exclusive things, such as files. Nil means none.
	Config func() string

	// Use makes the state of a running module differ from a fresh one's. It is
	// required for a stateful module: a state that never changes proves
	// nothing.
	Use func(m modules.Module) error

	// Golden is a folder of states that this and earlier versions exported:
	// <version>.json, or <version>-<what>.json. Each must load.
	Golden string

	// Call stands in for the modules that this one calls.
	Call modules.Caller

	// HookTimeout is the deadline of each hook. Default 5s.
	HookTimeout time.Duration
}

// Run runs every check as a subtest.
func Run(t *testing.T, c Case) {
	for _, check := range checks {
		t.Run(check.name, func(t *testing.T) {
			if err := c.verify(check); err != nil {
				t.Error(err)
			}
		})
	}
}

// Verify runs every check and returns the failures.
func Verify(c Case) (errs []error) {
	for _, check := range checks {
		if err := c.verify(check); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", check.name, err))
		}
	}
	return errs
}

func (c Case) verify(k check) error {
	if c.HookTimeout == 0 {
		c.HookTimeout = 5 * time.Second
	}
	before := goleak.IgnoreCurrent()
	l := &life{c: c}
	if c.Config != nil {
		text := c.Config()
		var err error
		if l.section, err = config.ParseSection("config", text); err != nil {
			return err
		}
	}
	err := contract.Protect(k.name, func() error { return k.run(l) })
	if leaked := goleak.Find(before); leaked != nil {
		err = errors.Join(err, fmt.Errorf("goroutines are left after Shutdown: %w", leaked))
	}
	return err
}

// life is what the instances of one check have in common.
type life struct {
	c       Case
	section config.Section
}

// instance is one value of the module with its client of the bus.
type instance struct {
	l   *life
	m   modules.Module
	bus *eventbus.Bus
	cfg modules.Config
}

func (l *life) fresh() *instance {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	root := eventbus.New(eventbus.Options{Log: log})
	call := l.c.Call
	m := l.c.New()
	_ = contract.Configure(m, l.section) // the check of the settings tells
	return &instance{l: l, m: m, bus: root.Client("apptest"), cfg: modules.Config{Name: "apptest", Log: log, Section: l.section, Caller: call}}
}

// hook calls one of the module's hooks, with its deadline.
func (i *instance) hook(ctx context.Context, name string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, i.l.c.HookTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- contract.Protect(name, func() error { return f(ctx) }) }()
	select {
	case err := <-done:
		return err
	case <-time.After(2 * i.l.c.HookTimeout):
		return fmt.Errorf("%s does not return, %v after its context ended", name, i.l.c.HookTimeout)
	}
}

func (i *instance) prepare() error {
	p, ok := i.m.(modules.Preparer)
	if !ok {
		return nil
	}
	return i.hook(context.Background(), "Prepare", func(ctx context.Context) error { return p.Prepare(ctx, i.cfg) })
}

func (i *instance) initialize(ctx context.Context) error {
	return i.hook(ctx, "Initialize", func(ctx context.Context) error { return i.m.Initialize(ctx, i.bus, i.cfg) })
}

func (i *instance) healthy() error {
	h, ok := i.m.(modules.HealthChecker)
	if !ok {
		return nil
	}
	return i.hook(context.Background(), "Healthy", h.Healthy)
}

// start does everything up to the commit.
func (i *instance) start() error {
	if err := i.prepare(); err != nil {
		return err
	}
	if err := i.initialize(context.Background()); err != nil {
		return fmt.Errorf("Initialize: %w", err)
	}
	if err := i.healthy(); err != nil {
		return fmt.Errorf("Healthy after Initialize: %w", err)
	}
	return nil
}

func (i *instance) shutdown() error {
	err := i.hook(context.Background(), "Shutdown", i.m.Shutdown)
	i.bus.Close()
	if err != nil {
		return fmt.Errorf("Shutdown: %w", err)
	}
	return i.hook(context.Background(), "event subscriber", i.bus.Wait)
}

// state returns nil if the module has none.
func (i *instance) state() *modules.State {
	s, ok := i.m.(modules.Stateful)
	if !ok {
		return nil
	}
	state := s.State()
	return &state
}

func (i *instance) export() ([]byte, error) {
	var b bytes.Buffer
	if err := contract.Write(*i.state(), &b); err != nil {
		return nil, fmt.Errorf("export the state: %w", err)
	}
	return b.Bytes(), nil
}

// reader is what a state is restored from.
type reader struct {
	*bytes.Reader
}

func (r reader) Size() int64 { return int64(r.Reader.Len()) }

func (i *instance) restore(version int, exported []byte) error {
	return Restore(i.m, version, exported)
}

// Restore decodes a state that some version of a stateful module has exported.
// m is the fresh value that gets it, as in a reload before Initialize.
func Restore(m modules.Module, version int, exported []byte) error {
	s, ok := m.(modules.Stateful)
	if !ok {
		return fmt.Errorf("%T has no state", m)
	}
	return contract.Protect("restoring a state", func() error {
		return contract.Read(s.State(), version, reader{bytes.NewReader(exported)})
	})
}
