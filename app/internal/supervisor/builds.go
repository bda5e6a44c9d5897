//go:build unix

package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/sources"
)

// builds holds the binaries of generations, and the folder for binaries that are
// built or copied here: <dir>/<id>/orchestrator.
type builds struct {
	dir    string         // absolute
	number int            // of the last generation; numbers are never reused
	binary map[int]string // generation -> the file it was started from
	copy   map[int]string // generation -> its copy in dir, or the file itself if it is already there

	lastServed int    // generation
	older      string // the build before the one that serves
	oldest     string // the build before older, for a rollback
}

func newBuilds(runDir string) builds {
	return builds{dir: filepath.Join(sources.Absolute(runDir), "builds"), binary: map[int]string{}, copy: map[int]string{}}
}

// add returns the number of a generation that is about to start from binary.
func (b *builds) add(binary string) (generation int) {
	b.number++
	b.binary[b.number] = binary
	return b.number
}

// startable returns the binary of a generation as it was when the generation
// began to serve: the file it was started from may have been replaced or
// deleted since.
func (b *builds) startable(generation int) string {
	if kept := b.copy[generation]; exists(kept) {
		return kept
	}
	return b.binary[generation]
}

// serves records that a generation serves for the first time. upgraded says
// that it has replaced another; a restart after a crash makes no build older.
// serves reports whether the binary has to be copied.
func (b *builds) serves(generation int, upgraded bool) (copyIt bool) {
	binary := b.binary[generation]
	if b.lastServed != 0 && upgraded && b.lastServed != generation && b.startable(b.lastServed) != binary {
		b.older, b.oldest = b.startable(b.lastServed), b.older
	}
	b.lastServed = generation
	if b.inDir(binary) && exists(binary) {
		b.copy[generation] = binary
		return false
	}
	return true
}

// copied records the copy of a generation's binary. If it shows that the
// previous generation had the same build, that build is not an older one.
func (b *builds) copied(generation int, kept string) {
	b.copy[generation] = kept
	if generation == b.lastServed && b.older == kept {
		b.older = b.oldest
	}
}

// servesOn records that a generation still serves, or serves again.
func (b *builds) servesOn(generation int) {
	if b.lastServed != generation { // another had taken over
		b.older = b.oldest
	}
	b.lastServed = generation
}

func (b *builds) inDir(binary string) bool { return filepath.Dir(filepath.Dir(binary)) == b.dir }

// unneeded forgets generations that are gone, and returns the folders with
// builds that no process runs or would be started from. The builds in also are
// needed for other reasons.
func (b *builds) unneeded(folders []string, running func(generation int) bool, also ...string) (remove []string) {
	needed := map[string]bool{"new": true}
	for _, binary := range also {
		needed[folder(binary)] = true
	}
	for n, binary := range b.binary {
		if running(n) || n == b.lastServed {
			needed[folder(binary)] = true
			needed[folder(b.copy[n])] = true
		} else if n < b.number {
			delete(b.binary, n)
			delete(b.copy, n)
		}
	}
	for _, name := range folders {
		if !needed[name] && !strings.HasPrefix(name, copyPrefix) {
			remove = append(remove, name)
		}
	}
	return remove
}

// prune removes builds that are not needed.
func (b *builds) prune(running func(generation int) bool, also ...string) {
	entries, _ := os.ReadDir(b.dir)
	folders := make([]string, 0, len(entries))
	for _, e := range entries {
		folders = append(folders, e.Name())
	}
	for _, name := range b.unneeded(folders, running, also...) {
		os.RemoveAll(filepath.Join(b.dir, name))
	}
}

// folder returns the name of a build's folder.
func folder(binary string) string { return filepath.Base(filepath.Dir(binary)) }

// buildID returns the name of a build: that of its folder, or of the binary.
func buildID(binary string) string {
	if dir := filepath.Dir(binary); filepath.Base(filepath.Dir(dir)) == "builds" {
		return filepath.Base(dir)
	}
	return filepath.Base(binary)
}

// copyPrefix begins the names of folders in which a copy is being made.
const copyPrefix = "keep-"

// copyBuild copies an executable to the folder of builds and returns the copy.
func copyBuild(from, dir string, generation int) (string, error) {
	fresh := filepath.Join(dir, fmt.Sprint(copyPrefix, generation))
	if err := os.MkdirAll(fresh, 0o700); err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	out := filepath.Join(fresh, "orchestrator")
	if err := copyFile(from, out); err != nil {
		return "", err
	}
	return nameBuild(fresh, dir)
}

// nameBuild moves a build from the folder fresh to the folder in dir that is
// named after its content, unless it is there already. It returns the binary.
func nameBuild(fresh, dir string) (string, error) {
	id, err := build.Sum(filepath.Join(fresh, "orchestrator"))
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, id, "orchestrator")
	if have, err := build.Sum(out); err == nil && have == id {
		return out, os.RemoveAll(fresh)
	}
	os.RemoveAll(filepath.Join(dir, id))
	return out, os.Rename(fresh, filepath.Join(dir, id))
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// copyFile copies an executable.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o700)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
