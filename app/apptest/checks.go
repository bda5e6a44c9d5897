package apptest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

type check struct {
	name string
	run  func(*life) error
}

var checks = []check{
	{"signatures and state are as the contract wants", signatures},
	{"Shutdown without Initialize, twice", shutdownAlone},
	{"Shutdown after Prepare alone", shutdownAfterPrepare},
	{"Shutdown after a cancelled Initialize", shutdownAfterCancelled},
	{"Shutdown after an Initialize with wrong settings", shutdownAfterWrongSettings},
	{"Shutdown after an Initialize beside another instance", shutdownBesideAnother},
	{"Shutdown after a life, twice, and a life after it", lives},
	{"Run ends with its context and can run again", runs},
	{"the state survives", survives},
	{"a garbage state is refused", garbage},
	{"golden states load", golden},
}

func signatures(l *life) error { return modules.Check(l.c.New()) }

func shutdownAlone(l *life) error {
	i := l.fresh()
	return errors.Join(i.shutdown(), i.shutdown())
}

func shutdownAfterPrepare(l *life) error {
	i := l.fresh()
	return errors.Join(i.prepare(), i.shutdown())
}

// shutdownAfterCancelled does not mind whether Initialize fails: it may have
// been done before it could notice.
func shutdownAfterCancelled(l *life) error {
	i := l.fresh()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := i.initialize(ctx)
	if errors.Is(err, errPanicked) {
		return errors.Join(err, i.shutdown())
	}
	return errors.Join(i.shutdown(), i.shutdown())
}

// shutdownAfterWrongSettings makes Initialize of a module fail that has settings.
func shutdownAfterWrongSettings(l *life) error {
	wrong, err := config.ParseSection("config", "{of-no-module: [1]}")
	if err != nil {
		return err
	}
	l.section = wrong
	i := l.fresh()
	err = i.initialize(context.Background())
	if !errors.Is(err, errPanicked) {
		err = nil
	}
	return errors.Join(err, i.shutdown(), i.shutdown())
}

// shutdownBesideAnother makes Initialize of a module fail that needs something
// exclusive, because another instance has it.
func shutdownBesideAnother(l *life) error {
	first, second := l.fresh(), l.fresh()
	if err := first.start(); err != nil {
		return errors.Join(err, first.shutdown())
	}
	err := second.initialize(context.Background())
	if !errors.Is(err, errPanicked) {
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
		go func() { done <- protect("Run", func() error { return r.Run(ctx) }) }()
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

// exported is the state of a module that has been used and shut down.
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
			if errors.Is(err, errPanicked) || err == nil && !streams {
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
