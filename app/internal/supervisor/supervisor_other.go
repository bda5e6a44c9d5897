//go:build !unix

package supervisor

import "errors"

// Run returns an error: this system is not supported.
func Run(Options) (int, error) {
	return 1, errors.New("the orchestrator does not run on this system: a process cannot hand its sockets to its successor here; use Linux or macOS")
}
