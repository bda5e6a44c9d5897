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

// ownGroup puts this process into a process group of its own. Processes that it starts
// are in it too, so that they can be killed with it.
func ownGroup() { syscall.Setpgid(0, 0) } // the leader of a session has one

// killGroup kills what a process that had a group of its own has left behind.
func killGroup(pid int) { syscall.Kill(-pid, syscall.SIGKILL) }

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
