//go:build unix && !linux

package proc

import "syscall"

func becomeSubreaper() {}

func processAttr(bool) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func Image(_ int, binary string) string { return binary }
