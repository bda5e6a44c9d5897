//go:build unix

package supervisor

import (
	"time"

	"example.org/orchestrator/app/client"
)

const (
	// stableTime is how long a generation must serve before earlier crashes
	// are forgotten.
	stableTime = 10 * time.Second

	// tooManyCrashes is the number of crashes in a row after which an older
	// build is tried, if that is allowed.
	tooManyCrashes = 3

	topicCrashed = "app.crashed"
)

// crashes records generations that died while they served, and what to start
// in their place.
type crashes struct {
	inARow int
	timer  *time.Timer   // fires when to start again
	last   *client.Crash // its Serving is 0 until a generation serves again

	mayOlder   bool          // an older build may be started
	startLimit time.Duration // how long a start may take: twice as long as a stop

	instead string // a newer build to start in place of the one that crashed; "" for none
}

// backoff returns how long to wait before the start that follows n crashes in a
// row.
func backoff(n int) time.Duration {
	if n == 0 {
		return 0
	}
	return min(100*time.Millisecond<<min(n-1, 10), 5*time.Second)
}

// nextAttempt records one more attempt to start, and returns when to make it and with
// which build: same, or older if same keeps crashing and older is allowed and
// exists.
func (c *crashes) nextAttempt(same, older string) (wait time.Duration, binary string, tried int) {
	wait = backoff(c.inARow)
	c.inARow++
	switch {
	case c.instead != "":
		return wait, c.instead, 0
	case c.mayOlder && c.inARow > tooManyCrashes && exists(older):
		return wait, older, c.inARow - 1
	default:
		return wait, same, 0
	}
}

// replaceBy makes binary the build to start instead of the one that crashed.
func (c *crashes) replaceBy(binary string) { c.instead, c.inARow = binary, 0 }

// looping reports whether a restart has failed already.
func (c *crashes) looping() bool { return c.inARow > 1 }

// forget resets the count: earlier crashes say nothing about what serves now.
func (c *crashes) forget() { c.inARow = 0 }

// serves records the generation that serves in place of one that crashed. It
// returns the crash, nil if nothing has crashed.
func (c *crashes) serves(generation int, binary, build, older string) *client.Crash {
	if binary == c.instead {
		c.instead = ""
	}
	if c.last == nil || c.last.Serving != 0 {
		return nil
	}
	c.last.Serving, c.last.Build, c.last.Older = generation, build, older != "" && binary == older
	return c.last
}
