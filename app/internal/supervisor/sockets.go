//go:build unix

package supervisor

import (
	"fmt"
	"net"
	"os"
	"time"

	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/wire"
)

// sockets are the listening sockets that workers have passed on. When the serving
// generation dies, the next one takes them, so that no connection is refused:
// clients wait in the kernel's queue.
type sockets struct {
	kept     map[int]socketSet // by generation
	refusing []net.Listener    // on which clients are turned away; nil while they wait
}

type socketSet struct {
	about []control.Socket
	files []*os.File
}

func (s socketSet) close() {
	for _, f := range s.files {
		f.Close()
	}
}

func (s socketSet) keys() []string {
	keys := make([]string, 0, len(s.about))
	for _, a := range s.about {
		keys = append(keys, a.Key)
	}
	return keys
}

// put keeps the sockets of a generation.
func (k *sockets) put(generation int, set socketSet) {
	if k.kept == nil {
		k.kept = map[int]socketSet{}
	}
	k.kept[generation].close()
	k.kept[generation] = set
}

// drop closes the sockets of the generations that drop returns true for.
func (k *sockets) drop(drop func(generation int) bool) {
	for g, set := range k.kept {
		if drop(g) {
			set.close()
			delete(k.kept, g)
		}
	}
}

// latest returns the sockets of the latest generation that has passed any.
func (k *sockets) latest() socketSet {
	last := 0
	for g := range k.kept {
		last = max(last, g)
	}
	return k.kept[last]
}

// refuse turns clients away from now on: nobody knows when a generation serves.
// What is not HTTP is closed.
func (k *sockets) refuse() {
	set := k.latest()
	for i, f := range set.files {
		ln, err := net.FileListener(f)
		if err != nil {
			continue
		}
		k.refusing = append(k.refusing, ln)
		go turnAway(ln, set.about[i].HTTP) // ends with ln
	}
}

// serve ends refuse.
func (k *sockets) serve() {
	for _, ln := range k.refusing {
		ln.Close()
	}
	k.refusing = nil
}

// close closes everything: the program ends.
func (k *sockets) close() {
	k.serve()
	k.drop(func(int) bool { return true })
}

// turnAwayTime bounds what one client that is turned away may cost.
const turnAwayTime = time.Second

func turnAway(ln net.Listener, http bool) {
	const text = "Nothing serves at the moment.\n"
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if !http {
				return
			}
			c.SetDeadline(time.Now().Add(turnAwayTime))
			c.Read(make([]byte, 4096)) // unread bytes would reset the connection
			fmt.Fprintf(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nRetry-After: 1\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
		}()
	}
}

// receiveSockets reads the listening sockets of one worker.
func (s *supervisor) receiveSockets(c *wire.Conn, hello *wire.Hello) {
	if c.Send(control.Message{Type: control.TypeKnown}) != nil {
		return
	}
	var m control.Message
	files, err := c.ReceiveFiles(&m)
	set := socketSet{m.Sockets, files}
	if err != nil || len(m.Sockets) != len(files) {
		s.opts.Log.Warn("the listening sockets of a generation did not arrive: its crash would refuse connections", "generation", hello.Generation, "err", err)
		set.close()
		return
	}
	if !s.post(socketsCame{hello.Generation, set}) {
		set.close()
	}
}

// socketsCame keeps the sockets of a generation that lives. Those of others are kept
// until it is final.
func (s *supervisor) socketsCame(generation int, set socketSet) {
	if s.stop.begun || s.workers.linked[generation] == nil {
		set.close()
		return
	}
	s.sockets.put(generation, set)
	s.dropSockets()
}

// dropSockets closes the sockets of generations that will not serve again.
func (s *supervisor) dropSockets() {
	w := s.workers.serving
	if w == nil || s.unconfirmed != nil || s.state() == upgrading {
		return
	}
	if _, ok := s.sockets.kept[w.generation]; ok {
		s.sockets.drop(func(g int) bool { return g != w.generation })
	}
}

// queueOver is called when clients have waited long enough for a restart.
func (s *supervisor) queueOver(crash time.Time) {
	c := s.crashes.last
	if s.stop.begun || s.workers.serving != nil || c == nil || !c.Time.Equal(crash) || s.sockets.refusing != nil {
		return
	}
	s.printf("nothing serves yet: turning clients away until something does (app.crash_queue)")
	s.sockets.refuse()
}
