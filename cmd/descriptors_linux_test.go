package cmd_test

import (
	"bufio"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"orchestrator/app/control"
)

// TestNoFreeDescriptors takes all descriptors but those in use from the worker.
func TestNoFreeDescriptors(t *testing.T) {
	t.Parallel()
	p, b, before := started(t)
	c, err := net.Dial("tcp", before.Listen[0])
	p.check(err)
	defer c.Close()
	in := bufio.NewReader(c)
	ask := func() error { return postOn(c, in) }
	p.check(ask()) // its descriptor is there from now on
	var limit unix.Rlimit
	p.check(unix.Prlimit(before.PID, unix.RLIMIT_NOFILE, nil, &limit))
	none := limit
	none.Cur = uint64(open(before.PID))
	p.check(unix.Prlimit(before.PID, unix.RLIMIT_NOFILE, &none, nil))
	o, err := p.upgrade(control.ReloadRequest{Binary: b.new})
	p.rejected(o, err, "too many open files", before)
	if err := ask(); err != nil {
		t.Errorf("a request on an open connection: %v", err)
	}
	p.check(unix.Prlimit(before.PID, unix.RLIMIT_NOFILE, &limit, nil))
	p.nextReloadWorks(b.old)
	if err := ask(); err != nil {
		t.Errorf("a request on the same connection after a reload: %v", err)
	}
}
