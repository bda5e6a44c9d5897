package hello_test

import (
	"testing"

	"orchestrator/app/apptest"
	"orchestrator/modules/hello"
)

func TestContract(t *testing.T) { apptest.Run(t, apptest.Case{New: hello.New}) }
