package serve

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// received returns how many bytes the client has acknowledged. ok is false for a
// socket that does not say.
func received(nc net.Conn) (n uint64, ok bool) {
	sc, is := nc.(syscall.Conn)
	if !is {
		return 0, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, false
	}
	raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n, ok = info.Bytes_acked, true
		}
	})
	return n, ok
}
