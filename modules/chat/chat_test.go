package chat_test

import (
	"testing"

	"orchestrator/app/apptest"
	"orchestrator/modules/chat"
)

func TestContract(t *testing.T) { apptest.Run(t, apptest.Case{New: chat.New}) }
