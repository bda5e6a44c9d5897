//go:build unix

package upgrade_test

import (
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"example.org/orchestrator/app/e2e/e2etest"
	"example.org/orchestrator/app/internal/wire"
)

// TestBuildsOfTheProtocol connects newer processes to an old supervisor.
func TestBuildsOfTheProtocol(t *testing.T) {
	t.Parallel()
	p, good, _ := e2etest.BinaryProject(t)
	wirePath := reflect.TypeFor[wire.Conn]().PkgPath()
	build := func(name, protocol, lowest string) string {
		out := p.Path("bin/" + name)
		cmd := exec.Command("go", "build", "-buildvcs=false", "-ldflags=-X "+wirePath+".protocol="+protocol+" -X "+wirePath+".minProtocol="+lowest, "-o", out, "./cmd/orchestrator")
		cmd.Dir, cmd.Env = p.Dir, e2etest.Environ
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, msg)
		}
		return out
	}
	compatible, foreign := build("compatible", "3", "2"), build("foreign", "3", "3")
	if o, code := p.Reload("--binary", compatible); code != 0 {
		t.Errorf("a worker of protocol 2 to 3: exit %d, %+v; want 0", code, o)
	}
	if o, code := p.Reload("--binary", foreign); code != 3 {
		t.Errorf("a worker of protocol 3 only: exit %d, %+v; want 3", code, o)
	}
	if !strings.Contains(p.Printed(), "this one 3 to 3: restart run") {
		t.Errorf("nothing says that the protocols differ:\n%s", p.Printed())
	}
	run := func(program string) (string, int) {
		cmd := exec.Command(program, "status")
		cmd.Dir, cmd.Env = p.Dir, e2etest.Environ
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	if out, code := run(compatible); code != 0 {
		t.Errorf("a client of protocol 2 to 3: exit %d, %s", code, out)
	}
	if out, code := run(foreign); code != 1 || !strings.Contains(out, "restart run") {
		t.Errorf("a client of protocol 3 only: exit %d, %q; want 1 and what to do", code, out)
	}
	if _, code := p.Reload("--binary", good); code != 0 {
		t.Error("the next good reload does not work")
	}
}
