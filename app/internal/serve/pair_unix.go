//go:build unix

package serve

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// Pair returns the two ends of a connection between processes.
func Pair() (near, far net.Conn, err error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("serve: make a connection to forward on: %w", err)
	}
	ends := [2]net.Conn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "forward")
		c, fileErr := net.FileConn(f)
		f.Close()
		if fileErr != nil {
			err = fmt.Errorf("serve: make a connection to forward on: %w", fileErr)
			continue
		}
		ends[i] = c
	}
	if err != nil {
		for _, c := range ends {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}
