//go:build unix

// Package chaos_test stops, continues and kills the processes of a program at random
// instants, while it reloads and clients use it, and checks everything that the clients
// were answered.
package chaos_test

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestChaos runs for $CHAOS, such as 1h, or through a few rounds. $SEED repeats a run, as
// far as processes can repeat.
func TestChaos(t *testing.T) {
	t.Parallel()
	length, _ := time.ParseDuration(os.Getenv("CHAOS"))
	seed, _ := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("SEED=%d", seed)
	p, b := e2etest.Light(t)
	p.Configure("hook_timeout: 15s", "hook_timeout: 5s",
		"  - name: kv\n", "  - name: chat\n    listen: "+p.ReserveAddress()+"\n  - name: kv\n")
	p.StartWith()
	w := &world{t: t, p: p, b: b, random: rand.New(rand.NewPCG(seed, 0))}
	const few = 6
	for end := time.Now().Add(length); !t.Failed() && (w.rounds < few || time.Now().Before(end)); {
		w.round()
	}
	t.Logf("%d rounds, %d instants (%d stops, %d kills, of these %d of the supervisor), %d histories with %d operations, %d not decided; %d reloads succeeded, %d did not; the counter lost something %d times, and each was said; %d connections of the chat outlived their round",
		w.rounds, w.stops+w.kills, w.stops, w.kills, w.restarts, w.histories, w.operations, w.undecided, w.reloaded, w.refused, w.losses, w.talked)
}

// world is a program and what has happened to it.
type world struct {
	t      *testing.T
	p      *e2etest.Project
	b      e2etest.Pair
	random *rand.Rand

	rounds, stops, kills, restarts   int
	histories, operations, undecided int
	reloaded, refused, losses        int
	talked                           int

	ended bool // the supervisor was killed
}

// round disturbs the program a few times, under load and reloads, lets it recover, and
// judges.
func (w *world) round() {
	w.rounds++
	p := w.p
	s, err := p.Peek()
	p.Check(err)
	address, chat := s.Listen[0], ""
	for _, m := range s.Modules {
		if m.Name == "chat" {
			chat = m.Listen
		}
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	text, err := ask(c, "http://"+address+"/counter/", call{method: http.MethodGet})
	p.Check(err)
	number, err := strconv.Atoi(text)
	p.Check(err)
	start := map[string]string{}
	for _, key := range keys {
		start[key], err = ask(c, "http://"+address+"/kv/", call{method: http.MethodGet, key: key})
		p.Check(err)
	}
	talkers, err := join(chat, 3)
	defer talkers.leave()
	p.Check(err)
	printed := len(p.Printed())

	stop := make(chan struct{})
	counter, store := &history{}, &history{}
	use, talk := clients(address, counter, store, stop), talkers.talk(stop)
	reloads := make(chan struct{})
	go func() {
		defer close(reloads)
		w.reload(stop)
	}()
	killed := false
	for range 1 + w.random.IntN(3) {
		time.Sleep(time.Duration(w.random.IntN(300)) * time.Millisecond) // a random instant
		killed = w.disturb() || killed
	}
	w.recover()
	time.Sleep(100 * time.Millisecond) // pace: some requests after it
	close(stop)
	use()
	talk()
	<-reloads
	w.settle()
	said := p.Printed()[printed:]

	// What the program itself has said of losses, and nothing else, excuses one.
	losses := strings.Count(said, "and with it the state in memory") + strings.Count(said, "reverted to the moment of the takeover") + strings.Count(said, "state lost: counter")
	if s, now := s.SupervisorPID, w.supervisor(); s != now {
		losses++
	}
	w.losses += min(losses, 1)
	w.check("counter", porcupine.NondeterministicModel(counterModel(number, losses)), counter, said)
	w.check("store", storeModel(start), store, said)
	for _, err := range talkers.faults(!killed) {
		if err != nil {
			w.t.Errorf("round %d, killed %v: the chat: %v\nthe program said:\n%s", w.rounds, killed, err, said)
		}
	}
	for _, k := range talkers.list {
		k.mu.Lock()
		if !k.broken {
			w.talked++
		}
		k.mu.Unlock()
	}
}

func (w *world) supervisor() int {
	s, err := w.p.Peek()
	w.p.Check(err)
	return s.SupervisorPID
}

// reload reloads again and again, to one build and the other.
func (w *world) reload(stop <-chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		binary := w.b.Old
		if i%2 == 0 {
			binary = w.b.New
		}
		o, err := w.p.Upgrade(client.ReloadRequest{Binary: binary})
		if err == nil && o.Verdict == client.Reloaded {
			w.reloaded++
		} else {
			w.refused++
		}
		select {
		case <-stop:
			return
		case <-time.After(20 * time.Millisecond): // pace
		}
	}
}

// disturb does something to a process of the program, and reports whether it was killed.
func (w *world) disturb() (killed bool) {
	pids := w.p.Processes()
	if len(pids) == 0 {
		return false
	}
	pid := pids[w.random.IntN(len(pids))]
	for range 3 { // mostly the workers: without its supervisor a program ends
		if pid == w.p.Cmd.Process.Pid {
			pid = pids[w.random.IntN(len(pids))]
		}
	}
	if w.random.IntN(5) < 2 {
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			w.kills++
			w.ended = w.ended || pid == w.p.Cmd.Process.Pid
		}
		return true
	}
	if syscall.Kill(pid, syscall.SIGSTOP) != nil {
		return false
	}
	w.stops++
	time.Sleep(time.Duration(w.random.IntN(1200)) * time.Millisecond) // a random length
	syscall.Kill(pid, syscall.SIGCONT)
	return false
}

// recover waits until the program serves again, and starts it if it has ended.
func (w *world) recover() {
	p := w.p
	if w.ended {
		w.ended = false
		w.restarts++
		p.Ended()
		p.Wait("the workers of a dead supervisor to end", func() bool { return len(p.Processes()) == 0 })
		p.StartWith()
	}
	w.settle()
}

// settle waits until one generation serves and nothing is under way.
func (w *world) settle() {
	w.p.Wait("the program to serve", func() bool {
		s, err := w.p.Peek()
		return err == nil && s.State == client.Serving
	})
}

// check judges a history.
func (w *world) check(name string, model porcupine.NondeterministicModel, h *history, said string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w.histories++
	w.operations += len(h.ops)
	m := model.ToModel()
	result, info := porcupine.CheckOperationsVerbose(m, h.ops, 30*time.Second)
	switch result {
	case porcupine.Unknown:
		w.undecided++
	case porcupine.Illegal:
		file, err := os.CreateTemp("", "chaos-*.html")
		w.p.Check(errors.Join(err, porcupine.Visualize(m, info, file), file.Close()))
		w.t.Errorf("round %d: what the %s has answered cannot be: see %s\nthe program said:\n%s", w.rounds, name, file.Name(), said)
	}
}
