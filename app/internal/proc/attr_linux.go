package proc

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// becomeSubreaper makes this process the parent of generations whose own
// parent, the predecessor, has exited.
func becomeSubreaper() { unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

func processAttr(dieWithUs bool) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if dieWithUs {
		attr.Pdeathsig = syscall.SIGKILL
	}
	return attr
}

// Image returns a path to the code that a process runs, even when the file it
// was started from is gone.
func Image(pid int, _ string) string { return fmt.Sprintf("/proc/%d/exe", pid) }
