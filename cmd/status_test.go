package cmd

import (
	"strings"
	"testing"

	"example.org/orchestrator/app/client"
)

const someStatus = `{"name":"main","version":"1","state":"degraded","generation":7,"pid":71,"supervisor_pid":70,"build":"4a73","hot_reload":true,` +
	`"listen":["127.0.0.1:8080"],"modules":[{"name":"hello","state":"running","generation":7},{"name":"chat","state":"failed","generation":1,"listen":"127.0.0.1:7070","error":"no"}],` +
	`"last_reload":{"outcome":"unchanged","serving":7,"total_ms":3},"last_crash":{"time":"2026-01-02T03:04:05Z","generation":5,"error":"exit status 2","serving":6,"lost":["counter"]}}`

func TestStatus(t *testing.T) {
	inFolder(t, "app:\n")
	answering(t, `{"type":"status","status":`+someStatus+`}`)
	stdout, stderr, code := commandLine(t, "status")
	const want = `main: degraded, generation 7 (process 71, build 4a73)
supervisor 70, hot reload on, listening on 127.0.0.1:8080
  hello        running, unchanged since generation 7
  chat         failed, unchanged since generation 1, listening on 127.0.0.1:7070: no
last crash: generation 5 at 2026-01-02 03:04:05: exit status 2; state lost: counter
last reload: unchanged: the build is the one that serves, generation 7, after 3 ms
`
	if code != client.ExitFailed || stderr != "" || stdout != want {
		t.Errorf("exit code %d, %q, %s; want\n%s", code, stderr, stdout, want)
	}
}

func TestStatus_json(t *testing.T) {
	inFolder(t, "app:\n")
	answering(t, `{"type":"status","status":`+someStatus+`}`)
	stdout, _, code := commandLine(t, "status", "--json")
	if code != client.ExitFailed || strings.Count(stdout, "\n") != 1 || !strings.Contains(stdout, `"state":"degraded"`) || !strings.Contains(stdout, `"last_reload":{"outcome":"unchanged"`) {
		t.Errorf("exit code %d, %s", code, stdout)
	}
}

func TestStatus_beforeAnythingServes(t *testing.T) {
	inFolder(t, "app:\n")
	answering(t, `{"type":"status"}`)
	if _, stderr, code := commandLine(t, "status"); code != client.ExitFailed || stderr != "the program gave no status\n" {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

// TestStatus_whileAProgramWaitsForItsFix says what there is, and no empty names.
func TestStatus_whileAProgramWaitsForItsFix(t *testing.T) {
	inFolder(t, "app:\n")
	answering(t, `{"type":"status","status":{"state":"starting","supervisor_pid":70,"hot_reload":true,"last_reload":{"outcome":"failed","stage":"start","error":"no database"}}}`)
	stdout, stderr, code := commandLine(t, "status")
	const want = "starting: nothing serves yet\nsupervisor 70, hot reload on\nlast reload: reload failed in start: no database\n"
	if code != 0 || stderr != "" || stdout != want {
		t.Errorf("exit code %d, %q, %s; want\n%s", code, stderr, stdout, want)
	}
}
