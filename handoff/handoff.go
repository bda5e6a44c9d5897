// Package handoff moves what must outlive a process from one generation of
// the program to the next: listening sockets, module states, connections.
//
// The serving generation starts a candidate with [Upgrader.Start] and talks to
// it as a [Candidate]; the candidate talks back as a [Predecessor]. Listening
// sockets are inherited through tableflip; the rest crosses a socket that the
// candidate dials, so that each side sees at once when the other dies.
//
// Before the commit the old generation owns everything, and nothing that
// happens to the candidate changes that: [Candidate.Kill] makes sure that it is
// dead, so that modules can start again in the old process. After the commit
// the candidate owns everything.
//
// The package knows nothing of HTTP or of modules: states are bytes with a
// name, connections are descriptors.
package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cloudflare/tableflip"
)

const (
	envSocket     = "ORCHESTRATOR_HANDOFF"
	envGeneration = "ORCHESTRATOR_GENERATION"
	envSentinel   = "TABLEFLIP_HAS_PARENT_7DIU3" // tableflip's own

	// envLock names the descriptor that holds the lock of the run_dir in a
	// first generation; later generations inherit the lock through tableflip.
	envLock  = "ORCHESTRATOR_LOCK_FD"
	lockFile = "lock"

	// envSockets names listening sockets that a first generation inherits from the
	// supervisor: it has kept them when the last one died.
	envSockets = "ORCHESTRATOR_SOCKETS"
)

// Upgrader is a process's part in handoffs. There is one per process.
type Upgrader struct {
	tf         *tableflip.Upgrader
	socket     string // path of the predecessor's handoff socket, "" in a first generation
	generation int
	lock       *os.File
	origin     string   // for the next generation, see [origin]
	dir        startDir // relative paths of the supervisor begin there
	unixPaths  []string // paths of Unix sockets that this process has made

	kept      map[string]*os.File // listening sockets that the supervisor has kept, by key
	listening []socket            // those that this process has
	remade    []string
	bound     []net.Listener // those that listen when this generation takes over
}

// socket is a listening socket.
type socket struct {
	key string
	ln  net.Listener
}

// New claims what the process inherited. It must be called once, early.
func New() (*Upgrader, error) {
	from := claimOrigin()
	ownGroup()
	// Where a child can be found and killed by its PID (Linux), tableflip's own
	// timeout is not needed.
	timeout := 24 * time.Hour
	if runtime.GOOS != "linux" {
		timeout = time.Minute
	}
	tf, err := tableflip.New(tableflip.Options{UpgradeTimeout: timeout})
	if errors.Is(err, tableflip.ErrNotSupported) {
		return nil, ErrNotSupported
	}
	if err != nil {
		return nil, fmt.Errorf("handoff: claim what was inherited: %w", err)
	}
	os.Unsetenv(envSentinel)
	u := &Upgrader{tf: tf, origin: from, dir: currentDir()}
	u.generation, _ = strconv.Atoi(os.Getenv(envGeneration))
	os.Unsetenv(envGeneration)
	if tf.HasParent() {
		u.socket = os.Getenv(envSocket)
		closeOnExec(3, 4) // tableflip's pipes
		u.lock, err = tf.File(lockFile)
		if err != nil {
			return nil, fmt.Errorf("handoff: inherit the lock: %w", err)
		}
	} else if fd, err := strconv.Atoi(os.Getenv(envLock)); err == nil {
		closeOnExec(fd)
		u.lock = os.NewFile(uintptr(fd), lockFile)
		if err := tf.AddFile(lockFile, u.lock); err != nil {
			return nil, fmt.Errorf("handoff: keep the lock: %w", err)
		}
	}
	u.takeKept()
	os.Unsetenv(envSocket)
	os.Unsetenv(envLock)
	os.Unsetenv(envSockets)
	os.Unsetenv(envOrigin)
	return u, nil
}

// takeKept claims the sockets that the supervisor has kept.
func (u *Upgrader) takeKept() {
	var kept keptSockets
	if json.Unmarshal([]byte(os.Getenv(envSockets)), &kept) != nil {
		return
	}
	u.kept = map[string]*os.File{}
	for i, key := range kept.Keys {
		fd := kept.First + i
		closeOnExec(fd)
		u.kept[key] = os.NewFile(uintptr(fd), key)
	}
}

