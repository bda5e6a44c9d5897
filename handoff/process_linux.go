package handoff

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// peerPID returns the PID of the process at the other end, 0 if unknown.
func peerPID(c *net.UnixConn) (pid int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
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
