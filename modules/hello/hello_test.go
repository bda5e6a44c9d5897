package hello_test

import (
	"testing"

	"example.org/orchestrator/app/apptest"
	"example.org/orchestrator/modules/hello"
)

func TestContract(t *testing.T) { apptest.Run(t, apptest.Case{New: hello.New}) }
