// Command orchestrator runs the modules listed in modules.go and replaces
// itself while it runs.
package main

import "example.org/orchestrator/cmd"

func main() { cmd.Main(compiledIn) }
