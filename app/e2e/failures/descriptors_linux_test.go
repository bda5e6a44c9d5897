package failures_test

import (
	"bufio"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestNoFreeDescriptors leaves the worker only the descriptors that are in use.
func TestNoFreeDescriptors(t *testing.T) {
	t.Parallel()
	p, b, before := e2etest.Started(t)
	c, err := net.Dial("tcp", before.Listen[0])
	p.Check(err)
	defer c.Close()
	in := bufio.NewReader(c)
	ask := func() error { return e2etest.PostOn(c, in) }
	p.Check(ask()) // the connection is open from now on
	var limit unix.Rlimit
	p.Check(unix.Prlimit(before.PID, unix.RLIMIT_NOFILE, nil, &limit))
	none := limit
	none.Cur = uint64(e2etest.Open(before.PID))
	p.Check(unix.Prlimit(before.PID, unix.RLIMIT_NOFILE, &none, nil))
	o, err := p.Upgrade(client.ReloadRequest{Binary: b.New})
	p.Rejected(o, err, "too many open files", before)
	if err := ask(); err != nil {
		t.Errorf("a request on an open connection: %v", err)
	}
	p.Check(unix.Prlimit(before.PID, unix.RLIMIT_NOFILE, &limit, nil))
	p.NextReloadWorks(b.Old)
	if err := ask(); err != nil {
		t.Errorf("a request on the same connection after a reload: %v", err)
	}
}
