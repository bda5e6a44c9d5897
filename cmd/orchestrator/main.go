// Command orchestrator runs the modules listed in modules.go and replaces
// itself while it runs.
package main

import "orchestrator/cmd"

func main() { cmd.Main(compiledIn) }
