package cmd_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// zooModule has a handler of each kind that a reload has to cope with.
const zooModule = `package zoo

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/gobwas/ws"

	"orchestrator/app/eventbus"
	"orchestrator/modules"
)

type Zoo struct{ cfg modules.Config }

var _ modules.ConnHandler = (*Zoo)(nil)

func New() modules.Module { return &Zoo{} }

func (z *Zoo) Initialize(_ context.Context, _ *eventbus.Bus, cfg modules.Config) error {
	z.cfg = cfg
	return nil
}

// Prepare makes a file that Shutdown removes.
func (z *Zoo) Prepare(context.Context, modules.Config) error {
	if _, err := os.Stat("unprepared"); err == nil {
		return fmt.Errorf("unprepared")
	}
	return os.WriteFile(prepared(), nil, 0o644)
}

func prepared() string { return fmt.Sprint("prepared.", os.Getpid()) }

func (z *Zoo) Shutdown(context.Context) error {
	os.Remove(prepared())
	if _, err := os.Stat("unwilling"); err == nil {
		return fmt.Errorf("unwilling")
	}
	return nil
}

func (z *Zoo) Healthy(context.Context) error {
	if _, err := os.Stat("sick"); err == nil {
		return fmt.Errorf("sick")
	}
	return nil
}

func (z *Zoo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/echo": // all that was understood of the request
		body, err := io.ReadAll(r.Body)
		fmt.Fprintln(w, r.Method, string(body), err)
	case "/slow":
		ms, _ := strconv.Atoi(r.FormValue("ms"))
		if r.FormValue("mark") != "" {
			os.WriteFile("slow", nil, 0o644)
		}
		select {
		case <-time.After(time.Duration(ms) * time.Millisecond):
			fmt.Fprintln(w, "slept")
		case <-r.Context().Done():
			http.Error(w, context.Cause(r.Context()).Error(), http.StatusServiceUnavailable)
		}
	case "/call": // another module, within the process
		resp, err := z.cfg.Call("counter", r.Clone(r.Context()))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		io.Copy(w, resp.Body)
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: begin\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		fmt.Fprintf(w, "data: %v\n\n", context.Cause(r.Context()))
	case "/raw": // hijacked in the way that cannot move
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				fmt.Fprintln(c, context.Cause(r.Context()))
				return
			}
			fmt.Fprint(c, line)
		}
	case "/origin":
		fmt.Fprintln(w, r.Proto, r.RemoteAddr, r.Host, r.TLS != nil && r.TLS.HandshakeComplete, r.Header.Get("X-Forwarded-For"), r.URL.RawQuery)
	case "/ws":
		ws.UpgradeHTTP(r, hijacker{w})
	default:
		http.NotFound(w, r)
	}
}

// hijacker gives a library that wants an http.Hijacker one that can move.
type hijacker struct{ http.ResponseWriter }

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, err := modules.Hijack(h.ResponseWriter)
	if err != nil {
		return nil, nil, err
	}
	return c, bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c)), nil
}

// HandleConn answers each message with how many there were on the connection.
func (z *Zoo) HandleConn(_ context.Context, c *modules.Conn) error {
	n, _ := strconv.Atoi(string(c.Kept()))
	for {
		f, err := ws.ReadFrame(c)
		if err != nil {
			return err
		}
		if f.Header.OpCode == ws.OpClose {
			return nil
		}
		f = ws.UnmaskFrame(f)
		n++
		if err := ws.WriteFrame(c, ws.NewTextFrame([]byte(fmt.Sprint(n, " ", string(f.Payload))))); err != nil {
			return err
		}
		c.Keep([]byte(strconv.Itoa(n)))
		c.Mark()
	}
}
`

// zooBuild is the program with the module zoo, and failpoints.
var zooBuild = sync.OnceValues(func() (binary string, err error) {
	b, err := pairOfBuilds()
	if err != nil {
		return "", err
	}
	p := &project{t: panics{}, dir: filepath.Join(b.dir, "zoo")}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return "", err
	}
	p.copySources()
	p.addModule("zoo", zooModule)
	return p.path("bin/zoo"), p.compile("bin/zoo", raceFlag...)
})

// panics reports the failures of what no test owns.
type panics struct{}

func (panics) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// addModule writes a module and compiles it in.
func (p *project) addModule(name, source string) {
	p.write("modules/"+name+"/"+name+".go", source)
	p.edit("cmd/orchestrator/modules.go", `"orchestrator/modules/kv"`, "\"orchestrator/modules/kv\"\n\t\"orchestrator/modules/"+name+"\"")
	p.edit("cmd/orchestrator/modules.go", `{Name: "kv", New: kv.New},`, `{Name: "kv", New: kv.New}, {Name: "`+name+`", New: `+name+`.New},`)
}

// compile builds the program with failpoints.
func (p *project) compile(out string, flags ...string) error {
	args := append([]string{"build", "-buildvcs=false", "-tags=failpoints", "-o", p.path(out)}, flags...)
	c := exec.Command("go", append(args, "./cmd/orchestrator")...)
	c.Dir, c.Env = p.dir, environ
	if msg, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, msg)
	}
	return nil
}

// zooTest is a running program with the zoo in it, and that program's path.
func zooTest(t *testing.T, edits ...string) (p *project, binary, address string) {
	t.Helper()
	p, _ = lightTest(t)
	return zooStart(p, edits...)
}

// zooStart edits the configuration and starts the program.
func zooStart(p *project, edits ...string) (_ *project, binary, address string) {
	binary, err := zooBuild()
	p.check(err)
	p.check(os.Remove(p.path("bin/orchestrator")))
	p.check(os.Link(binary, p.path("bin/orchestrator")))
	p.edit("config/main.yaml", "  - name: kv\n", "  - name: zoo\n  - name: kv\n")
	p.configure(edits...)
	p.startWith("ORCHESTRATOR_FAILPOINT=" + p.path("failpoint"))
	return p, binary, p.address()
}

// setback makes the next candidate fail, in one of many ways.
func (p *project) setback(n int) {
	p.write("failpoint.new", setbacks[n%len(setbacks)])
	p.check(os.Rename(p.path("failpoint.new"), p.path("failpoint")))
}
