//go:build unix

package handoff

import (
	"os"
	"syscall"
)

func closeOnExec(fds ...int) {
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
	}
}

func kill(pid int) { syscall.Kill(pid, syscall.SIGKILL) }

// FreeFiles returns how many more files this process may open, nil if unknown.
func FreeFiles() *int {
	var limit syscall.Rlimit
	open, err := os.ReadDir("/dev/fd")
	if err != nil || syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return nil
	}
	free := int(min(limit.Cur, 1<<30)) - len(open)
	return &free
}
