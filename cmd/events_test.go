package cmd

import (
	"reflect"
	"strings"
	"testing"

	"example.org/orchestrator/app/client"
)

func TestEvents(t *testing.T) {
	answers := []string{
		`{"type":"event","event":{"seq":1,"time":"2026-01-02T03:04:05.006Z","generation":1,"topic":"a","data":{"x":1}}}`,
		`{"type":"event","event":{"seq":2,"time":"2026-01-02T03:04:06Z","generation":2,"topic":"b","data":null}}`,
		`{"type":"end"}`,
	}
	for _, tt := range []struct {
		args   []string
		follow map[string]any
		want   string
	}{
		{nil, map[string]any{}, "     1 03:04:05.006 generation 1 a {\"x\":1}\n     2 03:04:06.000 generation 2 b null\n"},
		{[]string{"--follow", "--json"}, map[string]any{"follow": true}, `{"seq":1,"time":"2026-01-02T03:04:05.006Z","generation":1,"topic":"a","data":{"x":1}}` + "\n" + `{"seq":2,"time":"2026-01-02T03:04:06Z","generation":2,"topic":"b","data":null}` + "\n"},
	} {
		inFolder(t, "app:\n")
		asked := answering(t, answers...)
		stdout, stderr, code := commandLine(t, append([]string{"events"}, tt.args...)...)
		if code != 0 || stdout != tt.want || stderr != "" {
			t.Errorf("%q: exit code %d, %q, %q; want %q", tt.args, code, stdout, stderr, tt.want)
		}
		if m := <-asked; m["type"] != "events" || !reflect.DeepEqual(m["events"], tt.follow) {
			t.Errorf("%q asks for %v", tt.args, m)
		}
	}
}

// TestEvents_endWithTheProgram checks that this is a failure: more events were
// asked for.
func TestEvents_endWithTheProgram(t *testing.T) {
	inFolder(t, "app:\n")
	answering(t, `{"type":"event","event":{"seq":1,"topic":"a","data":null}}`)
	if stdout, _, code := commandLine(t, "events", "--follow"); code != client.ExitFailed || !strings.Contains(stdout, " a null\n") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
}
