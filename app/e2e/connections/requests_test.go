//go:build unix

package connections_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// enough is how many reloads clients go through for a meaningful result.
const enough = 10

// reloadDuring reloads to binary all the time, every fifth time to a candidate
// that fails. Meanwhile it runs works, again and again until there were enough
// reloads.
func reloadDuring(p *e2etest.Project, binary string, works ...func()) (reloads int) {
	var count atomic.Int64
	var all sync.WaitGroup
	end := time.Now().Add(e2etest.Patience)
	for _, work := range works {
		all.Go(func() {
			for again := true; again; again = count.Load() < enough && time.Now().Before(end) {
				work()
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	defer all.Wait()
	defer count.Store(enough) // also if a reload fails
	for ; ; reloads++ {
		count.Store(int64(reloads))
		select {
		case <-done:
			if reloads < enough {
				p.T.Fatalf("there were %d reloads only", reloads)
			}
			return reloads
		default:
		}
		want := client.Reloaded
		if reloads%5 == 4 {
			want = client.Rejected
			p.Setback(reloads / 5)
		}
		o, err := p.Upgrade(client.ReloadRequest{Binary: binary, TimeoutMS: 60_000})
		if err != nil || o.Verdict != want {
			p.T.Fatalf("reload %d = %+v, %v; want %s", reloads, o, err, want)
		}
	}
}

// exchange is what a client sends at once, and the answers to it.
type exchange struct{ name, method, text, want string }

var exchanges = []exchange{
	{"get", "GET", "GET /zoo/echo HTTP/1.1\r\nHost: x\r\n\r\n", "200 GET  <nil>"},
	{"head", "HEAD", "HEAD /zoo/echo HTTP/1.1\r\nHost: x\r\n\r\n", "200 "},
	{"length", "POST", "POST /zoo/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", "200 POST hello <nil>"},
	{"chunked", "POST", "POST /zoo/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "200 POST abcde <nil>"},
	{"expect", "POST", "POST /zoo/echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi", "100 ,200 POST hi <nil>"},
	{"pipelined", "POST", "POST /zoo/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\noneGET /zoo/echo HTTP/1.1\r\nHost: x\r\n\r\n", "200 POST one <nil>,200 GET  <nil>"},
	{"pipelined after chunks", "POST", "POST /zoo/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\nGET /zoo/echo HTTP/1.1\r\nHost: x\r\n\r\n", "200 POST one <nil>,200 GET  <nil>"},
}

// answers reads as many answers as are wanted.
func (e exchange) answers(in *bufio.Reader) (string, error) {
	var got []string
	for range strings.Count(e.want, ",") + 1 {
		resp, err := http.ReadResponse(in, &http.Request{Method: e.method})
		if err != nil {
			return strings.Join(got, ","), err
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return strings.Join(got, ","), err
		}
		got = append(got, fmt.Sprint(resp.StatusCode, " ", strings.TrimSpace(string(body))))
	}
	return strings.Join(got, ","), nil
}

// TestNoByteOfARequestIsLost: while the program reloads all the time, clients
// send requests of all kinds in two pieces, split at every byte, and byte by
// byte. Each client keeps its connection.
func TestNoByteOfARequestIsLost(t *testing.T) {
	t.Parallel()
	p, binary, address := e2etest.Zoo(t, "drain: 500ms", "drain: 20s", "max_pause: 250ms", "max_pause: 2s")
	var clients []func()
	for _, e := range exchanges {
		for _, single := range []bool{false, true} {
			clients = append(clients, func() {
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				in := bufio.NewReader(c)
				for cut := range len(e.text) + 1 {
					c.SetDeadline(time.Now().Add(e2etest.Patience))
					pieces := []string{e.text[:cut], e.text[cut:]}
					if single {
						pieces = strings.Split(e.text, "")
						if cut > 6 {
							break
						}
					}
					for _, piece := range pieces {
						io.WriteString(c, piece)
						<-time.After(time.Millisecond) // the client's pace
					}
					if got, err := e.answers(in); err != nil || got != e.want {
						t.Errorf("%s, in %d pieces, cut after %d bytes: %q, %v; want %q", e.name, len(pieces), cut, got, err, e.want)
						return
					}
				}
			})
		}
	}
	leaving, left := make(chan struct{}), make(chan struct{})
	go func() { // clients that leave in the middle of a request
		defer close(left)
		for n := 0; ; n++ {
			select {
			case <-leaving:
				return
			default:
			}
			if c, err := net.Dial("tcp", address); err == nil {
				io.WriteString(c, exchanges[3].text[:n%len(exchanges[3].text)])
				c.Close()
			}
			<-time.After(time.Millisecond)
		}
	}()
	reloads := reloadDuring(p, binary, clients...)
	close(leaving)
	<-left
	t.Logf("%d reloads", reloads)
	p.Reloads(binary)
}

// TestHoldsFindTheirMoment: eight clients use a handler that takes 3 ms, eight one
// that takes 300 ms, which is longer than the first hold, and eight one that
// calls another module. No reload is refused, no request fails.
func TestHoldsFindTheirMoment(t *testing.T) {
	t.Parallel()
	p, binary, address := e2etest.Zoo(t, "drain: 500ms", "drain: 20s")
	var clients sync.WaitGroup
	stop := make(chan struct{})
	var answered [3]atomic.Int64
	for i, path := range []string{"/zoo/slow?ms=3", "/zoo/slow?ms=300", "/zoo/call"} {
		for range 8 {
			clients.Go(func() {
				c := &http.Client{Transport: &http.Transport{}}
				defer c.CloseIdleConnections()
				for {
					select {
					case <-stop:
						return
					default:
					}
					resp, err := c.Post("http://"+address+path, "", strings.NewReader("x"))
					if err != nil {
						t.Error(err)
						return
					}
					body, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || resp.StatusCode != http.StatusOK {
						t.Errorf("%s: %s %q, %v", path, resp.Status, body, err)
						return
					}
					answered[i].Add(1)
					<-time.After(time.Millisecond) // pace
				}
			})
		}
	}
	for range 8 {
		p.Reloads(binary)
	}
	close(stop)
	clients.Wait()
	if n, err := e2etest.Count(address); err != nil || n != answered[2].Load() {
		t.Errorf("the counter is %d, %v; answered %d", n, err, answered[2].Load())
	}
	t.Logf("answered: %d at 3 ms, %d at 300 ms, %d calls", answered[0].Load(), answered[1].Load(), answered[2].Load())
}

// TestALongRequestIsNamedOrCancelled: after app.drain the reload is refused with
// the name of the request, or with --force cancels the request with its cause.
func TestALongRequestIsNamedOrCancelled(t *testing.T) {
	t.Parallel()
	p, binary, address := e2etest.Zoo(t)
	answer := make(chan string, 1)
	go func() {
		status, body, err := e2etest.Do(http.MethodGet, "http://"+address+"/zoo/slow?ms=60000", "")
		answer <- fmt.Sprint(status, " ", body, " ", err)
	}()
	before, err := p.Peek()
	p.Check(err)
	var o *client.Outcome
	p.Wait("the request to be in the way", func() bool {
		o, err = p.Upgrade(client.ReloadRequest{Binary: binary})
		return err != nil || o.Verdict == client.Rejected
	})
	p.Check(err)
	if !strings.Contains(o.Error, "GET /zoo/slow") || !strings.Contains(o.Error, "--force") || o.Cancelled != 0 {
		t.Errorf("reload = %+v, want the busy route and what to do", *o)
	}
	if s, err := p.Peek(); err != nil || s.State != "serving" || s.Generation < before.Generation {
		t.Errorf("after the refusal: %+v, %v", s, err)
	}
	o, err = p.Upgrade(client.ReloadRequest{Binary: binary, Force: true})
	if err != nil || o.Verdict != client.Reloaded || o.Cancelled != 1 {
		t.Errorf("reload --force = %+v, %v; want reloaded, 1 cancelled", o, err)
	}
	if got := <-answer; got != "503 modules: the request was cancelled by a reload <nil>" {
		t.Errorf("the cancelled request was answered %q", got)
	}
}

// TestAReloadThatIsCalledOffCancelsNothing: its timeout is over before app.drain,
// after which it would have cancelled the request.
func TestAReloadThatIsCalledOffCancelsNothing(t *testing.T) {
	t.Parallel()
	p, binary, address := e2etest.Zoo(t)
	p.Edit("config/main.yaml", "drain: 500ms", "drain: 1500ms")
	answer := make(chan string, 1)
	go func() {
		status, body, err := e2etest.Do(http.MethodGet, "http://"+address+"/zoo/slow?ms=5000", "")
		answer <- fmt.Sprint(status, " ", body, " ", err)
	}()
	var o *client.Outcome
	var err error
	p.Wait("the request to be in the way", func() bool {
		o, err = p.Upgrade(client.ReloadRequest{Binary: binary})
		return err != nil || o.Verdict == client.Rejected
	})
	p.Check(err)
	o, err = p.Upgrade(client.ReloadRequest{Binary: binary, Force: true, TimeoutMS: 800})
	if err != nil || o.Verdict != client.Rejected || o.Cancelled != 0 {
		t.Errorf("a reload that timed out = %+v, %v; want rejected, nothing cancelled", o, err)
	}
	if got := <-answer; !strings.HasPrefix(got, "200 ") {
		t.Errorf("the request was answered %q", got)
	}
}

// TestStreamsThatCannotMoveEndWithACause: an event stream, and a connection that
// was hijacked by net/http, do not delay a reload. A candidate that fails before
// it is prepared leaves them alone.
func TestStreamsThatCannotMoveEndWithACause(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct{ path, hello string }{{"/zoo/events", "data: begin"}, {"/zoo/raw", "HTTP/1.1 101"}} {
		t.Run(kind.path, func(t *testing.T) {
			t.Parallel()
			p, binary, address := e2etest.Zoo(t, "drain: 500ms", "drain: 20s", "max_pause: 250ms", "max_pause: 10s")
			c, err := net.Dial("tcp", address)
			p.Check(err)
			defer c.Close()
			c.SetDeadline(time.Now().Add(e2etest.Patience))
			in := bufio.NewReader(c)
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", kind.path)
			until := func(want string) {
				t.Helper()
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						t.Fatalf("the stream ended before %q: %v", want, err)
					}
					if strings.Contains(line, want) {
						return
					}
				}
			}
			until(kind.hello)
			p.Write("failpoint", "candidate.before.prepared exit1")
			if o, err := p.Upgrade(client.ReloadRequest{Binary: binary}); err != nil || o.Verdict != client.Rejected || o.Cancelled != 0 {
				t.Fatalf("reload = %+v, %v; want rejected, nothing cancelled", o, err)
			}
			if kind.path == "/zoo/raw" {
				fmt.Fprintln(c, "still there")
				until("still there")
			}
			o, err := p.Upgrade(client.ReloadRequest{Binary: binary})
			if err != nil || o.Verdict != client.Reloaded || o.Cancelled != 1 || o.StagesMS["hold"] > 2000 { // waiting for it takes longer
				t.Errorf("reload = %+v, %v; want reloaded at once, 1 cancelled", o, err)
			}
			until("cancelled by a reload")
		})
	}
}

// TestFiveThousandIdleConnections keeps them through a reload.
func TestFiveThousandIdleConnections(t *testing.T) {
	t.Parallel()
	const n = 5000
	p, b, before := e2etest.Started(t, "drain: 500ms", "drain: 20s", "max_pause: 250ms", "max_pause: 2s")
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp", before.Listen[0])
		p.Check(err)
		defer c.Close()
		conns[i] = c
	}
	each := func() {
		t.Helper()
		for i, c := range conns {
			if err := e2etest.PostOn(c, bufio.NewReader(c)); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
	}
	each()
	o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old, TimeoutMS: 60_000})
	if err != nil || o.Verdict != client.Reloaded || o.Moved != n {
		t.Fatalf("reload = %+v, %v; want reloaded, %d moved", o, err, n)
	}
	each()
	if have, err := e2etest.Count(before.Listen[0]); err != nil || have != 3+2*n {
		t.Errorf("the counter is %d, %v; want %d", have, err, 3+2*n)
	}
	t.Logf("%d connections moved, pause %.1f ms, in all %.1f ms", o.Moved, o.StagesMS["pause"], o.TotalMS)
}

// TestConnectionsThatDoNotFitStay: the candidate may open few files. Connections
// that do not fit are served through the old generation, and their answers ask
// the clients to connect again.
func TestConnectionsThatDoNotFitStay(t *testing.T) {
	t.Parallel()
	const n, room = 100, 28
	p, b := e2etest.Light(t)
	p.Edit("config/main.yaml", "drain: 500ms", "drain: 10s")
	p.StartWith("ORCHESTRATOR_FAILPOINT=" + p.Path("failpoint"))
	address := p.Address()
	type idleClient struct {
		net.Conn
		in *bufio.Reader
	}
	var clients []idleClient
	for range n {
		c, err := net.Dial("tcp", address)
		p.Check(err)
		defer c.Close()
		clients = append(clients, idleClient{c, bufio.NewReader(c)})
		p.Check(e2etest.PostOn(c, clients[len(clients)-1].in))
	}
	for _, c := range clients[:50] { // in the middle of a request
		_, err := io.WriteString(c, "POST /counter/ HTTP/1.1\r\nHo")
		p.Check(err)
	}
	p.Write("failpoint", fmt.Sprintf("candidate.at.prepared files=%d", room+32))
	o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old})
	p.Check(err)
	if o.Verdict != client.Reloaded || o.Held != n || o.Moved+o.Forwarded != n || o.Moved < room-2 || o.Moved > room || o.Cancelled != 0 {
		t.Errorf("reload = %+v, want %d held, about %d moved, the others forwarded", *o, n, room)
	}
	if !strings.Contains(p.Printed(), "the new one cannot open enough files") {
		t.Error("the log does not say so")
	}
	closed := 0
	for i, c := range clients {
		rest := "POST /counter/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
		if i < 50 {
			rest = rest[len("POST /counter/ HTTP/1.1\r\nHo"):]
		}
		_, err := io.WriteString(c, rest)
		p.Check(err)
		c.SetDeadline(time.Now().Add(e2etest.Patience))
		resp, err := http.ReadResponse(c.in, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("connection %d: %v, %v", i, resp, err)
		}
		if resp.Close {
			closed++
		}
		io.Copy(io.Discard, resp.Body)
	}
	if closed != o.Forwarded {
		t.Errorf("%d clients were told to connect anew, want %d", closed, o.Forwarded)
	}
	p.Wait("the old generation to go", func() bool { return len(p.Processes()) == 2 })
	if have, err := e2etest.Count(address); err != nil || have != 2*n {
		t.Errorf("the counter is %d, %v; want %d", have, err, 2*n)
	}
	p.Reloads(b.Old)
}

