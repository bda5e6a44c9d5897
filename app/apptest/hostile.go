package apptest

import (
	"context"
	"errors"
	"io"
	"sync"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/modules"
)

// Hostile is a module whose hooks do what the test wants. A nil hook succeeds.
// Its State is Value, or an empty struct if that is nil.
type Hostile struct {
	OnPrepare, OnInitialize, OnHealthy, OnRun, OnShutdown func(context.Context) error

	Settings any // decoded by Initialize, if not nil

	Version int
	Value   any
	Migrate func(from int, decode func(any) error) error
}

var (
	_ modules.Stateful      = (*Hostile)(nil)
	_ modules.Preparer      = (*Hostile)(nil)
	_ modules.HealthChecker = (*Hostile)(nil)
	_ modules.Runner        = (*Hostile)(nil)
)

func call(ctx context.Context, f func(context.Context) error) error {
	if f == nil {
		return nil
	}
	return f(ctx)
}

func (h *Hostile) Prepare(ctx context.Context, _ modules.Config) error { return call(ctx, h.OnPrepare) }

func (h *Hostile) Initialize(ctx context.Context, _ *eventbus.Bus, cfg modules.Config) error {
	if h.Settings != nil {
		if err := cfg.Decode(h.Settings); err != nil {
			return err
		}
	}
	return call(ctx, h.OnInitialize)
}

func (h *Hostile) Healthy(ctx context.Context) error  { return call(ctx, h.OnHealthy) }
func (h *Hostile) Run(ctx context.Context) error      { return call(ctx, h.OnRun) }
func (h *Hostile) Shutdown(ctx context.Context) error { return call(ctx, h.OnShutdown) }

func (h *Hostile) State() modules.State {
	if h.Value == nil {
		h.Value = &struct{}{}
	}
	return modules.State{Version: h.Version, Value: h.Value, Migrate: h.Migrate}
}

// Panic is a hook that panics.
func Panic(context.Context) error { panic("hostile") }

// Fail is a hook that fails.
func Fail(context.Context) error { return errors.New("hostile") }

// Hang returns a hook that ignores its deadline until release is called.
func Hang() (hook func(context.Context) error, release func()) {
	released := make(chan struct{})
	return func(context.Context) error {
		<-released
		return nil
	}, sync.OnceFunc(func() { close(released) })
}

// Leak returns a hook that leaves a goroutine behind until release is called.
func Leak() (hook func(context.Context) error, release func()) {
	released := make(chan struct{})
	return func(context.Context) error {
		go func() { <-released }()
		return nil
	}, sync.OnceFunc(func() { close(released) })
}

// Liar is a state that does not restore what it exports.
type Liar struct{ N int }

// WriteTo exports something different at each call.
func (l *Liar) WriteTo(w io.Writer) (int64, error) {
	l.N++
	n, err := w.Write([]byte{byte(l.N)})
	return int64(n), err
}

// ReadFrom panics on empty input.
func (l *Liar) ReadFrom(r io.Reader) (int64, error) {
	data, err := io.ReadAll(r)
	l.N = int(data[0])
	return int64(len(data)), err
}
