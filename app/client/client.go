// Package client talks to a running program over its control socket, as the
// command line does: [Reload] reloads it, [GetStatus] describes it, [Events]
// follows what happens.
//
// Each call makes its own connection. The program and the caller may be
// different builds: fields are only added, and versions that cannot talk return
// an error that says so.
package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"time"

	"example.org/orchestrator/app/internal/wire"
)

// ReloadRequest is what `orchestrator reload` asks for. The zero value asks for
// what the sources say if hot_reload is on, else for the binary that is now at
// the path the program was started from.
type ReloadRequest struct {
	Build         bool     `json:"build,omitempty"`          // build the sources, even if hot_reload is off
	Binary        string   `json:"binary,omitempty"`         // absolute path of the binary to run
	TimeoutMS     int64    `json:"timeout_ms,omitempty"`     // limit until the commit; 0 means the program's default
	Force         bool     `json:"force,omitempty"`          // cancel HTTP requests that do not end in time
	DropState     []string `json:"drop_state,omitempty"`     // modules that start without their state; "*" means all
	WaitProbation bool     `json:"wait_probation,omitempty"` // wait until the new generation is final
}

// EventsRequest is what `orchestrator events` asks for.
type EventsRequest struct {
	Follow bool `json:"follow,omitempty"` // the events to come, too
	All    bool `json:"all,omitempty"`    // those of modules too, as long as somebody follows
}

// NotRunningError says that nothing answers at a control socket.
type NotRunningError struct {
	Path string // absolute
	hint string
	Err  error
}

func (e *NotRunningError) Error() string {
	return "nothing is running: nobody answers at " + e.Path + e.hint
}

func (e *NotRunningError) Unwrap() error { return e.Err }

// message is any message from or to a client. Type says which field is used.
type message struct {
	Type    string         `json:"type"`
	Reload  *ReloadRequest `json:"reload,omitempty"`
	Events  *EventsRequest `json:"events,omitempty"`
	Stop    *StopRequest   `json:"stop,omitempty"`
	Stopped *Stopped       `json:"stopped,omitempty"`
	Status  *Status        `json:"status,omitempty"`
	Outcome *Outcome       `json:"outcome,omitempty"`
	Event   *Event         `json:"event,omitempty"`
	Error   string         `json:"error,omitempty"`
}

// Types of messages. Package app/internal/control has the same for the other
// end.
const (
	typeReload  = "reload"
	typeOutcome = "outcome"
	typeStatus  = "status"
	typeStop    = "stop"
	typeStopped = "stopped"
	typeEvents  = "events"
	typeEvent   = "event"
	typeEnd     = "end"
	typeError   = "error"
)

// Reload asks the program with this run_dir for a reload and waits for the
// outcome. A [*NotRunningError] and any other error of connecting mean that
// nothing was asked for. After other errors the outcome is not known, unless the
// program has answered with an error; [GetStatus] may show it.
func Reload(ctx context.Context, runDir string, r ReloadRequest) (*Outcome, error) {
	m, err := ask(ctx, runDir, message{Type: typeReload, Reload: &r}, typeOutcome)
	if err != nil {
		return nil, err
	}
	if m.Outcome == nil {
		return nil, errors.New("the program gave no outcome: whether the new code is live is not known; see status")
	}
	return m.Outcome, nil
}

// GetStatus asks the program with this run_dir what it is doing.
func GetStatus(ctx context.Context, runDir string) (*Status, error) {
	m, err := ask(ctx, runDir, message{Type: typeStatus}, typeStatus)
	if err != nil {
		return nil, err
	}
	if m.Status == nil {
		return nil, errors.New("the program gave no status")
	}
	return m.Status, nil
}

// StopRequest is what `orchestrator stop` asks for.
type StopRequest struct {
	TimeoutMS int64 `json:"timeout_ms,omitempty"` // after which everything is killed; 0 for the limits of the configuration
}

// Stopped is how a program has ended.
type Stopped struct {
	Code int `json:"code"` // its exit code
}

// Stop stops the program with this run_dir gracefully, waits until it has ended, and
// returns its exit code. What has not stopped after timeout is killed; 0 is as long
// as the configuration allows. A [*NotRunningError] means that nothing was there.
func Stop(ctx context.Context, runDir string, timeout time.Duration) (code int, err error) {
	c, err := dial(runDir)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.Send(message{Type: typeStop, Stop: &StopRequest{TimeoutMS: timeout.Milliseconds()}}); err != nil {
		return 0, err
	}
	m, err := receive(ctx, c, typeStopped)
	if err != nil {
		return 0, err
	}
	if m.Stopped == nil {
		return 0, errors.New("the program did not say how it has ended")
	}
	for c.Receive(&m) == nil { // until its process ends
		continue
	}
	return m.Stopped.Code, nil
}

// Events yields the latest events of the program with this run_dir and, if r says
// so, those to come, until ctx ends. An error ends the sequence.
func Events(ctx context.Context, runDir string, r EventsRequest) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		c, err := dial(runDir)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		if err := c.Send(message{Type: typeEvents, Events: &r}); err != nil {
			yield(Event{}, err)
			return
		}
		for {
			m, err := receive(ctx, c, typeEvent)
			switch {
			case err != nil:
				yield(Event{}, err)
				return
			case m.Type == typeEnd || m.Event == nil:
				return
			case !yield(*m.Event, nil):
				return
			}
		}
	}
}

// ask sends a message and waits for the answer.
func ask(ctx context.Context, runDir string, m message, want string) (message, error) {
	c, err := dial(runDir)
	if err != nil {
		return m, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.Send(m); err != nil {
		return m, err
	}
	return receive(ctx, c, want)
}

// dial connects to the running program.
func dial(runDir string) (*wire.Conn, error) {
	path := wire.Socket(runDir)
	c, err := wire.Dial(path, wire.Hello{Role: wire.RoleClient})
	var version *wire.VersionError
	switch {
	case err == nil:
		return c, nil
	case errors.As(err, &version):
		return nil, err
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("this user may not control the program: %w", err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("the program does not answer; is it stopped? %w", err)
	}
	hint := ""
	if abs, absErr := filepath.Abs(path); absErr == nil && abs != path {
		path, hint = abs, " (app.run_dir is relative to the working directory)"
	}
	return nil, &NotRunningError{path, hint, err}
}

// receive waits for a message of the wanted type, or for the end.
func receive(ctx context.Context, c *wire.Conn, want string) (message, error) {
	for {
		var m message
		err := c.Receive(&m)
		switch {
		case ctx.Err() != nil:
			return m, context.Cause(ctx)
		case errors.Is(err, wire.ErrGarbled):
		case err != nil:
			return m, fmt.Errorf("the program ended before it answered: %w", err)
		case m.Type == want || m.Type == typeEnd:
			return m, nil
		case m.Type == typeError:
			return m, errors.New(m.Error)
		}
	}
}
