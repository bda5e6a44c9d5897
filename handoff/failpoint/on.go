//go:build failpoints && unix

package failpoint

import (
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

var file = os.Getenv("ORCHESTRATOR_FAILPOINT")

// At performs the action if the file names this place. garbage reports whether
// to replace the message that is about to be sent with garbage.
//
// The actions are exit0, exit1, kill, hang (this goroutine only), stop (the
// whole process, until it is continued), garbage, term=PID, which asks another
// process to stop and goes on, termall=PID, which also asks every process of this
// one's group to, and files=N, which lets this process open only N
// more descriptors and goes on.
func At(side, when, what string) (garbage bool) {
	if file == "" {
		return false
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	place, action, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	if place != side+"."+when+"."+what || os.Remove(file) != nil {
		return false
	}
	switch name, argument, _ := strings.Cut(action, "="); name {
	case "exit0":
		os.Exit(0)
	case "exit1":
		os.Exit(1)
	case "kill":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "hang":
		select {}
	case "stop":
		continued := make(chan os.Signal, 1)
		signal.Notify(continued, syscall.SIGCONT)
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		<-continued // the stop reaches this thread only a moment later
	case "garbage":
		return true
	case "term":
		pid, _ := strconv.Atoi(argument)
		syscall.Kill(pid, syscall.SIGTERM)
	case "termall":
		pid, _ := strconv.Atoi(argument)
		syscall.Kill(pid, syscall.SIGTERM)
		syscall.Kill(0, syscall.SIGTERM)
	case "files":
		n, _ := strconv.Atoi(argument)
		open, _ := os.ReadDir("/dev/fd")
		limit := syscall.Rlimit{Cur: uint64(len(open) + n), Max: uint64(len(open) + n)}
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	default:
		panic("failpoint: no action is called " + action)
	}
	return false
}
