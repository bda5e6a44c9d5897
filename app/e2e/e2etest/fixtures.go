//go:build unix

package e2etest

import (
	"fmt"
	"net/http"
	"os"
	"testing"
)

// Zoo starts a program with the module zoo, and returns its binary and address.
func Zoo(t *testing.T, edits ...string) (p *Project, binary, address string) {
	t.Helper()
	p, _ = Light(t)
	return startZoo(p, edits...)
}

// Rude starts a program with the module of fixtures/rude, in production.
func Rude(t *testing.T, edits ...string) (p *Project, binary string) {
	t.Helper()
	p, _ = Light(t)
	binary, err := RudeBuild()
	p.Check(err)
	p.Check(os.Remove(p.Path("bin/orchestrator")))
	p.Check(os.Link(binary, p.Path("bin/orchestrator")))
	p.Edit("config/main.yaml", "  - name: kv\n", "  - name: rude\n    listen: unix://rude.sock\n  - name: kv\n")
	p.Configure(edits...)
	p.StartWith("KEPT=kept")
	return p, binary
}

// startZoo edits the configuration and starts the program.
func startZoo(p *Project, edits ...string) (_ *Project, binary, address string) {
	binary, err := ZooBuild()
	p.Check(err)
	p.Check(os.Remove(p.Path("bin/orchestrator")))
	p.Check(os.Link(binary, p.Path("bin/orchestrator")))
	p.Edit("config/main.yaml", "  - name: kv\n", "  - name: zoo\n  - name: kv\n")
	p.Configure(edits...)
	p.StartWith("ORCHESTRATOR_FAILPOINT=" + p.Path("failpoint"))
	return p, binary, p.Address()
}

// Setback makes the next candidate fail, in one of many ways.
func (p *Project) Setback(n int) {
	p.Write("failpoint.new", setbacks[n%len(setbacks)])
	p.Check(os.Rename(p.Path("failpoint.new"), p.Path("failpoint")))
}

// LargeProject starts a program with a module that holds this many MiB.
func LargeProject(p *Project, mib int) (binary, holds string) {
	p.AddModule("large")
	p.Write("config/main.yaml", "app:\n  hot_reload: false\n  listen: 127.0.0.1:0\n  probation: 100ms\nmodules:\n  - name: large\n")
	binary = p.Path("bin/orchestrator")
	p.Check(os.Remove(binary))
	p.Check(p.Compile("bin/orchestrator"))
	p.StartWith("ORCHESTRATOR_FAILPOINT=" + p.Path("failpoint"))
	s, err := p.Peek()
	p.Check(err)
	_, holds, err = Do(http.MethodGet, fmt.Sprintf("http://%s/large/?mib=%d", s.Listen[0], mib), "")
	p.Check(err)
	return binary, holds
}
