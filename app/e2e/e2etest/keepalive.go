//go:build unix

package e2etest

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// setbacks has a failure of a candidate before its commit of every kind.
var setbacks = []string{
	"candidate.before.hello exit1", "candidate.at.restored kill", "candidate.at.prepared exit0", "candidate.before.healthy garbage",
	"candidate.at.initialized exit1", "candidate.before.prepared garbage", "candidate.after.prepared kill", "candidate.at.initialized kill",
}

// Memory returns the resident memory of a process in MiB.
func Memory(pid int) int { return StatusField(pid, "VmRSS:") }

// StatusField returns a field of /proc/PID/status, which has it in KiB, in MiB.
func StatusField(pid int, name string) int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for _, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return Atoi(strings.Fields(rest)[0]) >> 10
		}
	}
	return 0
}

// KeptAlive is clients that use one connection each and never retry a request.
type KeptAlive struct {
	N                           int
	stop                        chan struct{}
	done                        sync.WaitGroup
	Answered, Failed, Redialled atomic.Int64
	Reached                     atomic.Int64 // clients that were answered at least once
	Why                         atomic.Value
}

// KeepAlive starts n clients that send POST /counter/ until End.
func KeepAlive(address string, n int) *KeptAlive {
	k := &KeptAlive{N: n, stop: make(chan struct{})}
	for range n {
		k.done.Go(func() { k.client(address) })
	}
	return k
}

func (k *KeptAlive) client(address string) {
	var c net.Conn
	var in *bufio.Reader
	reached := sync.OnceFunc(func() { k.Reached.Add(1) })
	for first := true; ; first = false {
		select {
		case <-k.stop:
			if c != nil {
				c.Close()
			}
			return
		default:
		}
		err := error(nil)
		if c == nil {
			if !first {
				k.Redialled.Add(1)
			}
			if c, err = net.Dial("tcp", address); err == nil {
				in = bufio.NewReader(c)
			}
		}
		if err == nil {
			err = PostOn(c, in)
		}
		if err != nil {
			k.Failed.Add(1)
			k.Why.Store(err.Error())
			if c != nil {
				c.Close()
				c = nil
			}
		} else {
			k.Answered.Add(1)
			reached()
		}
		<-time.After(max(2*time.Millisecond, time.Duration(k.N)*time.Millisecond/8)) // pace: the machine is shared
	}
}

// PostOn sends one POST /counter/ on an open connection.
func PostOn(c net.Conn, in *bufio.Reader) error {
	c.SetDeadline(time.Now().Add(Patience))
	if _, err := fmt.Fprintf(c, "POST /counter/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body := make([]byte, resp.ContentLength)
	for n := 0; n < len(body); {
		m, err := resp.Body.Read(body[n:])
		if n += m; n < len(body) && err != nil {
			return err
		}
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return nil
}

func (k *KeptAlive) End() {
	close(k.stop)
	k.done.Wait()
}