// TestDescriptorsStayFlat reloads a hundred times with 512 busy connections.
func TestDescriptorsStayFlat(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("counts in /proc")
	}
	p, b, _ := e2etest.Started(t, "drain: 500ms", "drain: 20s", "max_pause: 250ms", "max_pause: 2s")
	clients := e2etest.KeepAlive(p.Address(), 512)
	p.Wait("every client to be answered", func() bool { return clients.Reached.Load() == 512 })
	files := func() int {
		s, err := p.Peek()
		p.Check(err)
		return e2etest.Open(s.PID) + e2etest.Open(s.SupervisorPID)
	}
	p.Reloads(b.Old)
	var first int
	p.Wait("the first generation to go", func() bool { first = files(); return len(p.Processes()) == 2 })
	reloads := 10
	if os.Getenv("SOAK") != "" {
		reloads = 100
	}
	for range reloads {
		if o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old, TimeoutMS: 60_000}); err != nil || o.Verdict != client.Reloaded {
			t.Fatalf("reload = %+v, %v", o, err)
		}
	}
	p.Wait("the descriptors to be as before", func() bool { return files() <= first && len(p.Processes()) == 2 })
	clients.End()
	if clients.Failed.Load()+clients.Redialled.Load() != 0 {
		t.Errorf("%d requests failed, %d connections were dialled again: %v", clients.Failed.Load(), clients.Redialled.Load(), clients.Why.Load())
	}
}

