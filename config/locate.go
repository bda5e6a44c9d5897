package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// FindRunDir is [RunDir] for a file that somebody has named. It fails if the file
// cannot be read, or is so broken that nobody can tell which program it belongs to.
// Other mistakes in it do not matter. said reports whether the file itself says it, or
// it is the default.
func FindRunDir(file string) (runDir string, said bool, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", false, unreadable(file, err)
	}
	var document yaml.Node
	broken := yaml.Unmarshal(data, &document)
	lines := strings.Split(string(data), "\n")
	n := len(lines)
	if broken != nil { // the lines before the mistake may say it
		n = min(n, maxLines) - 1
	}
	for ; n > 0; n-- {
		var start struct {
			App struct {
				RunDir string `yaml:"run_dir"`
			} `yaml:"app"`
		}
		wrong := yaml.Unmarshal([]byte(strings.Join(lines[:n], "\n")), &start)
		if start.App.RunDir != "" && (wrong == nil || broken == nil) { // other values may have the wrong type
			return start.App.RunDir, true, nil
		}
		if broken == nil {
			break
		}
	}
	if broken == nil {
		return lenient(file).App.RunDir, false, nil
	}
	return "", false, syntaxError(file, broken)
}

// maxLines bounds how far into a broken file FindRunDir looks.
const maxLines = 500

// Rereadable returns an error if file cannot be read again and again, as a program that
// runs does: each generation reads it when it starts.
func Rereadable(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return unreadable(file, err)
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		abs = file
	}
	ours := slices.ContainsFunc([]string{"/dev/fd/", "/dev/std", "/proc/"}, func(begin string) bool {
		return strings.HasPrefix(abs, begin) // it means another file to another process
	})
	if info.IsDir() || info.Mode().IsRegular() && !ours {
		return nil // a folder is an error when it is read
	}
	return &Error{File: file, Msg: "is not a file that every generation can read again when it starts: write the configuration to a file, and name that with -c"}
}

// unreadable is the error about a file that cannot be read.
func unreadable(file string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &Error{File: file, Msg: "there is no such file; name another with -c"}
	}
	if info, statErr := os.Stat(file); statErr == nil && info.IsDir() {
		return &Error{File: file, Msg: "is a folder; name a file with -c"}
	}
	return fmt.Errorf("config: read: %w", err)
}
