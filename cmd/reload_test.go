package cmd

import (
	"reflect"
	"testing"

	"example.org/orchestrator/app/client"
)

// TestReload_exitCodes has one outcome of each kind, with what is printed and
// the exit code.
func TestReload_exitCodes(t *testing.T) {
	for _, tt := range []struct {
		name, outcome, want string
		code                int
	}{
		{"reloaded", `{"outcome":"reloaded","generation":2,"serving":2,"modules":["hello"],"stages_ms":{"build":300,"pause":1.5,"odd":7},"total_ms":312.5,"held":3,"moved":2,"cancelled":1,"notes":["so it is"]}`,
			"reloaded: hello: generation 2 serves after 312.5 ms (build 300, pause 1.5); connections: 3 held, 2 moved, 0 forwarded; 1 cancelled\nnote: so it is\n", 0},
		{"nothing changed in the modules", `{"outcome":"reloaded","generation":2,"serving":2,"total_ms":10}`,
			"reloaded: no module changed: generation 2 serves after 10 ms\n", 0},
		{"unchanged", `{"outcome":"unchanged","serving":1,"total_ms":99}`,
			"unchanged: the build is the one that serves, generation 1, after 99 ms\n", 0},
		{"a module is down", `{"outcome":"failed","stage":"initialize","failed_module":"hello","serving":1,"error":"no database"}`,
			"reload failed in initialize of module hello: no database\n", 1},
		{"a state is lost", `{"outcome":"failed","stage":"shutdown","failed_module":"counter","serving":1,"error":"late","lost":["counter"]}`,
			"reload failed in shutdown of module counter: late; state lost: counter\n", 1},
		{"rejected", `{"outcome":"rejected","stage":"prepare","failed_module":"hello","generation":2,"serving":1,"error":"no database","total_ms":20}`,
			"reload rejected in prepare of module hello: no database; generation 1 still serves, after 20 ms\n", 3},
		{"rejected while nothing serves", `{"outcome":"rejected","error":"the reload timed out"}`,
			"reload rejected: the reload timed out; nothing serves, after 0 ms\n", 3},
		{"superseded", `{"outcome":"superseded","serving":1,"error":"a newer reload was asked for"}`,
			"superseded: a newer reload was asked for; generation 1 still serves\n", 3},
		{"rolled back", `{"outcome":"rolled_back","stage":"probation","generation":2,"serving":1,"error":"it exited","reverted":["counter"]}`,
			"rolled back: generation 2 failed after it took over, in probation: it exited; generation 1 serves again; reverted to the moment of the takeover: counter\n", 3},
		{"rolled back with a loss", `{"outcome":"rolled_back","stage":"commit","generation":2,"serving":1,"error":"it exited","lost":["counter"]}`,
			"rolled back: generation 2 failed after it took over, in commit: it exited; generation 1 serves again; state lost: counter\n", 3},
		{"handed back", `{"outcome":"rolled_back","stage":"healthy","failed_module":"hello","generation":2,"serving":1,"error":"a headache"}`,
			"rolled back: generation 2 failed after it took over, in healthy of module hello: a headache; generation 1 serves again; nothing was lost\n", 3},
		{"the build failed", `{"outcome":"failed","stage":"build","serving":1,"error":"hello.go:1:1: what?","total_ms":50,"stages_ms":{"build":50}}`,
			"hello.go:1:1: what?\nbuild failed after 50 ms (build 50); generation 1 still serves\n", 5},
		{"what no build knows yet", `{"outcome":"teleported","serving":1,"error":"?"}`,
			"reload rejected: ?; generation 1 still serves, after 0 ms\n", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inFolder(t, "app:\n")
			answering(t, `{"type":"event"}`, `{"type":"outcome","outcome":`+tt.outcome+`}`)
			stdout, stderr, code := commandLine(t, "reload")
			if code != tt.code || stdout != tt.want || stderr != "" {
				t.Errorf("exit code %d, %q, %q; want %d, %q", code, stdout, stderr, tt.code, tt.want)
			}
		})
	}
}

func TestReload_json(t *testing.T) {
	inFolder(t, "app:\n")
	answering(t, `{"type":"outcome","outcome":{"outcome":"rejected","generation":2,"serving":1,"error":"no"}}`)
	stdout, _, code := commandLine(t, "reload", "--json")
	const want = `{"outcome":"rejected","generation":2,"serving":1,"trigger":null,"modules":null,"stages_ms":null,"total_ms":0,"stage":"","failed_module":"","error":"no","probation":"","held":0,"moved":0,"forwarded":0,"cut":0,"cancelled":0}` + "\n"
	if code != 3 || stdout != want {
		t.Errorf("exit code %d, %q; want 3, %q", code, stdout, want)
	}
}

func TestReload_withoutAnOutcome(t *testing.T) {
	inFolder(t, "app:\n")
	answering(t, `{"type":"outcome"}`)
	if _, stderr, code := commandLine(t, "reload"); code != client.ExitFailed || stderr != "the program gave no outcome: whether the new code is live is not known; see status\n" {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

func TestReload_asksForWhatItsFlagsSay(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want map[string]any
	}{
		{nil, map[string]any{}},
		{[]string{"--build", "--force", "--timeout", "90s"}, map[string]any{"build": true, "force": true, "timeout_ms": 90000.0}},
		{[]string{"--binary", "/opt/program", "--wait-probation"}, map[string]any{"binary": "/opt/program", "wait_probation": true}},
		{[]string{"--drop-state"}, map[string]any{"drop_state": []any{"*"}}},
		{[]string{"--drop-state=counter"}, map[string]any{"drop_state": []any{"counter"}}},
	} {
		inFolder(t, "app:\n")
		asked := answering(t, `{"type":"outcome","outcome":{"outcome":"reloaded"}}`)
		if _, stderr, code := commandLine(t, append([]string{"reload"}, tt.args...)...); code != 0 {
			t.Errorf("%q: exit code %d, %s", tt.args, code, stderr)
		}
		if m := <-asked; m["type"] != "reload" || !reflect.DeepEqual(m["reload"], tt.want) {
			t.Errorf("%q asks for %v, want %v", tt.args, m, tt.want)
		}
	}
}
