//go:build unix && !linux

package supervisor

import "syscall"

func becomeSubreaper() {}

func processAttr(bool) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func running(_ int, binary string) string { return binary }
