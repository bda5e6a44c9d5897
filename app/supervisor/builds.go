//go:build unix

package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"orchestrator/app/build"
)

// copyBuild copies an executable to the folder of builds.
func copyBuild(from, builds string, generation int) (string, error) {
	fresh := filepath.Join(builds, fmt.Sprintf("keep-%d", generation))
	if err := os.MkdirAll(fresh, 0o755); err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	out := filepath.Join(fresh, "orchestrator")
	if err := copyFile(from, out); err != nil {
		return "", err
	}
	id, err := build.Sum(out)
	if err != nil {
		return "", err
	}
	return nameBuild(fresh, filepath.Join(builds, id))
}

// nameBuild moves a build from the folder fresh to dir, unless it is there
// already. It returns the binary.
func nameBuild(fresh, dir string) (string, error) {
	out := filepath.Join(dir, "orchestrator")
	if id, err := build.Sum(out); err == nil && id == filepath.Base(dir) {
		return out, os.RemoveAll(fresh)
	}
	os.RemoveAll(dir)
	return out, os.Rename(fresh, dir)
}

// prune removes builds that nobody runs or would be restarted with.
func (s *supervisor) prune() {
	keep := map[string]bool{folder(s.current.binary): true, "new": true}
	if s.proving != nil {
		keep[folder(s.previous.binary)] = true
	}
	if s.crash.mayOlder {
		keep[folder(s.older)] = true
		if s.proving != nil {
			keep[folder(s.oldest)] = true
		}
	}
	for n, binary := range s.binaries {
		if s.workers[n] != nil || n == s.lastServed {
			keep[folder(binary)] = true
			keep[folder(s.kept[n])] = true
		} else if n < s.number {
			delete(s.binaries, n)
			delete(s.kept, n)
		}
	}
	builds := filepath.Join(s.opts.RunDir, "builds")
	entries, _ := os.ReadDir(builds)
	for _, e := range entries {
		if !keep[e.Name()] && !strings.HasPrefix(e.Name(), "keep-") {
			os.RemoveAll(filepath.Join(builds, e.Name()))
		}
	}
	os.RemoveAll(filepath.Join(s.opts.RunDir, "frozen"))
}

// folder is the name of a build's folder.
func folder(binary string) string { return filepath.Base(filepath.Dir(binary)) }
