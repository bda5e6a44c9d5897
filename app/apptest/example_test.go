package apptest_test

import (
	"context"
	"errors"
	"fmt"

	"example.org/orchestrator/app/apptest"
	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/modules"
)

// forgetful is a module that cannot be shut down.
type forgetful struct{}

func (forgetful) Initialize(context.Context, *eventbus.Bus, modules.Config) error { return nil }
func (forgetful) Shutdown(context.Context) error                                  { return errors.New("which file?") }

func ExampleVerify() {
	errs := apptest.Verify(apptest.Case{New: func() modules.Module { return forgetful{} }})
	fmt.Println(errs[0])
	// Output:
	// Shutdown without Initialize, twice: Shutdown: which file?
	// Shutdown: which file?
}
