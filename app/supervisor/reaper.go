//go:build unix

package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"orchestrator/app/build"
)

// reaper is the only place that waits for children, be they started here or
// inherited from a worker that has exited: wait4(-1) beside os/exec would
// steal statuses from it, so os/exec is not used.
type reaper struct {
	start chan startRequest
	mu    sync.Mutex // guards waits; held while a process starts, so that none is reaped unknown
	waits map[int]chan syscall.WaitStatus
	dead  map[int]syscall.WaitStatus // how the last few have ended
}

type startRequest struct {
	path  string
	args  []string
	attr  *syscall.ProcAttr
	reply chan startReply
}

type startReply struct {
	pid  int
	done chan syscall.WaitStatus
	err  error
}

func newReaper() *reaper {
	r := &reaper{start: make(chan startRequest), waits: map[int]chan syscall.WaitStatus{}, dead: map[int]syscall.WaitStatus{}}
	becomeSubreaper()
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	go r.run(child)
	go r.starter()
	return r
}

// starter starts all children from one thread that lives as long as the
// process: the death signal of a child is bound to the thread that made it.
func (r *reaper) starter() {
	runtime.LockOSThread()
	for q := range r.start {
		r.mu.Lock()
		pid, err := syscall.ForkExec(q.path, q.args, q.attr)
		reply := startReply{pid: pid, err: err}
		if err == nil {
			reply.done = make(chan syscall.WaitStatus, 1)
			r.waits[pid] = reply.done
		}
		r.mu.Unlock()
		q.reply <- reply
	}
}

func (r *reaper) run(child <-chan os.Signal) {
	for {
		select {
		case <-child:
		case <-time.After(time.Second): // signals are merged; a look costs nothing
		}
		r.reap()
	}
}

func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if done := r.waits[pid]; done != nil {
			done <- status
			delete(r.waits, pid)
		}
		if len(r.dead) >= 64 {
			clear(r.dead)
		}
		r.dead[pid] = status
	}
}

// status tells how a child has ended, if it has.
func (r *reaper) status(pid int) (status syscall.WaitStatus, ok bool) {
	r.reap()
	r.mu.Lock()
	defer r.mu.Unlock()
	status, ok = r.dead[pid]
	return status, ok
}

// childless tells whether no child is left, of whatever generation.
func (r *reaper) childless() bool {
	r.reap()
	var status syscall.WaitStatus
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
	return errors.Is(err, syscall.ECHILD)
}

// spawn starts a process in a group of its own.
func (r *reaper) spawn(path string, args, env []string, dieWithUs bool, files ...*os.File) (int, chan syscall.WaitStatus, error) {
	fds := make([]uintptr, 0, len(files))
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return 0, nil, err
		}
		raw.Control(func(fd uintptr) { fds = append(fds, fd) }) // Fd would make it blocking
	}
	attr := &syscall.ProcAttr{Env: environ(env), Files: fds, Sys: processAttr(dieWithUs)}
	q := startRequest{path, append([]string{path}, args...), attr, make(chan startReply)}
	r.start <- q
	reply := <-q.reply
	runtime.KeepAlive(files)
	return reply.pid, reply.done, reply.err
}

// environ is this process's environment with env in it. Of a variable that is
// there twice, a process may take either.
func environ(env []string) []string {
	own := slices.DeleteFunc(os.Environ(), func(have string) bool {
		name, _, _ := strings.Cut(have, "=")
		return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	})
	return append(own, env...)
}

// command runs a build's command: see [build.Runner].
func (r *reaper) command(ctx context.Context, c build.Command) ([]byte, error) {
	path, err := exec.LookPath(c.Args[0])
	if err != nil {
		return nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	var stdout, stderr bytes.Buffer
	var readers sync.WaitGroup
	ends := make([]*os.File, 2)
	for i, buffer := range []*bytes.Buffer{&stdout, &stderr} {
		read, write, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer write.Close()
		ends[i] = write
		readers.Go(func() {
			io.Copy(buffer, read)
			read.Close()
		})
	}
	pid, done, err := r.spawn(path, c.Args[1:], c.Env, true, null, ends[0], ends[1])
	ends[0].Close()
	ends[1].Close()
	if err != nil {
		readers.Wait()
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	stop := context.AfterFunc(ctx, func() { syscall.Kill(-pid, syscall.SIGKILL) })
	status := <-done
	stop()
	syscall.Kill(-pid, syscall.SIGKILL) // what it left behind
	readers.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case status.ExitStatus() != 0:
		return nil, &build.ExitError{Command: c.Args[0] + " " + c.Args[1], Status: describe(status), Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
	}
	return stdout.Bytes(), nil
}

func describe(s syscall.WaitStatus) string {
	if s.Signaled() {
		return "signal: " + s.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}
