//go:build unix

package handoff

import "syscall"

func closeOnExec(fds ...int) {
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
	}
}

func kill(pid int) { syscall.Kill(pid, syscall.SIGKILL) }
