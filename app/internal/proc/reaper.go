//go:build unix

package proc

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
)

// Reaper is the only place that waits for children. wait4(-1) beside os/exec
// would steal exit statuses from it, so os/exec starts nothing here. There is
// one Reaper per process, and it lives as long as the process does.
type Reaper struct {
	start chan startRequest

	mu    sync.Mutex // guards waits and dead; held while a process starts, so that it is not reaped before it is in waits
	waits map[int]chan Status
	dead  map[int]Status // how the last few children ended
}

// maxDead bounds how many exit statuses are remembered.
const maxDead = 64

type startRequest struct {
	path  string
	args  []string
	attr  *syscall.ProcAttr
	reply chan startReply
}

type startReply struct {
	pid    int
	exited chan Status
	err    error
}

// NewReaper makes this process the parent of all descendants whose own parent
// exits, and begins to reap. Nobody waits for its goroutines: they end with the
// process.
func NewReaper() *Reaper {
	r := &Reaper{start: make(chan startRequest), waits: map[int]chan Status{}, dead: map[int]Status{}}
	becomeSubreaper()
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	go r.reapAll(child)
	go r.startAll()
	return r
}

// startAll starts all children from one thread that lives as long as the
// process: the death signal of a child is bound to the thread that made it.
func (r *Reaper) startAll() {
	runtime.LockOSThread()
	for q := range r.start {
		r.mu.Lock()
		pid, err := syscall.ForkExec(q.path, q.args, q.attr)
		reply := startReply{pid: pid, err: err}
		if err == nil {
			reply.exited = make(chan Status, 1)
			r.waits[pid] = reply.exited
		}
		r.mu.Unlock()
		q.reply <- reply
	}
}

func (r *Reaper) reapAll(child <-chan os.Signal) {
	for {
		select {
		case <-child:
		case <-time.After(time.Second): // signals are merged; a look costs nothing
		}
		r.reap()
	}
}

// reap waits for every child that is dead. It reports whether none is left.
// There is no other wait: its status would be lost.
func (r *Reaper) reap() (childless bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return errors.Is(err, syscall.ECHILD)
		}
		if exited := r.waits[pid]; exited != nil {
			exited <- statusOf(status)
			delete(r.waits, pid)
		}
		if len(r.dead) >= maxDead {
			clear(r.dead)
		}
		r.dead[pid] = statusOf(status)
	}
}

func statusOf(s syscall.WaitStatus) Status {
	if s.Signaled() {
		return Status{Code: -1, Signal: s.Signal().String()}
	}
	return Status{Code: s.ExitStatus()}
}

// Exited returns how a child ended; ok is false if it has not, or too long ago.
func (r *Reaper) Exited(pid int) (status Status, ok bool) {
	r.reap()
	r.mu.Lock()
	defer r.mu.Unlock()
	status, ok = r.dead[pid]
	return status, ok
}

// Childless reports whether no child is left, of any generation.
func (r *Reaper) Childless() bool { return r.reap() }

// Start starts a process in a group of its own, with files as its descriptors
// from 0 on. exited receives once, when the process has ended.
func (r *Reaper) Start(s Spec, files ...*os.File) (pid int, exited <-chan Status, err error) {
	return r.spawn(s, false, files)
}

func (r *Reaper) spawn(s Spec, dieWithUs bool, files []*os.File) (pid int, exited <-chan Status, err error) {
	fds := make([]uintptr, 0, len(files))
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return 0, nil, err
		}
		raw.Control(func(fd uintptr) { fds = append(fds, fd) }) // Fd would make it blocking
	}
	attr := &syscall.ProcAttr{Env: environ(s.Env), Files: fds, Sys: processAttr(dieWithUs)}
	q := startRequest{s.Path, append([]string{s.Path}, s.Args...), attr, make(chan startReply)}
	r.start <- q
	reply := <-q.reply
	runtime.KeepAlive(files)
	return reply.pid, reply.exited, reply.err
}

// environ returns this process's environment with env added. Old values of the
// same variables are removed, because a process may take either of two.
func environ(env []string) []string {
	own := slices.DeleteFunc(os.Environ(), func(have string) bool {
		name, _, _ := strings.Cut(have, "=")
		return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	})
	return append(own, env...)
}

// Run is the [Runner] of real processes. What a command leaves behind in its
// process group is killed when it ends, and the command dies with this process.
func (r *Reaper) Run(ctx context.Context, c Command) ([]byte, error) {
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
	pid, exited, err := r.spawn(Spec{Path: path, Args: c.Args[1:], Env: c.Env}, true, []*os.File{null, ends[0], ends[1]})
	ends[0].Close()
	ends[1].Close()
	if err != nil {
		readers.Wait()
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	stop := context.AfterFunc(ctx, func() { KillGroup(pid) })
	status := <-exited
	stop()
	KillGroup(pid) // what it left behind
	readers.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case status != Status{}:
		return nil, &ExitError{Command: c.Args[0] + " " + c.Args[1], Status: status, Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
	}
	return stdout.Bytes(), nil
}

// Kill kills a process.
func Kill(pid int) { syscall.Kill(pid, syscall.SIGKILL) }

// KillGroup kills a process group.
func KillGroup(group int) { syscall.Kill(-group, syscall.SIGKILL) }

// GroupGone reports whether no process is in a group.
func GroupGone(group int) bool { return errors.Is(syscall.Kill(-group, 0), syscall.ESRCH) }

// Terminate asks a process to stop.
func Terminate(pid int) { syscall.Kill(pid, syscall.SIGTERM) }
