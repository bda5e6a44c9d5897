// Package proc starts processes and reaps every child of this one, whether it
// was started here or inherited from a generation that has exited.
//
// It lies below everything else that needs a process: a build asks it to run
// the compiler, the supervisor asks it to start a generation. It knows neither.
package proc

import (
	"bytes"
	"context"
	"fmt"
)

// Command is a process to run to its end.
type Command struct {
	Args []string
	Env  []string // in addition to this process's environment
}

// Runner runs a command in a process group of its own, kills the whole group
// when ctx ends, and returns what the command wrote to its standard output. If
// the command fails the error is an [*ExitError]; if it was killed because ctx
// ended, it is ctx's cause. [Reaper.Run] is the real one.
type Runner func(ctx context.Context, c Command) (stdout []byte, err error)

// ExitError is a command that failed.
type ExitError struct {
	Command string // its first two words
	Status  Status
	Stdout  []byte
	Stderr  []byte
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: %s\n%s", e.Command, e.Status, bytes.TrimSpace(e.Stderr))
}

// Status is how a process ended. The zero Status is success.
type Status struct {
	Code   int    // exit code; -1 if a signal ended it
	Signal string // the signal that ended it, "" if it exited
}

func (s Status) String() string {
	if s.Signal != "" {
		return "signal: " + s.Signal
	}
	return fmt.Sprintf("exit status %d", s.Code)
}

// Spec says how to start a process.
type Spec struct {
	Path string
	Args []string // without the program's name
	Env  []string // in addition to this process's environment
}
