package worker

import (
	"bytes"
	"os"
)

// debugged reports whether a debugger holds this process: then no hook is late.
func debugged() bool {
	status, err := os.ReadFile("/proc/self/status")
	return err == nil && bytes.Contains(status, []byte("\nTracerPid:")) && !bytes.Contains(status, []byte("\nTracerPid:\t0\n"))
}
