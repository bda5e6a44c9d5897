//go:build unix

package e2etest

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"time"

	"example.org/orchestrator/app/internal/sources"
)

// Watching measures how long looks at n files of 1 KiB below dir take, and the
// heap used by a snapshot and a watcher of them.
func Watching(dir string, n int) (ms []float64, heap float64, err error) {
	var set sources.Set
	for i := range n {
		d := fmt.Sprintf("%s/d%d", dir, i/100)
		if i%100 == 0 {
			set.PackageDirs = append(set.PackageDirs, d)
			if err := os.MkdirAll(d, 0o755); err != nil {
				return nil, 0, err
			}
		}
		if err := os.WriteFile(fmt.Sprintf("%s/f%d.go", d, i), make([]byte, 1024), 0o644); err != nil {
			return nil, 0, err
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w := sources.New(slog.New(slog.NewTextHandler(io.Discard, nil)))
	defer w.Close()
	w.Watch(set)
	var snap *sources.Snapshot
	for range 7 {
		began := time.Now()
		snap = sources.Take(set)
		ms = append(ms, float64(time.Since(began).Microseconds())/1000)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(snap)
	return ms, float64(after.HeapAlloc-before.HeapAlloc) / (1 << 20), nil
}
