package contract

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// ErrPanicked marks a panic that [Protect] has turned into an error.
var ErrPanicked = errors.New("panicked")

// Protect calls f, which is author's code, and turns a panic into an error that
// begins with what and ends with the stack.
func Protect(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s %w: %v\n%s", what, ErrPanicked, p, debug.Stack())
		}
	}()
	return f()
}
