package cmd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"example.org/orchestrator/app"
	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/modules"
)

// These tests run the command line in this process, against a socket that answers
// with what the test wants instead of a program.

type plain struct{}

func (plain) Initialize(context.Context, *eventbus.Bus, modules.Config) error { return nil }
func (plain) Shutdown(context.Context) error                                  { return nil }

var compiledIn = modules.List{{Name: "plain", New: func() modules.Module { return plain{} }}}

// commandLine runs a command in the working directory.
func commandLine(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(compiledIn, args, &out, &errs)
	return out.String(), errs.String(), code
}

// inFolder makes a new folder with this configuration the working directory.
func inFolder(t *testing.T, config string) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cmd") // the name of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Chdir(dir)
	if err := os.MkdirAll("config", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("config/main.yaml", []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// answering starts a program that answers one client with these lines. asked
// receives the client's question.
func answering(t *testing.T, answers ...string) (asked <-chan map[string]any) {
	t.Helper()
	if err := os.MkdirAll(".orchestrator", 0o755); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", ".orchestrator/control.sock")
	if err != nil {
		t.Fatal(err)
	}
	questions := make(chan map[string]any, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		in := bufio.NewScanner(c)
		in.Scan()
		c.Write(append(in.Bytes(), '\n')) // its own hello: the versions agree
		in.Scan()
		var question map[string]any
		json.Unmarshal(in.Bytes(), &question)
		questions <- question
		for _, answer := range answers {
			c.Write([]byte(answer + "\n"))
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return questions
}

func TestUsage(t *testing.T) {
	inFolder(t, "app:\n")
	for _, tt := range []struct {
		args string
		want string
	}{
		{"teleport", `unknown command "teleport"`},
		{"reload --teleport", "unknown flag: --teleport"},
		{"reload now", `unknown command "now"`},
		{"reload --build --binary x", "--build and --binary exclude each other"},
		{"reload --timeout 0s", "--timeout must be at least 1ms"},
		{"reload --timeout soon", "invalid argument"},
		{"status --follow", "unknown flag: --follow"},
		{"run fast", `unknown command "fast"`},
	} {
		stdout, stderr, code := commandLine(t, strings.Fields(tt.args)...)
		if code != client.ExitUsage || stdout != "" || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s: exit code %d, %q, %q; want %d and %q", tt.args, code, stdout, stderr, client.ExitUsage, tt.want)
		}
	}
	if stdout, _, code := commandLine(t); code != 0 || !strings.Contains(stdout, "Upgrade the running program") || strings.Contains(stdout, "worker") {
		t.Errorf("help: exit code %d, %q", code, stdout)
	}
}

func TestClients_findNobody(t *testing.T) {
	dir := inFolder(t, "app: {run_dir: elsewhere}\n")
	for _, command := range []string{"reload", "status", "events"} {
		stdout, stderr, code := commandLine(t, command)
		want := "nothing is running: nobody answers at " + filepath.Join(dir, "elsewhere", "control.sock") + " (app.run_dir is relative to the working directory)\n"
		if resolved, err := filepath.EvalSymlinks(dir); err == nil {
			want = strings.Replace(want, dir, resolved, 1)
			stderr = strings.Replace(stderr, dir, resolved, 1)
		}
		if code != client.ExitNotRunning || stdout != "" || stderr != want {
			t.Errorf("%s: exit code %d, %q, %q; want %d and %q", command, code, stdout, stderr, client.ExitNotRunning, want)
		}
	}
}

func TestClients_whoseProgramEnds(t *testing.T) {
	for _, command := range []string{"reload", "status", "events"} {
		inFolder(t, "app:\n")
		answering(t)
		if _, stderr, code := commandLine(t, command); code != client.ExitFailed || !strings.Contains(stderr, "the program ended before it answered") {
			t.Errorf("%s: exit code %d, %q", command, code, stderr)
		}
	}
}

func TestClients_ofAProgramThatRefuses(t *testing.T) {
	inFolder(t, "app:\n")
	answering(t, `garbage`, `{"type":"error","error":"it may be older"}`)
	if _, stderr, code := commandLine(t, "status"); code != client.ExitFailed || stderr != "it may be older\n" {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

// brokenOutput is a pipe that nobody reads any more.
type brokenOutput struct{}

func (brokenOutput) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// TestClients_thatCannotPrint have failed; nothing is wrong with the command line.
func TestClients_thatCannotPrint(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		answer string
	}{
		{[]string{"status"}, `{"type":"status","status":{"name":"x"}}`},
		{[]string{"status", "--json"}, `{"type":"status","status":{"name":"x"}}`},
		{[]string{"reload"}, `{"type":"outcome","outcome":{"outcome":"reloaded"}}`},
		{[]string{"reload", "--json"}, `{"type":"outcome","outcome":{"outcome":"reloaded"}}`},
		{[]string{"events"}, `{"type":"event","event":{"seq":1}}`},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			inFolder(t, "app:\n")
			answering(t, tt.answer)
			var errs bytes.Buffer
			if code := run(compiledIn, tt.args, brokenOutput{}, &errs); code != client.ExitFailed || !strings.Contains(errs.String(), "broken pipe") {
				t.Errorf("exit code %d, %q; want %d and why", code, errs.String(), client.ExitFailed)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	stdout, _, code := commandLine(t, "version")
	if code != 0 || !strings.HasPrefix(stdout, "orchestrator "+app.Version+" (") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		config, want string
		code         int
	}{
		{"modules:\n  - name: plain\n", "config/main.yaml is valid\n", 0},
		{"modules:\n  - name: plian\n", "plain", client.ExitUsage},
		{"ap:\n", "config/main.yaml:1:1", client.ExitUsage},
	} {
		inFolder(t, tt.config)
		if stdout, stderr, code := commandLine(t, "check"); code != tt.code || !strings.Contains(stdout+stderr, tt.want) {
			t.Errorf("%q: exit code %d, %q, %q; want %d and %q", tt.config, code, stdout, stderr, tt.code, tt.want)
		}
	}
	inFolder(t, "app:\n")
	if _, stderr, code := commandLine(t, "check", "-c", "gone.yaml"); code != client.ExitUsage || !strings.Contains(stderr, "gone.yaml: there is no such file") {
		t.Errorf("a file that is gone: exit code %d, %q", code, stderr)
	}
}

func TestRun_refusesAWrongConfiguration(t *testing.T) {
	inFolder(t, "app: {hot_reload: false, drian: 1s}\n")
	if _, stderr, code := commandLine(t, "run"); code != client.ExitUsage || !strings.Contains(stderr, "drain") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}
