package main

import (
	"orchestrator/modules"
	"orchestrator/modules/chat"
	"orchestrator/modules/counter"
	"orchestrator/modules/hello"
	"orchestrator/modules/kv"
)

// compiledIn is the list of modules in this program. Which of them run, and
// in which order, config/main.yaml says.
var compiledIn = modules.List{
	{Name: "hello", New: hello.New},
	{Name: "counter", New: counter.New},
	{Name: "chat", New: chat.New},
	{Name: "kv", New: kv.New},
}
