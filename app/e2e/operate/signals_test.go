//go:build unix

package operate_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// processesOf signals processes of a program.
var processesOf = map[string]func(p *e2etest.Project, s *client.Status, sig syscall.Signal){
	"the supervisor": func(p *e2etest.Project, s *client.Status, sig syscall.Signal) { syscall.Kill(s.SupervisorPID, sig) },
	"the worker":     func(p *e2etest.Project, s *client.Status, sig syscall.Signal) { syscall.Kill(s.PID, sig) },
	"all, the worker first": func(p *e2etest.Project, s *client.Status, sig syscall.Signal) {
		syscall.Kill(s.PID, sig)
		syscall.Kill(s.SupervisorPID, sig)
	},
	"all, the supervisor first": func(p *e2etest.Project, s *client.Status, sig syscall.Signal) {
		syscall.Kill(s.SupervisorPID, sig)
		syscall.Kill(s.PID, sig)
	},
	"all, several times": func(p *e2etest.Project, s *client.Status, sig syscall.Signal) {
		for range 3 {
			syscall.Kill(s.SupervisorPID, sig)
			syscall.Kill(s.PID, sig)
		}
	},
}

// TestAStopIsAStop, whichever processes are asked to: requests in flight are
// answered, modules shut down, and run ends with 0.
func TestAStopIsAStop(t *testing.T) {
	t.Parallel()
	for whose, send := range processesOf {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			t.Run(fmt.Sprint(whose, " ", sig), func(t *testing.T) {
				t.Parallel()
				p, _, address := e2etest.Zoo(t, "drain: 500ms", "drain: 5s")
				s, err := p.Peek()
				p.Check(err)
				answer := make(chan string, 1)
				go func() {
					status, body, err := e2etest.Do(http.MethodGet, "http://"+address+"/zoo/slow?ms=1000&mark=1", "")
					answer <- fmt.Sprint(status, " ", body, " ", err)
				}()
				p.Wait("the request to be handled", func() bool { _, err := os.Stat(p.Path("slow")); return err == nil })
				send(p, s, sig)
				if got := <-answer; got != "200 slept <nil>" {
					t.Errorf("the request in flight was answered %q", got)
				}
				if code := p.Ended(); code != 0 {
					t.Errorf("run ended with %d, want 0", code)
				}
				p.Wait("every process to end", func() bool { return len(p.Processes()) == 0 })
				if _, err := os.Stat(p.Path(fmt.Sprintf("prepared.%d.1", s.PID))); err == nil {
					t.Error("a module has not shut down")
				}
			})
		}
	}
}

// TestAWorkerWithoutASupervisorThatAnswers stops by itself.
func TestAWorkerWithoutASupervisorThatAnswers(t *testing.T) {
	t.Parallel()
	p, _, _ := e2etest.Zoo(t)
	s, err := p.Peek()
	p.Check(err)
	p.Check(syscall.Kill(s.SupervisorPID, syscall.SIGSTOP))
	defer syscall.Kill(s.SupervisorPID, syscall.SIGCONT)
	p.Check(syscall.Kill(s.PID, syscall.SIGTERM))
	p.Wait("the worker to stop", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.PID))
		return err != nil || strings.Contains(string(text), ") Z ")
	})
	if _, err := os.Stat(p.Path(fmt.Sprintf("prepared.%d.1", s.PID))); err == nil {
		t.Error("its modules have not shut down")
	}
}

// TestSIGHUPToEveryProcess reloads; no worker dies of it.
func TestSIGHUPToEveryProcess(t *testing.T) {
	t.Parallel()
	p, _, address := e2etest.Zoo(t)
	_, _, err := e2etest.Increment(address)
	p.Check(err)
	s, err := p.Peek()
	p.Check(err)
	processesOf["all, the worker first"](p, s, syscall.SIGHUP)
	p.Wait("generation 2", func() bool { s, err := p.Peek(); return err == nil && s.Generation == 2 && s.State == client.Serving })
	if n, err := e2etest.Count(address); err != nil || n != 1 {
		t.Errorf("the counter is %d, %v; want 1", n, err)
	}
	if s, err := p.Peek(); err != nil || s.LastCrash != nil {
		t.Errorf("status = %+v, %v; want no crash", s, err)
	}
}

