//go:build unix

// Command bench measures how fast the orchestrator and its alternatives are, and
// writes docs/BENCHMARKS.md:
//
//	go run ./cmd/bench [-edits N] save      from a save to the new code serving
//	go run ./cmd/bench [-edits N] failure   from a mistake to its message
//	go run ./cmd/bench [-edits N] heavy     save, with all of Caddy linked in
//	go run ./cmd/bench cost                 reloads of many modules, large states, large trees
//
// Go benchmarks measure pauses, throughput and states of 1 GiB: see make bench.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
)

var measurements = map[string]func(*measurement, int){
	"save":    saveToServing,
	"failure": saveToFailure,
	"heavy":   heavyDependencies,
	"cost":    reloadCost,
}

func main() {
	edits := flag.Int("edits", 15, "how many edits each contender gets")
	flag.Parse()
	do := measurements[flag.Arg(0)]
	if do == nil || flag.NArg() != 1 || *edits < 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := measure(do, *edits); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// measurement is what a measurement needs from this program. A failure ends it
// with a panic, which [measure] turns into an error.
type measurement struct{ cleanups []func() }

type failure struct{ error }

// measure runs do and always cleans up.
func measure(do func(*measurement, int), edits int) (err error) {
	m := &measurement{}
	defer func() {
		for _, clean := range slices.Backward(m.cleanups) {
			clean()
		}
		switch p := recover().(type) {
		case nil:
		case failure:
			err = p.error
		default:
			panic(p)
		}
	}()
	do(m, edits)
	return nil
}

// Fatalf ends the measurement.
func (m *measurement) Fatalf(format string, args ...any) {
	panic(failure{fmt.Errorf(format, args...)})
}

// Fatal ends the measurement.
func (m *measurement) Fatal(args ...any) { panic(failure{errors.New(fmt.Sprint(args...))}) }

// Logf prints progress.
func (m *measurement) Logf(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// Cleanup registers f to be called at the end, the last one first.
func (m *measurement) Cleanup(f func()) { m.cleanups = append(m.cleanups, f) }

// TempDir makes a folder that is removed at the end.
func (m *measurement) TempDir() string {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
