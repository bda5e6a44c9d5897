//go:build unix

package connections_test

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestWebSocketsStayOpen: clients send and receive messages through twenty
// reloads, with and without every second one failing. The module counts the
// messages of each connection, and the count must go on. Fragments of frames that
// arrive around a reload must not be lost.
func TestWebSocketsStayOpen(t *testing.T) {
	t.Parallel()
	for _, bad := range []bool{false, true} {
		t.Run(fmt.Sprint("setbacks ", bad), func(t *testing.T) {
			t.Parallel()
			const clients, reloads = 20, 20
			p, binary, address := e2etest.Zoo(t, "drain: 500ms", "drain: 20s", "max_pause: 250ms", "max_pause: 2s")
			stop := make(chan struct{})
			var all sync.WaitGroup
			var messages atomic.Int64
			for i := range clients {
				ctx, cancel := context.WithTimeout(t.Context(), e2etest.Patience)
				c, _, _, err := ws.Dial(ctx, "ws://"+address+"/zoo/ws")
				cancel()
				p.Check(err)
				defer c.Close()
				all.Go(func() {
					if n, err := converse(c, i, stop); err != nil {
						t.Errorf("client %d after %d messages: %v", i, n, err)
					} else {
						messages.Add(int64(n))
					}
				})
			}
			for i := range reloads {
				want := client.Reloaded
				if bad && i%2 == 1 {
					want = client.Rejected
					p.Setback(i / 2)
				}
				mark := i
				o, err := p.Upgrade(client.ReloadRequest{Binary: binary, TimeoutMS: 60_000})
				if err != nil || o.Verdict != want || want == client.Reloaded && (o.Moved != clients || o.Cancelled != 0) {
					t.Errorf("reload %d = %+v, %v; want %s, %d connections moved", mark, o, err, want, clients)
					break
				}
			}
			close(stop)
			all.Wait()
			if messages.Load() < clients*reloads {
				t.Errorf("%d messages only", messages.Load())
			}
			t.Logf("%d messages on %d connections through %d reloads", messages.Load(), clients, reloads)
		})
	}
}

// converse sends messages, each in two pieces, and checks the answers.
func converse(c net.Conn, number int, stop <-chan struct{}) (n int, err error) {
	for n = 1; ; n++ {
		select {
		case <-stop:
			return n, nil
		default:
		}
		c.SetDeadline(time.Now().Add(e2etest.Patience))
		text := fmt.Sprintf("client %d says %d", number, n)
		frame, err := ws.CompileFrame(ws.MaskFrame(ws.NewTextFrame([]byte(text))))
		if err != nil {
			return n, err
		}
		cut := n % len(frame)
		for _, piece := range [][]byte{frame[:cut], frame[cut:]} {
			if _, err := c.Write(piece); err != nil {
				return n, err
			}
			<-time.After(time.Millisecond) // the client's pace
		}
		got, err := wsutil.ReadServerText(c)
		if err != nil {
			return n, err
		}
		if want := fmt.Sprint(n, " ", text); string(got) != want {
			return n, fmt.Errorf("got %q, want %q", got, want)
		}
	}
}
