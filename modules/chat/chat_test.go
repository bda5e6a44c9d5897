package chat_test

import (
	"testing"

	"example.org/orchestrator/app/apptest"
	"example.org/orchestrator/modules/chat"
)

func TestContract(t *testing.T) { apptest.Run(t, apptest.Case{New: chat.New}) }
