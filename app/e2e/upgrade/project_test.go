//go:build unix

package upgrade_test

import (
	"io/fs"
	"syscall"
)

func inodeOf(info fs.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }
