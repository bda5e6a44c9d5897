package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"time"

	"example.org/orchestrator/handoff/failpoint"
)

// Candidate is the next generation as the serving one sees it.
type Candidate struct {
	link       link // nil before the candidate has connected
	process    process
	protocol   int                                      // the version that both speak
	peer       func(*net.UnixConn) (pid int, err error) // who has connected; nil if that does not matter
	hello      Hello
	room       int           // descriptors free for connections; -1 if unknown
	made       []string      // paths of Unix sockets that only the candidate has made
	commitSent bool          // the commit has been sent
	at         message       // the last progress that the candidate reported
	reported   *UpgradeError // the failure that the candidate itself reported, or nil
	silence    time.Duration // how long it may say nothing before the commit; 0 for any time
	heard      func()        // called when it says something; may be nil
}

// process is the candidate's process, as the old generation sees it.
type process interface {
	// ended is closed when the process is dead and reaped, or has become the
	// serving generation for good. From then on err is nil if it serves, and
	// not nil if it is dead.
	ended() <-chan struct{}
	err() error
	// kill tries to kill the process, which may not exist yet or not be found.
	kill()
	// known records the PID from the hello, which may not be known before.
	known(pid int)
	// sweep kills the processes that it has started, once it is dead.
	sweep()
}

