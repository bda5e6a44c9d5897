package main

import (
	"example.org/orchestrator/modules"
	"example.org/orchestrator/modules/chat"
	"example.org/orchestrator/modules/counter"
	"example.org/orchestrator/modules/hello"
	"example.org/orchestrator/modules/kv"
)

// compiledIn is the list of modules in this program. Which of them run, and
// in which order, config/main.yaml says.
var compiledIn = modules.List{
	{Name: "hello", New: hello.New},
	{Name: "counter", New: counter.New},
	{Name: "chat", New: chat.New},
	{Name: "kv", New: kv.New},
}
