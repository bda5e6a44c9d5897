//go:build unix

package connections_test

import (
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// realClient is a third-party program that says how many of its requests failed.
type realClient struct {
	name string
	args []string
	done string // matches the number of answered requests
	bad  string // matches what it says of failures
}

// figures returns the sum of the numbers that pattern captures in text.
func figures(pattern, text string) (sum int) {
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		for _, digits := range m[1:] {
			n, _ := strconv.Atoi(digits)
			sum += n
		}
	}
	return sum
}

const h2loadDone, h2loadBad = `(\d+) succeeded`, `(\d+) failed, (\d+) errored, (\d+) timeout`

// run returns how many requests were answered. It fails the test if any was not.
func (c realClient) run(t *testing.T) (answered int) {
	out, err := exec.Command(c.name, c.args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", c.name, err, out)
	}
	if failed := figures(c.bad, string(out)); failed > 0 {
		t.Errorf("%s: %d failures:\n%s", c.name, failed, out)
	}
	if answered = figures(c.done, string(out)); answered < 100 {
		t.Errorf("%s: %d answers are too few to show anything:\n%s", c.name, answered, out)
	}
	return answered
}

// have skips the test if one of these programs is not installed.
func have(t *testing.T, names ...string) {
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed; .ci/run installs it", name)
		}
	}
}

// TestRealClients runs each of them while the program reloads all the time, with
// every fifth candidate failing.
func TestRealClients(t *testing.T) {
	t.Parallel()
	have(t, "ab", "wrk", "h2load", "curl")
	p, binary, address := e2etest.Zoo(t, "drain: 500ms", "drain: 20s", "max_pause: 250ms", "max_pause: 2s")
	url := "http://" + address + "/zoo/echo"
	clients := []realClient{
		{"ab", []string{"-k", "-q", "-c", "4", "-t", "4", "-n", "10000000", url}, `Complete requests: +(\d+)`, `(?:Failed|Non-2xx) \w+: +(\d+)`},
		{"wrk", []string{"-t", "1", "-c", "4", "-d", "4s", url}, `(\d+) requests in`, `(?:connect|read|write|timeout|responses:?) (\d+)`},
		{"h2load", []string{"--h1", "-c", "4", "-D", "4", url}, h2loadDone, h2loadBad},
		{"curl", []string{"-sS", "-o", "/dev/null", "-w", "answer 1 bad %{http_code}\n", url + "?[1-3000]"}, `answer (1)`, `bad (0|[13-9]\d\d)`},
	}
	answered := make([]int, len(clients))
	var works []func()
	for i, c := range clients {
		works = append(works, func() { answered[i] += c.run(t) })
	}
	reloads := reloadDuring(p, binary, works...)
	for i, c := range clients {
		t.Logf("%s: %d answers through %d reloads", c.name, answered[i], reloads)
	}
}

// TestRealClientsWithTLS reloads once under h2load, which never connects again:
// as long as the drain lasts, every request on its old connections is forwarded.
func TestRealClientsWithTLS(t *testing.T) {
	t.Parallel()
	have(t, "h2load")
	for _, protocol := range []string{"h2", "http/1.1"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			p, binary, address := e2etest.TLS(t, "drain: 500ms", "drain: 30s", "max_pause: 250ms", "max_pause: 2s")
			done := make(chan int, 1)
			var load sync.WaitGroup
			t.Cleanup(load.Wait) // it reports to this test
			load.Go(func() {
				args := []string{"-c", "8", "-D", "8", "--npn-list=" + protocol, address + "/zoo/echo"}
				done <- realClient{"h2load", args, h2loadDone, h2loadBad}.run(t)
			})
			var o *client.Outcome
			p.Wait("its connections to be forwarded", func() bool {
				s, err := p.Peek()
				p.Check(err)
				if s.LastReload == nil || s.LastReload.Forwarded == 0 {
					o, err = p.Upgrade(client.ReloadRequest{Binary: binary, TimeoutMS: 60_000})
					p.Check(err)
					return o.Forwarded == 8
				}
				return true
			})
			t.Logf("%s: %d answers, %d connections forwarded", protocol, <-done, o.Forwarded)
		})
	}
}
