package handoff

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"

	"github.com/cloudflare/tableflip"
)

// owned is a listening socket of this process, whatever it was inherited for.
type owned struct {
	fd   int
	addr *net.TCPAddr
}

// wildcard reports whether a listens on every address of the machine.
func wildcard(a *net.TCPAddr) bool { return len(a.IP) == 0 || a.IP.IsUnspecified() }

// sameAddress reports whether two addresses mean the same: 127.0.0.1 and
// localhost, or one wildcard and another.
func sameAddress(a, b *net.TCPAddr) bool {
	return a.Port == b.Port && (wildcard(a) && wildcard(b) || a.IP.Equal(b.IP) && a.Zone == b.Zone)
}

// listenBeside listens on an address whose port this process already listens on,
// under another text or another host. The error is errNotOwned if somebody else has
// the port. From then on other programs of this user that ask to share the port
// (SO_REUSEPORT) may: the kernel does not forget that it was shared once.
func (u *Upgrader) listenBeside(address string) (net.Listener, error) {
	to, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	own := ownedSockets(to.Port)
	if len(own) == 0 {
		return nil, errNotOwned
	}
	wider := false
	for _, s := range own {
		if sameAddress(s.addr, to) {
			return s.listener()
		}
		wider = wider || wildcard(s.addr)
	}
	for _, s := range own {
		if err := share(s.fd); err != nil {
			return nil, err
		}
	}
	if !wider {
		return listenShared(address)
	}
	// Clients of the wider address would come here at once, and be lost if this
	// process does not take over.
	ln, err := bindShared(to)
	if err != nil {
		return nil, err
	}
	u.bound = append(u.bound, ln)
	return ln, nil
}

// errNotOwned says that no socket of this process has the port.
var errNotOwned = errors.New("another process has this port")

// Others returns listeners for other listening sockets of this process on the port
// of ln, which earlier generations opened under another host and on which clients
// may wait. If ln is for every address these are for one each, and stay, because the
// clients of these addresses come nowhere else. If ln is for one, it is that for
// every address, which must be closed when this generation is final (closed is
// true). Others must be called when everything listens.
func (u *Upgrader) Others(ln net.Listener) (others []net.Listener, closed bool, err error) {
	mine, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		return nil, false, nil
	}
	closed = !wildcard(mine)
	for _, s := range ownedSockets(mine.Port) {
		if wildcard(s.addr) != closed || u.listensOn(s.addr) {
			continue
		}
		other, err := s.listener()
		if err != nil {
			return nil, false, err
		}
		others = append(others, other)
		if closed {
			return others, true, nil
		}
		name := s.addr.String()
		if err := u.tf.AddListener("tcp", name, other.(tableflip.Listener)); err != nil {
			return nil, false, err
		}
		u.listening = append(u.listening, socket{"tcp " + name, other})
	}
	return others, closed, nil
}

// listensOn reports whether this generation has a listener of its own on a.
func (u *Upgrader) listensOn(a *net.TCPAddr) bool {
	return slices.ContainsFunc(u.listening, func(l socket) bool {
		mine, ok := l.ln.Addr().(*net.TCPAddr)
		return ok && sameAddress(a, mine)
	})
}

// Open begins to listen on the addresses that could only be bound before, because
// an older generation serves the same port of every address. It must be called when
// this generation takes over.
func (u *Upgrader) Open() error {
	var errs []error
	for _, ln := range u.bound {
		if err := listen(ln); err != nil {
			errs = append(errs, fmt.Errorf("listen on %s: %w", ln.Addr(), err))
		}
	}
	u.bound = nil
	return errors.Join(errs...)
}

// inUse reports whether err says that an address is taken.
func inUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }
