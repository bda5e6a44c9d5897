package main

import (
	"example.org/orchestrator/modules"
	"example.org/orchestrator/modules/chat"
	"example.org/orchestrator/modules/counter"
	"example.org/orchestrator/modules/hello"
	"example.org/orchestrator/modules/kv"
)

// compiledIn is the list of modules in this program. config/main.yaml says which
// of them run, and in which order.
var compiledIn = modules.List{
	{Name: "hello", New: hello.New},
	{Name: "counter", New: counter.New},
	{Name: "chat", New: chat.New},
	{Name: "kv", New: kv.New},
}
