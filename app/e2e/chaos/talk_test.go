//go:build unix

package chaos_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// talkers are clients of the chat. Each sends numbered lines and hears those of all
// others.
type talkers struct {
	list []*talker
}

type talker struct {
	number int
	conn   net.Conn
	said   int // lines of this client

	mu     sync.Mutex // guards the fields below
	heard  []int      // the last line of each other client, 0 for none
	errs   []error
	broken bool // the connection has ended
}

// chatTime is how long a line may take: longer than any disturbance.
const chatTime = 20 * time.Second

// join connects n clients, and waits until each hears the others.
func join(address string, n int) (*talkers, error) {
	t := &talkers{}
	for i := range n {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return t, err
		}
		k := &talker{number: i, conn: c, heard: make([]int, n)}
		t.list = append(t.list, k)
		go k.listen() // ends with the connection
	}
	for until := time.Now().Add(chatTime); ; {
		if t.complete() == nil {
			return t, nil
		}
		if time.Now().After(until) {
			return t, errors.New("the clients do not hear each other")
		}
		for _, k := range t.list { // who joins later misses what was said before
			if err := k.say(); err != nil {
				return t, err
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (k *talker) say() error {
	k.said++
	k.conn.SetWriteDeadline(time.Now().Add(chatTime))
	_, err := fmt.Fprintln(k.conn, k.number, k.said)
	return err
}

func (k *talker) listen() {
	in := bufio.NewScanner(k.conn)
	for in.Scan() {
		var from, n int
		_, err := fmt.Sscan(strings.TrimSpace(in.Text()), &from, &n)
		k.mu.Lock()
		switch {
		case err != nil || from < 0 || from >= len(k.heard) || from == k.number:
			k.errs = append(k.errs, fmt.Errorf("client %d got %q", k.number, in.Text()))
		case k.heard[from] == 0 || n == k.heard[from]+1: // it hears from that one for the first time
			k.heard[from] = n
		default:
			k.errs = append(k.errs, fmt.Errorf("client %d got line %d of client %d after %d", k.number, n, from, k.heard[from]))
			k.heard[from] = n
		}
		k.mu.Unlock()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.broken = true
}

// talk sends lines until stop.
func (t *talkers) talk(stop <-chan struct{}) (wait func()) {
	var all sync.WaitGroup
	for _, k := range t.list {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond): // pace
				}
				if k.say() != nil {
					return
				}
			}
		})
	}
	return all.Wait
}

// complete returns an error unless each client has heard every line of all others.
func (t *talkers) complete() error {
	for _, k := range t.list {
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, other := range t.list {
			if other != k && k.heard[other.number] != other.said {
				return fmt.Errorf("client %d has heard %d of %d lines of client %d; connection ended: %v", k.number, k.heard[other.number], other.said, other.number, k.broken)
			}
		}
	}
	return nil
}

// faults returns what was heard twice, in another order, or by nobody's doing. With
// intact, all connections must have lasted and every line must have arrived.
func (t *talkers) faults(intact bool) (errs []error) {
	if intact {
		var err error
		for until := time.Now().Add(chatTime); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
			if err = t.complete(); err == nil {
				break
			}
		}
		errs = append(errs, err)
	}
	for _, k := range t.list {
		k.mu.Lock()
		errs = append(errs, k.errs...)
		k.mu.Unlock()
	}
	return errs
}

func (t *talkers) leave() {
	for _, k := range t.list {
		k.conn.Close()
	}
}
