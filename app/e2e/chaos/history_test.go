//go:build unix

package chaos_test

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// history is what clients have asked and been answered, and when.
type history struct {
	mu  sync.Mutex // guards ops
	ops []porcupine.Operation
}

var began = time.Now() // all times of histories are since then

// call is what a client asks for.
type call struct {
	method, key, value string
}

// answer is what it got; unknown if nobody knows whether it was done.
type answer struct {
	text    string
	unknown bool
}

// do asks, and records it. It reports whether there was an answer.
func (h *history) do(client int, c *http.Client, url string, what call) bool {
	from := time.Since(began)
	text, err := ask(c, url, what)
	op := porcupine.Operation{ClientId: client, Input: what, Output: answer{text: text}, Call: int64(from), Return: int64(time.Since(began))}
	if err != nil {
		op.Output, op.Return = answer{unknown: true}, math.MaxInt64
	}
	if err != nil && what.method == http.MethodGet {
		return false // it has changed nothing
	}
	h.mu.Lock()
	h.ops = append(h.ops, op)
	h.mu.Unlock()
	return err == nil
}

// askTime is longer than any disturbance.
const askTime = 20 * time.Second

func ask(c *http.Client, url string, what call) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, what.method, url+what.key, strings.NewReader(what.value))
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	text := strings.TrimPrefix(strings.TrimSpace(string(body)), "new ")
	switch {
	case err != nil:
		return "", err
	case resp.StatusCode == http.StatusNotFound:
		return "", nil
	case resp.StatusCode == http.StatusNoContent:
		return "", nil
	case resp.StatusCode != http.StatusOK:
		return "", fmt.Errorf("%s: %s", resp.Status, text)
	}
	return text, nil
}

// count is the state of the counter: its number, and how often it has lost some.
type count struct{ n, losses int }

// counterModel is a counter that may lose what it has counted as often as the program
// has said.
func counterModel(start, losses int) porcupine.NondeterministicModel {
	return porcupine.NondeterministicModel{
		Init: func() []any { return []any{count{start, 0}} },
		Step: func(state, input, output any) (next []any) {
			s, out := state.(count), output.(answer)
			if out.unknown {
				return []any{s, count{s.n + 1, s.losses}}
			}
			n, err := strconv.Atoi(out.text)
			if err != nil {
				return nil
			}
			before := n
			if input.(call).method == http.MethodPost {
				before = n - 1
			}
			switch {
			case before == s.n:
				return []any{count{n, s.losses}}
			case before >= 0 && before < s.n && s.losses < losses:
				return []any{count{n, s.losses + 1}}
			}
			return nil
		},
		DescribeOperation: describe,
	}
}

// storeModel is a store that loses nothing, with the values that it begins with.
func storeModel(start map[string]string) porcupine.NondeterministicModel {
	return porcupine.NondeterministicModel{
		Partition: func(all []porcupine.Operation) (parts [][]porcupine.Operation) {
			by := map[string][]porcupine.Operation{}
			for key, value := range start { // each part knows how it begins
				by[key] = []porcupine.Operation{{ClientId: -1, Input: call{http.MethodPut, key, value}, Output: answer{}, Call: -1, Return: 0}}
			}
			for _, op := range all {
				key := op.Input.(call).key
				by[key] = append(by[key], op)
			}
			for _, ops := range by {
				parts = append(parts, ops)
			}
			return parts
		},
		Init: func() []any { return []any{""} },
		Step: func(state, input, output any) []any {
			in, out := input.(call), output.(answer)
			after := ""
			switch in.method {
			case http.MethodGet:
				if out.text != state {
					return nil
				}
				return []any{state}
			case http.MethodPut:
				after = in.value
			}
			if out.unknown {
				return []any{state, after}
			}
			return []any{after}
		},
		DescribeOperation: describe,
	}
}

func describe(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) }

// keys are few, so that clients meet.
var keys = []string{"a", "b", "c"}

// clients use the counter and the store until stop.
func clients(address string, counter, store *history, stop <-chan struct{}) (wait func()) {
	var all sync.WaitGroup
	use := func(f func(n int, c *http.Client, random *rand.Rand) bool) {
		for n := range 3 {
			all.Go(func() {
				c := &http.Client{Transport: &http.Transport{}} // its connections are its own
				defer c.CloseIdleConnections()
				random := rand.New(rand.NewPCG(uint64(n), rand.Uint64()))
				for {
					pause := 3 * time.Millisecond
					if !f(n, c, random) {
						pause = 30 * time.Millisecond
					}
					select {
					case <-stop:
						return
					case <-time.After(pause): // pace: a history must be short enough to be checked
					}
				}
			})
		}
	}
	use(func(n int, c *http.Client, random *rand.Rand) bool {
		method := http.MethodPost
		if random.IntN(4) == 0 {
			method = http.MethodGet
		}
		return counter.do(n, c, "http://"+address+"/counter/", call{method: method})
	})
	use(func(n int, c *http.Client, random *rand.Rand) bool {
		what := call{method: []string{http.MethodGet, http.MethodGet, http.MethodPut, http.MethodPut, http.MethodDelete}[random.IntN(5)], key: keys[random.IntN(len(keys))]}
		if what.method == http.MethodPut {
			what.value = strconv.FormatUint(random.Uint64(), 36)
		}
		return store.do(n, c, "http://"+address+"/kv/", what)
	})
	return all.Wait
}
