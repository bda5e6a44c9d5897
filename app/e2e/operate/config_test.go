//go:build unix

package operate_test

import (
	"os/exec"
	"strings"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestNoOtherProgramIsReloaded: a command with -c does something to the program of that
// file or to none.
func TestNoOtherProgramIsReloaded(t *testing.T) {
	t.Parallel()
	p, _, before := e2etest.Started(t)
	p.Write("broken.yaml", "app: [\n")
	p.Write("other.yaml", "modules: []\n")
	p.Check(exec.Command("ln", "-s", "main.yaml", p.Path("config/link.yaml")).Run())
	for _, command := range []string{"reload", "stop"} {
		for file, why := range map[string]string{
			"typo.yaml":   "there is no such file",
			"broken.yaml": "broken.yaml:1",
			"config":      "is a folder",
			"":            "there is no such file",
			"other.yaml":  "was started with " + before.Config,
		} {
			_, text, code := p.Command(command, "-c", file)
			if code != client.ExitUsage || !strings.Contains(text, why) || !strings.Contains(text, "nothing was done") {
				t.Errorf("%s -c %q ends with %d and %q; want %d and %q", command, file, code, text, client.ExitUsage, why)
			}
		}
	}
	if now, err := p.Peek(); err != nil || now.PID != before.PID {
		t.Errorf("status = %+v, %v; want the first generation", now, err)
	}
	for _, file := range []string{"config/main.yaml", "config/link.yaml", p.Path("config/main.yaml")} {
		if out, text, code := p.Command("reload", "-c", file); code != client.ExitOK {
			t.Errorf("reload -c %s ends with %d: %s%s", file, code, out, text)
		}
	}
}

// TestAConfigurationFromAPipe would be empty for every process but the first.
func TestAConfigurationFromAPipe(t *testing.T) {
	t.Parallel()
	p, _ := e2etest.Light(t)
	cmd := exec.Command("bin/orchestrator", "run", "-c", "/dev/stdin")
	cmd.Dir, cmd.Stdin = p.Dir, strings.NewReader(p.Read("config/main.yaml"))
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != client.ExitUsage || !strings.Contains(string(out), "write the configuration to a file") {
		t.Errorf("run -c /dev/stdin = %v, %s", err, out)
	}
	cmd = exec.Command("bin/orchestrator", "check", "-c", "/dev/stdin")
	cmd.Dir, cmd.Stdin = p.Dir, strings.NewReader(p.Read("config/main.yaml"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("check reads it once, and that works: %v, %s", err, out)
	}
}