// TestTostop: a terminal that stops background writers does not stop workers.
func TestTostop(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	tty := p.Terminal("sh", "-c", "stty tostop; exec bin/orchestrator run")
	defer tty.Close()
	p.Screen(tty)
	p.Wait("the program to serve", func() bool { s, err := p.Peek(); return err == nil && s.State == client.Serving })
	p.Reloads(b.New)
	p.Wait("a worker to have printed", func() bool { return strings.Contains(p.Printed(), "Module 'counter' reloaded successfully") })
	began := time.Now()
	tty.Write([]byte{3})
	if code := p.Ended(); code != 0 {
		t.Errorf("run ended with %d after %v, want 0", code, time.Since(began))
	}
}

// TestStopCommand stops the program and waits; nothing runs afterwards, so that the
// next run starts at once.
func TestStopCommand(t *testing.T) {
	t.Parallel()
	p, _, address := e2etest.Zoo(t, "drain: 500ms", "drain: 5s")
	answer := make(chan string, 1)
	go func() {
		status, body, err := e2etest.Do(http.MethodGet, "http://"+address+"/zoo/slow?ms=500&mark=1", "")
		answer <- fmt.Sprint(status, " ", body, " ", err)
	}()
	p.Wait("the request to be handled", func() bool { _, err := os.Stat(p.Path("slow")); return err == nil })
	out, errs, code := p.Command("stop")
	if code != 0 || out+errs != "" {
		t.Errorf("stop: exit %d, %q %q", code, out, errs)
	}
	if got := <-answer; got != "200 slept <nil>" {
		t.Errorf("the request in flight was answered %q", got)
	}
	if code := p.Ended(); code != 0 || len(p.Processes()) > 0 {
		t.Errorf("run ended with %d, left are %v", code, p.Processes())
	}
	if _, _, code := p.Command("stop"); code != 4 {
		t.Errorf("a second stop: exit %d, want 4", code)
	}
	p.StartWith()
	go e2etest.Do(http.MethodGet, "http://"+address+"/zoo/slow?ms=60000&mark=1", "")
	p.Check(os.Remove(p.Path("slow")))
	p.Wait("the request to be handled", func() bool { _, err := os.Stat(p.Path("slow")); return err == nil })
	if _, _, code := p.Command("stop", "--timeout=200ms"); code != 1 {
		t.Errorf("a stop that takes too long: exit %d, want 1", code)
	}
	if len(p.Processes()) > 0 {
		t.Errorf("left are %v", p.Processes())
	}
}

// TestAStopIsBounded: what the parts of a program may take together is not for ever.
func TestAStopIsBounded(t *testing.T) {
	t.Parallel()
	p, _, address := e2etest.Zoo(t, "drain: 500ms", "drain: 1h\n  stop_timeout: 500ms")
	go e2etest.Do(http.MethodGet, "http://"+address+"/zoo/slow?ms=60000&mark=1", "")
	p.Wait("the request to be handled", func() bool { _, err := os.Stat(p.Path("slow")); return err == nil })
	p.Check(p.Cmd.Process.Signal(e2etest.Sigterm))
	if code := p.Ended(); code != 1 || !strings.Contains(p.Printed(), "did not stop in time") {
		t.Errorf("run ended with %d, want 1 and that it was cut", code)
	}
}

// TestConfigCommand shows what is in force and where it comes from.
func TestConfigCommand(t *testing.T) {
	t.Parallel()
	p, _ := e2etest.Light(t)
	out, errs, code := p.Command("config")
	if code != 0 || !strings.Contains(out, "app.probation") || !strings.Contains(out, "300ms") || !strings.Contains(out, "config/main.yaml:6") {
		t.Errorf("config: exit %d, %s\n%s", code, out, errs)
	}
	if !strings.Contains(out, "modules[1].config.path") || !strings.Contains(out, "file with the keys and values") {
		t.Errorf("config does not have the settings of modules: %s", out)
	}
	if out, _, code := p.Command("config", "--json"); code != 0 || !strings.Contains(out, `"key":"app.drain","type":"duration`) {
		t.Errorf("config --json: exit %d, %s", code, out)
	}
}