// keptSockets are the keys of sockets on consecutive descriptors.
type keptSockets struct {
	First int      `json:"first"`
	Keys  []string `json:"keys"`
}

// dropKept closes the kept sockets that nobody has claimed.
func (u *Upgrader) dropKept() {
	for _, f := range u.kept {
		f.Close()
	}
	u.kept = nil
}

// Sockets returns duplicates of all listening sockets and a key for each, by which a
// later first generation finds it: see [FirstEnv]. The caller must close them.
func (u *Upgrader) Sockets() (keys []string, files []*os.File, err error) {
	for _, s := range u.listening {
		l, ok := s.ln.(interface{ File() (*os.File, error) })
		if !ok {
			continue
		}
		f, err := l.File()
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, nil, fmt.Errorf("handoff: duplicate a listening socket: %w", err)
		}
		keys, files = append(keys, s.key), append(files, f)
	}
	return keys, files, nil
}

// FirstEnv returns the environment variables that make a process a first
// generation, with number n, that holds the lock on descriptor lockFD. The
// descriptors behind that are the listening sockets with these keys.
func FirstEnv(n, lockFD int, sockets []string) []string {
	// This program may itself have been started by one that uses tableflip.
	env := []string{envGeneration + "=" + strconv.Itoa(n), envLock + "=" + strconv.Itoa(lockFD), envSentinel + "=", envOrigin + "="}
	// Without links, which may mean another folder when the next generation starts:
	// tableflip starts it where this one believes to be.
	if dir, err := os.Getwd(); err == nil {
		if folder, err := filepath.EvalSymlinks(dir); err == nil {
			env = append(env, "PWD="+folder)
		}
	}
	if len(sockets) > 0 {
		text, _ := json.Marshal(keptSockets{lockFD + 1, sockets}) // only text and a number
		env = append(env, envSockets+"="+string(text))
	}
	return env
}

// Generation returns the number this process was given when it started.
func (u *Upgrader) Generation() int { return u.generation }

// HasPredecessor reports whether another generation started this process.
func (u *Upgrader) HasPredecessor() bool { return u.tf.HasParent() }

// Listen returns the inherited listener of this address, or makes one. owner
// distinguishes listeners whose port is chosen by the system.
func (u *Upgrader) Listen(owner, network, address string) (net.Listener, error) {
	key := address
	if strings.HasSuffix(address, ":0") {
		key = owner + "@" + address
	}
	name := network + " " + key
	if network == "unix" {
		if err := u.forgetRemoved(address); err != nil {
			return nil, err
		}
	}
	ln, err := u.tf.ListenWithCallback(network, key, func(network, _ string) (net.Listener, error) {
		if f := u.kept[name]; f != nil {
			delete(u.kept, name)
			defer f.Close()
			return net.FileListener(f)
		}
		ln, err := net.Listen(network, address)
		if network == "unix" && inUse(err) && abandoned(address) {
			os.Remove(address)
			ln, err = net.Listen(network, address)
		}
		if network == "unix" && err == nil {
			u.unixPaths = append(u.unixPaths, address)
		}
		if network == "tcp" && inUse(err) {
			beside, besideErr := u.listenBeside(address)
			if !errors.Is(besideErr, errNotOwned) {
				return beside, besideErr
			}
		}
		return ln, err
	})
	if err == nil {
		u.listening = append(u.listening, socket{name, ln})
	}
	return ln, err
}

// forgetRemoved gives an inherited Unix listener up if its file was removed: nobody
// can connect to it any more. Listen then makes another.
func (u *Upgrader) forgetRemoved(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return nil
	}
	name := "unix " + path
	if f := u.kept[name]; f != nil {
		delete(u.kept, name)
		f.Close()
		u.remade = append(u.remade, path)
	}
	old, err := u.tf.Listener("unix", path)
	if err != nil || old == nil {
		return err
	}
	u.remade = append(u.remade, path)
	return old.Close()
}

// Remade returns the paths of Unix listeners whose files were removed, and which Listen
// has made again.
func (u *Upgrader) Remade() []string { return u.remade }

