package supervisor

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// becomeSubreaper makes this process the parent of generations whose own
// parent, the generation before, has exited.
func becomeSubreaper() { unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

func processAttr(dieWithUs bool) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if dieWithUs {
		attr.Pdeathsig = syscall.SIGKILL
	}
	return attr
}
