package worker

import (
	"sync"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
)

// beats tell the supervisor, while hooks are called, that this process is alive: the
// limit of a stage is then that of one hook, however many modules there are.
type beats struct {
	mu    sync.Mutex
	stage client.Stage // "" while no hooks are called
	limit time.Duration
	last  time.Time
}

// beatTime is the shortest time between two beats.
const beatTime = 100 * time.Millisecond

// announce tells the supervisor the stage, and after how long this process is stuck.
// With beating, each hook begins that time anew.
func (g *generation) announce(name client.Stage, limit time.Duration, beating bool) {
	if debugged() {
		limit = 0
	}
	b := &g.beats
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stage, b.limit, b.last = "", limit, time.Now()
	if beating {
		b.stage = name
	}
	g.send(control.Message{Type: control.TypeStage, Stage: &control.Stage{Name: name, LimitMS: limit.Milliseconds()}})
}

// beat is called before each hook, and while a state is read.
func (g *generation) beat() {
	b := &g.beats
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stage == "" || time.Since(b.last) < beatTime {
		return
	}
	b.last = time.Now()
	g.send(control.Message{Type: control.TypeStage, Stage: &control.Stage{Name: b.stage, LimitMS: b.limit.Milliseconds()}})
}

// endBeats ends them: what follows is nobody's stage.
func (g *generation) endBeats() {
	g.beats.mu.Lock()
	defer g.beats.mu.Unlock()
	g.beats.stage = ""
}