// TestUnixSockets: HTTP and the chat are served on them, both kinds of
// connections stay through reloads and rollbacks, a file that a crash has left is
// replaced, and none is left behind.
func TestUnixSockets(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.Edit("config/main.yaml", "listen: 127", "listen: unix://web.sock #")
	p.Edit("config/main.yaml", "  - name: kv\n", "  - name: chat\n    listen: unix://chat.sock\n  - name: kv\n")
	p.StartWith("ORCHESTRATOR_FAILPOINT=" + p.Path("failpoint"))
	dial := func(name string) net.Conn {
		c, err := net.Dial("unix", p.Path(name))
		p.Check(err)
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(e2etest.Patience))
		return c
	}
	web := dial("web.sock")
	in := bufio.NewReader(web)
	one, two := &talker{conn: dial("chat.sock")}, &talker{conn: dial("chat.sock")}
	one.in, two.in = bufio.NewReader(one.conn), bufio.NewReader(two.conn)
	heard := make(chan error, 1)
	go func() { _, err := two.hear(); heard <- err }()
	p.Wait("the chat to have both", func() bool {
		p.Check(one.say("sync"))
		select {
		case err := <-heard:
			p.Check(err)
			return true
		default:
			return false
		}
	})
	for i := range 6 {
		if i%2 == 1 {
			p.Setback(i)
		}
		o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old, WaitProbation: true})
		if err != nil || (o.Verdict == client.Reloaded) != (i%2 == 0) {
			t.Fatalf("reload %d = %+v, %v", i, o, err)
		}
		p.Check(e2etest.PostOn(web, in))
		p.Check(one.say(fmt.Sprint("line ", i)))
		for line := "sync"; line != fmt.Sprint("line ", i); {
			line, err = two.hear()
			p.Check(err)
		}
	}
	p.Check(os.Remove(p.Path("web.sock")))
	o, err := p.Upgrade(client.ReloadRequest{Binary: b.Old, WaitProbation: true})
	p.Check(err)
	if o.Verdict != client.Reloaded || !strings.Contains(o.String(), "web.sock had been removed") {
		t.Errorf("reload without the socket's file = %v", o)
	}
	again := dial("web.sock")
	p.Check(e2etest.PostOn(again, bufio.NewReader(again)))
	p.Check(e2etest.PostOn(web, in))
	s, err := p.Peek()
	p.Check(err)
	if s.Listen[0] != "unix://web.sock" {
		t.Errorf("status says it listens on %q", s.Listen)
	}
	p.Check(syscall.Kill(s.PID, syscall.SIGKILL)) // leaves the files
	p.Wait("it to serve again", func() bool {
		c, err := net.Dial("unix", p.Path("web.sock"))
		if err != nil {
			return false
		}
		defer c.Close()
		return e2etest.PostOn(c, bufio.NewReader(c)) == nil
	})
	p.Check(p.Cmd.Process.Signal(e2etest.Sigterm))
	p.Ended()
	for _, name := range []string{"web.sock", "chat.sock"} {
		if _, err := os.Stat(p.Path(name)); err == nil {
			t.Errorf("%s is left behind", name)
		}
	}
}
