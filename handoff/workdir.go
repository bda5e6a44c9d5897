package handoff

import (
	"fmt"
	"os"
	"path/filepath"
)

// startDir is the working directory in which this process has started, which is also
// that of the next generation. A module may have changed to another one.
type startDir struct {
	open *os.File // nil if it could not be opened
	info os.FileInfo
}

func currentDir() startDir {
	d, err := os.Open(".")
	if err != nil {
		return startDir{}
	}
	info, err := d.Stat()
	if err != nil {
		d.Close()
		return startDir{}
	}
	return startDir{d, info}
}

// here returns how this process reaches a path that is relative to the directory it
// has started in.
func (s startDir) here(path string) string {
	if s.open == nil || filepath.IsAbs(path) {
		return path
	}
	if now, err := os.Stat("."); err == nil && os.SameFile(now, s.info) {
		return path
	}
	link := fmt.Sprintf("/proc/self/fd/%d", s.open.Fd()) // short, as a path of a socket must be
	if _, err := os.Stat(link); err != nil {
		link = s.open.Name()
	}
	return link + "/" + path
}
