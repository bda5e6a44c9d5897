package worker

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/serve"
)

// production are the defaults with hot_reload: false.
var production = terms{Drain: 10 * time.Second, MaxPause: 250 * time.Millisecond, MaxFreeze: time.Second}

func ending(left time.Duration) serve.InFlight {
	return serve.InFlight{Route: "GET /ending", State: serve.Ending, Age: 800*time.Millisecond - min(left, 800*time.Millisecond), Left: left}
}

func TestPace(t *testing.T) {
	const ms = time.Millisecond
	late := serve.InFlight{Route: "GET /late", State: serve.Late}
	stalled := serve.InFlight{Route: "PUT /stalled", State: serve.Stalled}
	endless := serve.InFlight{Route: "GET /endless", State: serve.Endless}
	for _, tt := range []struct {
		name     string
		passed   time.Duration
		force    bool
		vain     int
		inFlight []serve.InFlight
		want     string
	}{
		{"nothing in flight", 0, false, 0, nil, "hold 250ms cut 0"},
		{"it fits, with an eighth more", 0, false, 0, []serve.InFlight{ending(150 * ms), endless}, "hold 250ms cut 0"},
		{"it does not fit yet", 0, false, 0, []serve.InFlight{ending(151 * ms)}, "wait"},
		{"what nothing is known of", 0, false, 0, []serve.InFlight{{State: serve.Ending, Left: 250 * ms}}, "hold 250ms cut 0"},
		{"the second half allows more", 5000 * ms, false, 0, []serve.InFlight{ending(400 * ms)}, "hold 500ms cut 0"},
		{"but not everything", 5000 * ms, false, 0, []serve.InFlight{ending(1001 * ms)}, "wait"},
		{"never longer than max_freeze", 5000 * ms, false, 0, []serve.InFlight{ending(900 * ms)}, "hold 1s cut 0"},
		{"not beside something late", 6000 * ms, false, 0, []serve.InFlight{late}, "wait"},
		{"not beside something stalled", 6000 * ms, false, 0, []serve.InFlight{stalled}, "wait"},
		{"three in vain", 6000 * ms, false, 3, nil, "wait"},
		{"the end: late", 10000 * ms, false, 0, []serve.InFlight{late, stalled}, "refuse GET /late"},
		{"the end: too slow", 10000 * ms, false, 0, []serve.InFlight{ending(1001 * ms)}, "refuse GET /ending"},
		{"the end: stalled", 10000 * ms, false, 0, []serve.InFlight{stalled, ending(100 * ms)}, "hold 250ms cut 1"},
		{"the end: three in vain", 10000 * ms, false, 3, nil, "refuse "},
		{"forced: not before the end", 9000 * ms, true, 0, []serve.InFlight{late}, "wait"},
		{"forced: the end", 10000 * ms, true, 3, []serve.InFlight{late, ending(time.Hour)}, "hold 1s cut 2"},
	} {
		p := &pace{terms: production, force: tt.force, vain: tt.vain}
		next := p.next(tt.passed, tt.inFlight)
		got := "wait"
		if next.hold != nil {
			got = fmt.Sprintf("hold %v cut %d", next.hold.Within, next.hold.Cut)
		}
		if next.refuse != nil {
			got = "refuse "
			var busy *busyError
			if errors.As(next.refuse, &busy) && len(busy.routes) > 0 {
				got += busy.routes[0]
			}
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
		if got == "wait" && (next.wait <= 0 || tt.passed+next.wait > production.Drain) {
			t.Errorf("%s: waits for %v", tt.name, next.wait)
		}
	}
}

// busyService is a service whose clients send a request as soon as they have an
// answer. Its clock is the test's.
type busyService struct {
	random  *rand.Rand
	took    time.Duration // what every request takes, within a tenth
	slowest time.Duration // that it remembers
	now     time.Duration
	began   []time.Duration // of each client's request
	ends    []time.Duration
}

func newBusyService(seed uint64, clients int, took time.Duration) *busyService {
	s := &busyService{random: rand.New(rand.NewPCG(seed, 0)), took: took}
	for range clients {
		s.began = append(s.began, 0)
		s.ends = append(s.ends, time.Duration(s.random.Int64N(int64(took))))
	}
	s.run(64*took, true) // it has been busy for a while
	return s
}

// run lets d pass. Held clients that have got their answer wait.
func (s *busyService) run(d time.Duration, serving bool) (idle bool) {
	for end := s.now + d; s.now < end; s.now += time.Millisecond {
		idle = true
		for i := range s.ends {
			if s.ends[i] >= 0 && s.now >= s.ends[i] {
				s.slowest = max(s.slowest, s.now-s.began[i])
				s.ends[i] = -1
			}
			if s.ends[i] < 0 && serving {
				s.began[i] = s.now
				s.ends[i] = s.now + s.took*9/10 + time.Duration(s.random.Int64N(int64(s.took)/5))
			}
			idle = idle && s.ends[i] < 0
		}
		if idle && !serving {
			return true
		}
	}
	return idle
}

func (s *busyService) inFlight(patience time.Duration) (list []serve.InFlight) {
	for i := range s.ends {
		if s.ends[i] < 0 {
			continue
		}
		is := serve.InFlight{Route: "GET /busy", State: serve.Ending, Left: max(s.slowest, patience) - (s.now - s.began[i])}
		if is.Left < 0 {
			is.State, is.Left = serve.Late, 0
		}
		list = append(list, is)
	}
	return list
}

// reload reports whether a reload finds its moment, how long everybody waited for
// it, and how many holds were in vain.
func (s *busyService) reload(t terms) (held bool, frozen time.Duration, vain int) {
	p := &pace{terms: t}
	began := s.now
	for {
		next := p.next(s.now-began, s.inFlight(t.MaxPause))
		switch {
		case next.refuse != nil:
			return false, frozen, p.vain
		case next.hold != nil:
			since := s.now
			if s.run(next.hold.Within, false) {
				return true, frozen + s.now - since, p.vain
			}
			frozen += s.now - since
			p.vain++
			if next.hold.Cut != serve.CutNothing {
				return false, frozen, p.vain
			}
		default:
			s.run(min(next.wait, time.Millisecond), true)
		}
	}
}

// TestPace_onBusyServices: every reload finds a moment, although some client is
// always in the middle of a request, and nobody waits in vain.
func TestPace_onBusyServices(t *testing.T) {
	for _, clients := range []int{1, 8, 32} {
		for _, took := range []time.Duration{50 * time.Millisecond, 300 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond} {
			var longest time.Duration
			for seed := range uint64(30) {
				s := newBusyService(seed, clients, took)
				held, frozen, vain := s.reload(production)
				longest = max(longest, frozen)
				if !held || vain > 0 {
					t.Errorf("%d clients, requests of %v, seed %d: held %v after %d in vain and %v", clients, took, seed, held, vain, frozen)
				}
			}
			if longest > production.MaxFreeze {
				t.Errorf("%d clients, requests of %v: everybody waited for %v", clients, took, longest)
			}
		}
	}
}
