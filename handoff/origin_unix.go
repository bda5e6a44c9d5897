//go:build unix

package handoff

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"syscall"
)

// envOrigin carries an origin from generation to generation.
const envOrigin = "ORCHESTRATOR_ORIGIN"

// maxOrigin is as long as a variable may be; the system allows 128 KiB.
const maxOrigin = 120 << 10

// origin is what a first generation has inherited from the supervisor. Every later
// one begins with the same, whatever modules have set in the generation before it.
type origin struct {
	Env   []string `json:"env"`
	Umask int      `json:"umask"`

	Limits map[int]syscall.Rlimit `json:"limits"` // by resource
}

// resources is how many kinds of limits Linux has; others have fewer.
const resources = 16

func limits() map[int]syscall.Rlimit {
	have := map[int]syscall.Rlimit{}
	for i := range resources {
		var l syscall.Rlimit
		if syscall.Getrlimit(i, &l) == nil {
			have[i] = l
		}
	}
	return have
}

// setLimits sets limits as they were. One that was lowered for good stays so.
func setLimits(to map[int]syscall.Rlimit) {
	for i, have := range limits() {
		if want, ok := to[i]; ok && want != have {
			syscall.Setrlimit(i, &want)
		}
	}
}

// ownVariables are those that a generation gives to the next one.
var ownVariables = []string{envSocket, envGeneration, envLock, envSockets, envOrigin, envSentinel}

func isOwn(variable string) bool {
	name, _, _ := strings.Cut(variable, "=")
	return slices.Contains(ownVariables, name)
}

// claimOrigin makes this process what a first generation would be. If its environment
// differs from that of the origin, the process executes itself once more: what the
// Go runtime and packages have read of the environment by now cannot be taken back.
// It must be called before anything inherited is claimed.
func claimOrigin() (text string) {
	text = os.Getenv(envOrigin)
	var o origin
	if text == "" || json.Unmarshal([]byte(text), &o) != nil {
		mask := syscall.Umask(0)
		syscall.Umask(mask)
		o = origin{Env: slices.DeleteFunc(os.Environ(), isOwn), Umask: mask, Limits: limits()}
		data, _ := json.Marshal(o) // only text and a number
		return string(data)
	}
	syscall.Umask(o.Umask)
	setLimits(o.Limits)
	have := slices.DeleteFunc(os.Environ(), isOwn)
	if slices.Equal(slices.Sorted(slices.Values(have)), slices.Sorted(slices.Values(o.Env))) {
		return text
	}
	var own []string
	for _, variable := range os.Environ() {
		if isOwn(variable) {
			own = append(own, variable)
		}
	}
	path, err := os.Executable()
	if err == nil {
		err = syscall.Exec(path, os.Args, append(slices.Clone(o.Env), own...))
	}
	_ = err // it goes on with the environment that it has: better than not at all
	return text
}
