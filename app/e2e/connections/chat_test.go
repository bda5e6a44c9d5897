//go:build unix

package connections_test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// talker is a client of the chat. It sends numbered lines, and checks that it gets
// the lines of all others, each once and in order.
type talker struct {
	number int
	conn   net.Conn
	in     *bufio.Reader
}

func (k *talker) say(text string) error {
	k.conn.SetWriteDeadline(time.Now().Add(e2etest.Patience))
	_, err := fmt.Fprintln(k.conn, text)
	return err
}

func (k *talker) hear() (string, error) {
	k.conn.SetReadDeadline(time.Now().Add(e2etest.Patience))
	line, err := k.in.ReadString('\n')
	return strings.TrimSpace(line), err
}

// talk sends a line at each tick until stop, and then the number of lines.
func (k *talker) talk(stop <-chan struct{}) error {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return k.say(fmt.Sprint(k.number, " end ", n))
		case <-time.After(200 * time.Millisecond): // pace: a line costs a write per client
		}
		if err := k.say(fmt.Sprint(k.number, " ", n)); err != nil {
			return err
		}
	}
}

// listen reads the lines of all others, and returns how many there were.
func (k *talker) listen(clients int) (lines int, err error) {
	next := make([]int, clients)
	for ended := 0; ended < clients-1; {
		line, err := k.hear()
		if err != nil {
			return lines, fmt.Errorf("client %d, after %d lines: %w", k.number, lines, err)
		}
		var from, n int
		switch {
		case line == "sync":
		case strings.Contains(line, " end "):
			if _, err := fmt.Sscanf(line, "%d end %d", &from, &n); err != nil || n != next[from] {
				return lines, fmt.Errorf("client %d got %d lines before %q, %w", k.number, next[from], line, err)
			}
			ended++
		default:
			if _, err := fmt.Sscan(line, &from, &n); err != nil || from == k.number || n != next[from] {
				return lines, fmt.Errorf("client %d got %q, want line %d, %w", k.number, line, next[from], err)
			}
			next[from]++
			lines++
		}
	}
	return lines, nil
}

// joined returns n clients that all hear each other.
func joined(p *e2etest.Project, address string, n int) []*talker {
	all := make([]*talker, n)
	for i := range all {
		c, err := net.Dial("tcp", address)
		p.Check(err)
		all[i] = &talker{i, c, bufio.NewReader(c)}
	}
	hears := func(who *talker, from *talker) {
		heard := make(chan error, 1)
		go func() {
			_, err := who.hear()
			heard <- err
		}()
		for {
			select {
			case err := <-heard:
				p.Check(err)
				return
			case <-time.After(10 * time.Millisecond):
				p.Check(from.say("sync"))
			}
		}
	}
	for _, who := range all[1:] {
		hears(who, all[0])
	}
	hears(all[0], all[1])
	return all
}

// TestChatMissesNoLine: a hundred clients talk through fifty reloads, in one case
// with every second reload failing. Each gets every line of every other client
// once, in order, on its first connection.
func TestChatMissesNoLine(t *testing.T) {
	t.Parallel()
	for _, bad := range []bool{false, true} {
		t.Run(fmt.Sprint("setbacks ", bad), func(t *testing.T) {
			t.Parallel()
			const clients, reloads = 100, 50
			p, b := e2etest.Light(t)
			place := p.Path("failpoint")
			p.Edit("config/main.yaml", "  - name: kv\n", "  - name: chat\n    listen: tcp://127.0.0.1:0\n  - name: kv\n")
			p.Configure("drain: 500ms", "drain: 20s", "max_pause: 250ms", "max_pause: 2s") // the machine is shared
			p.StartWith("ORCHESTRATOR_FAILPOINT=" + place)
			s, err := p.Peek()
			p.Check(err)
			address := ""
			for _, m := range s.Modules {
				address += m.Listen
			}
			talkers := joined(p, address, clients)
			var all sync.WaitGroup
			stop := make(chan struct{})
			errs := make(chan error, 2*clients)
			heard := make([]int, clients)
			for i, k := range talkers {
				defer k.conn.Close()
				all.Go(func() { errs <- k.talk(stop) })
				all.Go(func() {
					n, err := k.listen(clients)
					heard[i] = n
					errs <- err
				})
			}
			for i := range reloads {
				want := client.Reloaded
				if bad && i%2 == 1 {
					want = client.Rejected
					p.Setback(i / 2)
				}
				o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old, TimeoutMS: 60_000})
				if err != nil || o.Verdict != want || want == client.Reloaded && o.Moved < clients {
					t.Errorf("reload %d = %+v, %v; want %s, and %d connections moved", i, o, err, want, clients)
					break
				}
			}
			close(stop)
			all.Wait()
			total := 0
			for i := range talkers {
				total += heard[i]
				for range 2 {
					if err := <-errs; err != nil {
						t.Error(err)
					}
				}
			}
			if total < clients*clients {
				t.Errorf("%d lines were heard, which is too few to show anything", total)
			}
			t.Logf("%d lines heard by %d clients through %d reloads", total, clients, reloads)
		})
	}
}