// abandoned reports whether path is a Unix socket on which nobody listens.
func abandoned(path string) bool {
	if info, err := os.Lstat(path); err != nil || info.Mode()&os.ModeSocket == 0 {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// Ready completes the start of a first generation.
func (u *Upgrader) Ready() error {
	err := u.Open()
	u.dropKept()
	return errors.Join(err, u.tf.Ready())
}

// Stop unlinks Unix sockets and prevents further upgrades. It is for the end of
// the program only: in a generation that was replaced, or that has not taken
// over, it would do harm.
func (u *Upgrader) Stop() {
	u.tf.Stop()
	select {
	case <-u.tf.Exit(): // its loop has unlinked them
	case <-time.After(time.Second):
	}
}

// Start runs binary as the next generation, with number n, and waits for its
// hello. An error means that no process is left.
func (u *Upgrader) Start(ctx context.Context, binary, runDir string, n int) (*Candidate, error) {
	if err := u.waitForParent(ctx); err != nil {
		return nil, &UpgradeError{Stage: StageStart, Err: err}
	}
	path := fmt.Sprintf("%s/handoff-%d-%d.sock", runDir, os.Getpid(), n) // as the candidate sees it
	mine := u.dir.here(path)
	os.Remove(mine)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: mine, Net: "unix"})
	if err != nil {
		return nil, &UpgradeError{Stage: StageStart, Err: fmt.Errorf("make the handoff socket in run_dir: %w", err)}
	}
	defer ln.Close() // also unlinks it
	if err := os.Chmod(mine, 0o600); err != nil {
		return nil, &UpgradeError{Stage: StageStart, Err: err}
	}
	child := &child{socket: path, exited: make(chan struct{})}
	c := &Candidate{room: -1, process: child, peer: peerPID}
	if _, err := os.Stat(binary); err != nil {
		return nil, &UpgradeError{Stage: StageStart, Err: fmt.Errorf("the binary: %w", err)}
	}
	// tableflip starts os.Args[0] with this environment. Both are put back when
	// its Upgrade returns.
	os.Setenv(envSocket, path)
	os.Setenv(envGeneration, strconv.Itoa(n))
	if len(u.origin) <= maxOrigin {
		os.Setenv(envOrigin, u.origin)
	}
	program := os.Args[0]
	os.Args[0] = binary
	go func() { // ends with the child, which Candidate.Kill waits for
		child.result = u.upgrade()
		os.Args[0] = program
		os.Unsetenv(envSocket)
		os.Unsetenv(envGeneration)
		os.Unsetenv(envOrigin)
		close(child.exited)
	}()
	if err := c.accept(ctx, ln); err != nil {
		c.Kill()
		return nil, c.failure(StageStart, err)
	}
	return c, nil
}

// child is the process of a candidate.
type child struct {
	socket string        // path it was told to dial
	exited chan struct{} // closed when tableflip's Upgrade has returned
	result error         // error of Upgrade; valid once exited is closed
	pid    int           // 0 before its hello
}

func (c *child) ended() <-chan struct{} { return c.exited }
func (c *child) err() error             { return c.result }
func (c *child) known(pid int)          { c.pid = pid }

// kill kills the process. One that hangs before its hello is found among the
// children.
func (c *child) kill() {
	if c.pid == 0 {
		c.pid = findChild(envSocket+"="+c.socket, envSentinel+"=")
	}
	if c.pid != 0 {
		kill(c.pid)
	}
}

// sweep kills what a candidate that is dead has started.
func (c *child) sweep() {
	if c.pid > 1 {
		killGroup(c.pid)
	}
}

func (u *Upgrader) sockets() []string { return u.unixPaths }
func (u *Upgrader) ready() error      { return u.tf.Ready() }

// upgrade runs tableflip's Upgrade. tableflip may notice a moment after us that
// the parent has exited, and refuses until then.
func (u *Upgrader) upgrade() error {
	for range 1000 {
		err := u.tf.Upgrade()
		if err == nil || err.Error() != "parent hasn't exited" {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("the old generation does not exit")
}

// WaitForParent waits until the generation that started this process has exited.
func (u *Upgrader) WaitForParent(ctx context.Context) error { return u.waitForParent(ctx) }

func (u *Upgrader) waitForParent(ctx context.Context) error {
	err := u.tf.WaitForParent(ctx)
	if ctx.Err() != nil {
		return fmt.Errorf("wait for the old generation to exit: %w", context.Cause(ctx))
	}
	_ = err // how the parent ended does not matter, only that it has
	return nil
}
