package handoff

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// soReusePort is SO_REUSEPORT, which package syscall lacks on some architectures.
const soReusePort = 15

// ownedSockets returns the listening TCP sockets of this process on port.
func ownedSockets(port int) []owned {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var list []owned
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || !strings.HasPrefix(to, "socket:") {
			continue
		}
		if on, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN); err != nil || on == 0 {
			continue
		}
		sa, err := syscall.Getsockname(fd)
		if err != nil {
			continue
		}
		var addr *net.TCPAddr
		switch sa := sa.(type) {
		case *syscall.SockaddrInet4:
			addr = &net.TCPAddr{IP: net.IP(sa.Addr[:]), Port: sa.Port}
		case *syscall.SockaddrInet6:
			addr = &net.TCPAddr{IP: net.IP(sa.Addr[:]), Port: sa.Port, Zone: zoneName(sa.ZoneId)}
		default:
			continue
		}
		if addr.Port == port {
			list = append(list, owned{fd, addr})
		}
	}
	return list
}

// listener returns a listener on a duplicate of the socket.
func (s owned) listener() (net.Listener, error) {
	fd, err := dup(s.fd)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), s.addr.String())
	defer f.Close()
	return net.FileListener(f)
}

func dup(fd int) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	n, err := syscall.Dup(fd)
	if err == nil {
		syscall.CloseOnExec(n)
	}
	return n, os.NewSyscallError("dup", err)
}

// share allows other sockets of this user that ask for it to bind to the same port.
func share(fd int) error {
	return os.NewSyscallError("setsockopt", syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, soReusePort, 1))
}

// listenShared listens on an address whose port is shared.
func listenShared(address string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		controlErr := c.Control(func(fd uintptr) { err = share(int(fd)) })
		if err == nil {
			err = controlErr
		}
		return err
	}}
	return lc.Listen(context.Background(), "tcp", address)
}

// bindShared binds to an address whose port is shared, and does not listen yet.
func bindShared(to *net.TCPAddr) (net.Listener, error) {
	family, sa := syscall.AF_INET, syscall.Sockaddr(nil)
	if ip := to.IP.To4(); ip != nil {
		sa = &syscall.SockaddrInet4{Port: to.Port, Addr: [4]byte(ip)}
	} else {
		family = syscall.AF_INET6
		sa = &syscall.SockaddrInet6{Port: to.Port, Addr: [16]byte(to.IP.To16()), ZoneId: zoneID(to.Zone)}
	}
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), to.String())
	defer f.Close()
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if err := share(fd); err != nil {
		return nil, err
	}
	if err := syscall.Bind(fd, sa); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	return net.FileListener(f)
}

// listen begins to listen on what bindShared returned.
func listen(ln net.Listener) error {
	raw, err := ln.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) { err = os.NewSyscallError("listen", syscall.Listen(int(fd), backlog())) })
	if err != nil {
		return err
	}
	return controlErr
}

// backlog returns the longest queue that the system allows.
func backlog() int {
	text, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if n, convErr := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && convErr == nil && n > 0 {
		return n
	}
	return syscall.SOMAXCONN
}

func zoneID(name string) uint32 {
	if i, err := net.InterfaceByName(name); err == nil {
		return uint32(i.Index)
	}
	n, _ := strconv.Atoi(name)
	return uint32(n)
}

func zoneName(id uint32) string {
	if id == 0 {
		return ""
	}
	if i, err := net.InterfaceByIndex(int(id)); err == nil {
		return i.Name
	}
	return strconv.Itoa(int(id))
}
