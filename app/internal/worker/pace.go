package worker

import (
	"fmt"
	"slices"
	"time"

	"example.org/orchestrator/app/internal/serve"
)

// pace decides when a reload holds the server. A hold makes everybody wait, so it
// must be short, must not be begun in vain, and must come about on a busy service
// too.
type pace struct {
	terms terms
	force bool // what does not end is cut
	vain  int  // holds that were released
}

// maxVain is how many holds of one reload may be in vain.
const maxVain = 3

// step is what to do next. Exactly one of its fields is set.
type step struct {
	hold   *serve.Terms
	wait   time.Duration // look again after this time, or when something has ended
	refuse error
}

// next decides, with what is in flight after so much time.
func (p *pace) next(passed time.Duration, inFlight []serve.InFlight) step {
	var longest, margin time.Duration
	var stuck, slow []serve.InFlight
	for _, is := range inFlight {
		switch is.State {
		case serve.Ending:
			longest, margin = max(longest, is.Left), max(margin, p.margin(is))
			if is.Left > p.terms.MaxFreeze {
				slow = append(slow, is)
			}
		case serve.Late, serve.Stalled:
			stuck = append(stuck, is)
		case serve.Endless: // ends in the hold
		}
	}
	if passed >= p.terms.Drain {
		return p.last(longest+margin, stuck, slow)
	}
	limit, need, until := p.terms.MaxPause, longest+margin, p.terms.Drain/2
	if passed >= p.terms.Drain/2 {
		limit, need, until = p.terms.MaxFreeze, longest, p.terms.Drain
	}
	if len(stuck) == 0 && need <= limit && p.vain < maxVain {
		return step{hold: p.within(longest+margin, serve.CutNothing)}
	}
	return step{wait: min(until-passed, lookTime)}
}

// margin is how much longer than expected something may take: the slowest of the
// last requests is not the slowest of all.
func (p *pace) margin(is serve.InFlight) time.Duration {
	expected := is.Age + is.Left
	if expected <= p.terms.MaxPause {
		return 0 // that is what anything is given
	}
	return expected / 8
}

// lookTime is how long to wait before the next look if nothing ends meanwhile:
// what is in flight gets closer to its end.
const lookTime = 10 * time.Millisecond

// last decides when the time to find a good moment is over.
func (p *pace) last(longest time.Duration, stuck, slow []serve.InFlight) step {
	if p.force {
		return step{hold: p.within(min(longest, p.terms.MaxFreeze), serve.CutAll)}
	}
	late := slices.DeleteFunc(stuck, func(is serve.InFlight) bool { return is.State == serve.Stalled })
	late = append(late, slow...)
	switch {
	case len(late) > 0:
		return step{refuse: &busyError{after: p.terms.Drain, routes: (&serve.BusyError{InFlight: late}).Routes()}}
	case p.vain >= maxVain:
		return step{refuse: &busyError{after: p.terms.Drain, vain: p.vain}}
	default:
		return step{hold: p.within(longest, serve.CutStalled)}
	}
}

// within returns the terms of a hold for something that takes at most longest.
func (p *pace) within(longest time.Duration, cut serve.Cut) *serve.Terms {
	limit := max(p.terms.MaxPause, min(longest, p.terms.MaxFreeze))
	return &serve.Terms{Within: limit, Patience: p.terms.MaxPause, Cut: cut}
}

// busyError refuses a reload that has found no moment to hold.
type busyError struct {
	after  time.Duration
	routes []string // what is in flight; empty if it has changed all the time
	vain   int
}

func (e *busyError) Error() string {
	if len(e.routes) == 0 {
		return fmt.Sprintf("%d attempts within %v (app.drain) to hold the requests took longer than expected; reload with --force cuts them", e.vain, e.after)
	}
	return fmt.Sprintf("still running after %v (app.drain): %q; reload with --force cuts them", e.after, e.routes)
}