// accept waits for the candidate's connection and its hello.
func (c *Candidate) accept(ctx context.Context, ln *net.UnixListener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends with ctx
		select {
		case <-c.process.ended():
			cancel(errExited)
		case <-ctx.Done():
		}
	}()
	stop := context.AfterFunc(ctx, func() { ln.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := ln.AcceptUnix()
	if err != nil {
		return cause(ctx, err)
	}
	c.link = &socketLink{conn: conn, side: failpoint.Old}
	peer := 0
	if c.peer != nil {
		if peer, err = c.peer(conn); err != nil {
			return err
		}
	}
	return c.greet(ctx, peer)
}

// greet waits for the candidate's hello. peer is the PID at the other end, 0 if
// unknown.
func (c *Candidate) greet(ctx context.Context, peer int) error {
	m, files, err := c.link.receive(ctx)
	closeAll(files)
	switch {
	case err != nil:
		return err
	case m.Type != typeHello || m.Hello == nil:
		return fmt.Errorf("got %q instead of a hello: %w", m.Type, errGarbage)
	case m.MinProtocol > protocol || m.Protocol < minProtocol:
		return fmt.Errorf("the candidate speaks handoff protocol %d to %d, this generation %d to %d: restart run", m.MinProtocol, m.Protocol, minProtocol, protocol)
	}
	if peer != 0 && peer != m.PID {
		return fmt.Errorf("process %d gave its PID as %d: %w", peer, m.PID, errGarbage)
	}
	c.process.known(m.PID)
	c.hello, c.protocol = *m.Hello, min(protocol, m.Protocol)
	return nil
}

var errExited = errors.New("it exited")

// Hello returns what the candidate said about itself.
func (c *Candidate) Hello() Hello { return c.hello }

// reservedFiles is how many descriptors a candidate keeps for everything but
// its connections.
const reservedFiles = 32

// Room returns how many connections the candidate has descriptors for, -1 if
// unknown. It is known once the candidate has prepared.
func (c *Candidate) Room() int { return c.room }

// Welcome answers the hello and waits until the candidate has prepared.
func (c *Candidate) Welcome(ctx context.Context, w Welcome) error {
	if err := c.link.send(ctx, message{Type: typeWelcome, Protocol: c.protocol, Welcome: &w}); err != nil {
		return c.failure(StagePrepare, err)
	}
	return c.expect(ctx, typePrepared, StagePrepare)
}

// Watch gives up on the candidate, before the commit, if it says nothing for silence;
// it announces each hook that it calls. heard is called whenever it says something.
func (c *Candidate) Watch(silence time.Duration, heard func()) { c.silence, c.heard = silence, heard }

// TakesDoubtful reports whether the candidate can take the states of some modules
// after those of the others.
func (c *Candidate) TakesDoubtful() bool { return c.protocol >= protocolDoubtful }

// Transfer passes the states to the candidate, and waits until it has them if the
// states of modules in doubtful are to follow. Afterwards states can be read but
// not added to.
func (c *Candidate) Transfer(ctx context.Context, states *States, doubtful []string) error {
	seal(states.file)
	if err := c.link.send(ctx, message{Type: typeStates, States: states.infos, Doubtful: doubtful}, states.file); err != nil {
		return c.failure(StageRestore, err)
	}
	if len(doubtful) == 0 {
		return nil
	}
	return c.expect(ctx, typeReceived, StageRestore)
}

// TransferDoubtful passes the state of one of the doubtful modules, or says why it
// is lost: then states is nil.
func (c *Candidate) TransferDoubtful(ctx context.Context, module string, states *States, lost error) error {
	m := message{Type: typeDoubtful, Module: module}
	var files []file
	if lost != nil {
		m.Error = lost.Error()
	} else {
		m.States, files = states.infos, append(files, states.file)
	}
	if err := c.link.send(ctx, m, files...); err != nil {
		return c.failure(StageRestore, err)
	}
	return nil
}

// AwaitHealthy waits until the candidate's modules have got their states, and are
// initialized and healthy.
func (c *Candidate) AwaitHealthy(ctx context.Context) error {
	return c.expect(ctx, typeHealthy, StageInitialize)
}

// Commit gives everything to the candidate and waits until it accepts
// connections.
func (c *Candidate) Commit(ctx context.Context, commit Commit) error {
	c.at = message{} // earlier progress no longer says where it is
	if err := c.link.send(ctx, message{Type: typeCommit, Commit: &commit}); err != nil {
		return c.failure(StageCommit, err)
	}
	c.commitSent = true
	return c.expect(ctx, typeAccepting, StageCommit)
}

// Committed reports whether the commit has been sent, so that the candidate may
// serve.
func (c *Candidate) Committed() bool { return c.commitSent }

// Move passes connections to the candidate and closes those that it has taken.
// After an error the candidate is dead, and left holds the others, which remain the
// caller's.
func (c *Candidate) Move(ctx context.Context, conns []Conn) (left []Conn, err error) {
	if left, err = sendConns(ctx, c.link, conns); err == nil {
		err = c.link.send(ctx, message{Type: typeEnd})
	}
	if err == nil {
		return nil, nil
	}
	failure := c.failure(StageCommit, err)
	c.killProcess()
	return lateAck(c.link, left), failure
}

// ReturnedError is the error of an unhealthy candidate that handed everything
// back.
type ReturnedError struct {
	*UpgradeError
	States *States // the caller's to close
}

// ProbationTimes are how long a probation lasts, how long the candidate may
// take to answer a health check, and how long to give everything back if it is
// unhealthy. OnUnhealthy is called before it gives anything back, and must see to it
// that nothing is forwarded to the candidate any more.
type ProbationTimes struct {
	Length, Answer, HandBack time.Duration
	OnUnhealthy              func()
}

// Probation checks the candidate's health while it serves, at intervals and
// once more when the time is over. When expedite is closed it returns nil at once.
// The error is a [*ReturnedError] if the candidate was unhealthy and gave
// everything back; after any other error the candidate cannot be trusted.
func (c *Candidate) Probation(ctx context.Context, times ProbationTimes, expedite <-chan struct{}) error {
	over := time.After(times.Length)
	for last := times.Length == 0; ; {
		if err := c.checkHealth(ctx, times); err != nil || last {
			return err
		}
		select {
		case <-time.After(times.Length / 5):
		case <-over:
			last = true
		case <-expedite:
			return nil
		case <-c.process.ended():
			return c.failure(StageProbation, errExited)
		case <-ctx.Done():
			return c.failure(StageProbation, context.Cause(ctx))
		}
	}
}

// checkHealth makes one health check.
func (c *Candidate) checkHealth(parent context.Context, times ProbationTimes) error {
	ctx, cancel := context.WithTimeout(parent, times.Answer)
	defer cancel()
	if err := c.link.send(ctx, message{Type: typeCheck}); err != nil {
		return c.failure(StageProbation, err)
	}
	m, files, err := c.link.receive(ctx)
	if err == nil && m.Type == typeUnhealthy {
		closeAll(files)
		times.OnUnhealthy()
		ctx, cancel := context.WithTimeout(parent, times.HandBack)
		defer cancel()
		if err := c.link.send(ctx, message{Type: typeForwardsNothing}); err != nil {
			return c.failure(StageProbation, err)
		}
		m, files, err = c.link.receive(ctx)
	}
	switch {
	case err != nil:
		return c.failure(StageProbation, err)
	case m.Type == typeIsHealthy:
		closeAll(files)
		return nil
	case m.Type == typeReturned:
		states, err := receivedStates(files, m.States)
		if err != nil {
			return c.failure(StageProbation, err)
		}
		c.reported = &UpgradeError{Stage: m.Stage, Module: m.Module, Err: errors.New(m.Error)}
		return &ReturnedError{c.reported, states}
	default:
		closeAll(files)
		return c.failure(StageProbation, fmt.Errorf("got %q instead of an answer to the health check: %w", m.Type, errGarbage))
	}
}

// TakeBack tells a candidate that has given everything back that this
// generation serves again. It passes the candidate's connections to adopt,
// which takes responsibility for them, and counts them in n.
func (c *Candidate) TakeBack(ctx context.Context, adopt func([]Conn)) (n int, err error) {
	if err := c.link.send(ctx, message{Type: typeServesAgain}); err != nil {
		return 0, err
	}
	return receiveConns(ctx, c.link, adopt)
}

// Finish ends the probation and waits until the candidate is final; early says
// that the probation ended early. The caller may then exit.
func (c *Candidate) Finish(ctx context.Context, early bool) error {
	if err := c.link.send(ctx, message{Type: typeFinal, Early: early}); err != nil {
		return c.failure(StageReady, err)
	}
	select {
	case <-c.process.ended():
		if c.process.err() != nil {
			return c.failure(StageReady, errExited)
		}
	case <-ctx.Done():
		return c.failure(StageReady, context.Cause(ctx))
	}
	// The candidate serves whether or not this arrives.
	c.link.send(ctx, message{Type: typeReady})
	return nil
}

// Final reports whether the candidate is final: it serves for good, and this
// process cannot upgrade any more.
func (c *Candidate) Final() bool {
	select {
	case <-c.process.ended():
		return c.process.err() == nil
	default:
		return false
	}
}

// Kill makes sure that the candidate is dead and reaped, and removes the Unix
// sockets that only it had made. A candidate that is final is left alone.
func (c *Candidate) Kill() {
	c.killProcess()
	c.close()
}

func (c *Candidate) killProcess() {
	defer func() {
		if c.process.err() != nil {
			c.process.sweep()
		}
	}()
	for {
		select {
		case <-c.process.ended():
			return
		default:
		}
		c.process.kill()
		select {
		case <-c.process.ended():
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// AwaitExit gives a candidate that has reported its own failure until the end of
// ctx to exit by itself, so that its modules can clean up, and then kills it. A
// candidate that has reported nothing is killed at once.
func (c *Candidate) AwaitExit(ctx context.Context) {
	if c.reported != nil {
		select {
		case <-c.process.ended():
		case <-ctx.Done():
		}
	}
	c.Kill()
}

// Dismiss ends the conversation with a candidate that has prepared, gives it
// until the end of ctx to exit by itself, and then kills it.
func (c *Candidate) Dismiss(ctx context.Context) {
	c.link.close()
	select {
	case <-c.process.ended():
	case <-ctx.Done():
	}
	c.Kill()
}

func (c *Candidate) close() {
	if c.link != nil {
		c.link.close()
	}
	if !c.Final() {
		for _, path := range c.made {
			os.Remove(path)
		}
	}
}

// Collect closes what failed upgrades have left: tableflip leaves two descriptors of
// each to the garbage collector. It takes as long as two collections.
func Collect() {
	runtime.GC()
	runtime.GC()
}

// expect receives messages until the wanted one comes.
func (c *Candidate) expect(ctx context.Context, want, stage string) error {
	for {
		m, files, err := c.hear(ctx)
		closeAll(files)
		if err != nil {
			return c.failure(stage, err)
		}
		for _, path := range m.UnixPaths {
			if !slices.Contains(c.made, path) {
				c.made = append(c.made, path)
			}
		}
		switch m.Type {
		case typeProgress:
			c.at = m
		case typeFailed:
			c.reported = &UpgradeError{Stage: m.Stage, Module: m.Module, Err: errors.New(m.Error)}
			return c.reported
		case want:
			if m.FreeFiles != nil {
				c.room = max(0, *m.FreeFiles-reservedFiles)
			}
			return nil
		default:
			return c.failure(stage, fmt.Errorf("got %q while waiting for %q: %w", m.Type, want, errGarbage))
		}
	}
}

// hear waits for the next message.
func (c *Candidate) hear(ctx context.Context) (m message, files []file, err error) {
	if c.silence > 0 && !c.commitSent {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.silence)
		defer cancel()
	}
	m, files, err = c.link.receive(ctx)
	if c.heard != nil {
		c.heard()
	}
	return m, files, err
}

// failure adds to err, as far as is known, where the candidate was and how it
// ended. It waits up to a second for the process to end.
func (c *Candidate) failure(stage string, err error) error {
	e := &UpgradeError{Stage: stage, Err: err}
	if c.at.Stage != "" {
		e.Stage, e.Module = c.at.Stage, c.at.Module
	}
	if errors.Is(err, context.DeadlineExceeded) {
		e.Err = fmt.Errorf("the candidate did not answer in time: %w", err)
		return e
	}
	if !gone(err) && !errors.Is(err, errExited) {
		return e
	}
	select {
	case <-c.process.ended():
		if c.process.err() != nil {
			e.Err = fmt.Errorf("the candidate exited (%w); what it printed, if anything, is above", c.process.err())
		}
	case <-time.After(time.Second):
	}
	return e
}
