package upgrade_test

import (
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestAnAddressIsWhatItMeans: the program's own port is not "taken by another
// program" when its host is written in another way or changes, and no client that
// connects all the while notices, also when such a reload fails.
func TestAnAddressIsWhatItMeans(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere only a restart changes the host of a port")
	}
	p, b, s := e2etest.Started(t)
	listen := s.Listen[0]
	_, port, err := net.SplitHostPort(listen)
	p.Check(err)
	address := listen
	to := func(next string) {
		p.Configure("listen: "+address+"\n", "listen: "+next+"\n")
		address = next
	}
	load := e2etest.StartLoad(listen)
	for _, step := range []struct {
		address string
		fails   bool
		told    string
	}{
		{"localhost:" + port, false, ""},
		{"'[::]:" + port + "'", false, "[::]:" + port},
		{":" + port, false, ""},
		{"0.0.0.0:" + port, false, ""},
		{listen, true, ""},
		{listen, false, listen},
		{"0.0.0.0:" + port, true, ""},
		{":" + port, false, "[::]:" + port},
		{"127.0.0.2:" + port, true, ""},
		{listen, false, listen},
	} {
		to(step.address)
		binary := b.Old
		if step.fails {
			binary = b.New
			p.Write("failing", "Initialize")
		}
		o, err := p.Upgrade(client.ReloadRequest{Binary: binary, WaitProbation: true})
		p.Check(err)
		if step.fails {
			if o.Verdict != client.Rejected || !strings.Contains(o.Error, "failing") {
				t.Errorf("to %s with an error = %v", step.address, o)
			}
			p.Check(os.Remove(p.Path("failing")))
		} else if told := slices.ContainsFunc(o.Notes, func(n string) bool { return strings.Contains(n, "now on "+step.told) }); o.Verdict != client.Reloaded || told != (step.told != "") {
			t.Errorf("to %s = %v, want it reloaded and the address told only if it is another: %q", step.address, o, step.told)
		}
		if ln, err := net.Listen("tcp", p.Address()); err == nil {
			ln.Close()
			t.Errorf("after %s another program can listen there", step.address)
		}
	}
	// After a crash the address may be another one, too.
	to("0.0.0.0:" + port)
	now, err := p.Peek()
	p.Check(err)
	p.Check(syscall.Kill(now.PID, syscall.SIGKILL))
	p.Wait("a restart", func() bool {
		s, err := p.Peek()
		return err == nil && s.State == client.Serving && s.Generation > now.Generation
	})
	if _, _, err := e2etest.Increment("127.0.0.2:" + port); err != nil {
		t.Errorf("after a crash it does not serve on every address: %v", err)
	}
	load.End()
	if load.Failed.Load() > 1 { // the crash cuts a request in flight
		t.Errorf("%d of %d requests failed, such as: %v", load.Failed.Load(), load.Sent.Load(), load.Why.Load())
	}
}
