package handoff

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// peerPID returns the PID of the process at the other end, 0 if unknown. It is an
// error if that is another user's, or no child of this process.
func peerPID(c *net.UnixConn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	uid := -1
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid, uid = int(cred.Pid), int(cred.Uid)
		}
	})
	if uid != os.Geteuid() {
		return pid, fmt.Errorf("process %d of user %d has connected to the handoff socket: %w", pid, uid, errGarbage)
	}
	if parent := parentOf(pid); parent != os.Getpid() {
		return pid, fmt.Errorf("process %d has connected to the handoff socket, and is not the candidate: its parent is process %d: %w", pid, parent, errGarbage)
	}
	return pid, nil
}

// parentOf returns the parent of a process, 0 if that is unknown.
func parentOf(pid int) int {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	rest := stat[bytes.LastIndexByte(stat, ')')+1:] // the name before it may contain anything
	if f := strings.Fields(string(rest)); len(f) > 1 {
		parent, _ := strconv.Atoi(f[1])
		return parent
	}
	return 0
}

// findChild returns the PID of a child with an environment entry for each of
// these prefixes, 0 if there is none. It finds a candidate that hangs before
// its hello. Processes that modules start do not have all of the entries.
func findChild(env ...string) int {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		children, _ := os.ReadFile(list)
		for _, field := range strings.Fields(string(children)) {
			environ, _ := os.ReadFile("/proc/" + field + "/environ")
			have := bytes.Split(environ, []byte{0})
			if !slices.ContainsFunc(env, func(want string) bool {
				return !slices.ContainsFunc(have, func(e []byte) bool { return strings.HasPrefix(string(e), want) })
			}) {
				pid, _ := strconv.Atoi(field)
				return pid
			}
		}
	}
	return 0
}

func anonymousFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("orchestrator-states", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return unlinkedFile()
	}
	return os.NewFile(uintptr(fd), "states"), nil
}

// seal makes file read-only for every process that has it: a rollback must find
// what was exported. Only a file in memory can be sealed.
func seal(file *os.File) {
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.FcntlInt(fd, unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	})
}
