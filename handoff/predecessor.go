package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"example.org/orchestrator/handoff/failpoint"
)

// ErrPredecessorGone means that the old generation has died.
var ErrPredecessorGone = errors.New("handoff: the old generation is gone")

// Predecessor is the serving generation as its candidate sees it.
type Predecessor struct {
	self successor
	link link
}

// successor is what a Predecessor needs of the candidate's own process.
type successor interface {
	sockets() []string // paths of Unix sockets that this process has made
	ready() error      // makes this process the serving generation for good
	waitForParent(ctx context.Context) error
}

// Dial connects to the generation that started this process.
func (u *Upgrader) Dial(ctx context.Context) (*Predecessor, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", u.socket)
	if err != nil {
		return nil, fmt.Errorf("handoff: connect to the old generation: %w", err)
	}
	return &Predecessor{self: u, link: &socketLink{conn: conn.(*net.UnixConn), side: failpoint.Candidate}}, nil
}

// Hello introduces the candidate and returns the answer.
func (p *Predecessor) Hello(ctx context.Context, h Hello) (*Welcome, error) {
	err := p.link.send(ctx, message{Type: typeHello, Protocol: protocol, MinProtocol: minProtocol, PID: os.Getpid(), Hello: &h})
	if err != nil {
		return nil, orGone(err)
	}
	m, err := p.expect(ctx, typeWelcome)
	if err != nil {
		return nil, err
	}
	if m.Welcome == nil || m.Protocol < minProtocol || m.Protocol > protocol {
		return nil, fmt.Errorf("handoff: a welcome with protocol %d, but this build speaks %d to %d: %w", m.Protocol, minProtocol, protocol, errGarbage)
	}
	return m.Welcome, nil
}

// Progress says where the candidate is, so that the old generation can name the
// place if the candidate dies there. An error shows up at the next step.
func (p *Predecessor) Progress(ctx context.Context, stage, module string) {
	p.link.send(ctx, message{Type: typeProgress, Stage: stage, Module: module, UnixPaths: p.self.sockets()})
}

// Prepared says that all is done that may fail and does not need the states, and
// waits for them. The caller must close them. The states of the modules in
// doubtful follow, each by [Predecessor.Doubtful].
func (p *Predecessor) Prepared(ctx context.Context) (states *States, doubtful []string, err error) {
	if err := p.link.send(ctx, message{Type: typePrepared, UnixPaths: p.self.sockets(), FreeFiles: FreeFiles()}); err != nil {
		return nil, nil, orGone(err)
	}
	m, files, err := p.link.receive(ctx)
	switch {
	case err != nil:
		return nil, nil, orGone(err)
	case m.Type != typeStates:
		closeAll(files)
		return nil, nil, fmt.Errorf("handoff: got %q instead of the states: %w", m.Type, errGarbage)
	}
	if states, err = receivedStates(files, m.States); err == nil && len(m.Doubtful) > 0 {
		err = orGone(p.link.send(ctx, message{Type: typeReceived}))
	}
	return states, m.Doubtful, err
}

// LostError says why a doubtful state is lost.
type LostError struct{ Reason string }

func (e *LostError) Error() string { return e.Reason }

// Doubtful waits for the state of one module, which something in the old
// generation may still be writing to. The caller must close it. The error is a
// [*LostError] if that state is lost and the rest follows, and
// [ErrPredecessorGone] if the old generation has died of it: then the candidate
// goes on without the states that it has not got.
func (p *Predecessor) Doubtful(ctx context.Context) (module string, states *States, err error) {
	m, files, err := p.link.receive(ctx)
	switch {
	case err != nil:
		return "", nil, orGone(err)
	case m.Type != typeDoubtful:
		closeAll(files)
		return "", nil, fmt.Errorf("handoff: got %q instead of a doubtful state: %w", m.Type, errGarbage)
	case m.Error != "":
		closeAll(files)
		return m.Module, nil, &LostError{m.Error}
	}
	states, err = receivedStates(files, m.States)
	return m.Module, states, err
}

// Healthy says that everything runs, and waits for the commit. After
// [ErrPredecessorGone] the candidate holds the only copy of everything and goes
// on as if committed.
func (p *Predecessor) Healthy(ctx context.Context) (*Commit, error) {
	if err := p.link.send(ctx, message{Type: typeHealthy}); err != nil {
		return nil, orGone(err)
	}
	m, err := p.expect(ctx, typeCommit)
	if err != nil {
		return nil, err
	}
	if m.Commit == nil {
		return nil, fmt.Errorf("handoff: an empty commit: %w", errGarbage)
	}
	return m.Commit, nil
}

// Accepting says that the candidate accepts connections, and passes each batch
// that it receives to adopt, which takes responsibility for them. moved counts
// them.
func (p *Predecessor) Accepting(ctx context.Context, adopt func([]Conn)) (moved int, err error) {
	if err := p.link.send(ctx, message{Type: typeAccepting}); err != nil {
		return 0, orGone(err)
	}
	moved, err = receiveConns(ctx, p.link, adopt)
	return moved, orGone(err)
}

// Probation answers the old generation's health checks with healthy until the
// probation is over; early reports whether it ended early. An error of healthy is
// returned as it is, and the candidate goes on with [Predecessor.Unhealthy].
func (p *Predecessor) Probation(ctx context.Context, healthy func() *UpgradeError) (early bool, err error) {
	for {
		m, files, err := p.link.receive(ctx)
		closeAll(files)
		switch {
		case err != nil:
			return false, orGone(err)
		case m.Type == typeFinal:
			return m.Early, nil
		case m.Type != typeCheck:
			return false, fmt.Errorf("handoff: got %q during the probation: %w", m.Type, errGarbage)
		}
		if err := healthy(); err != nil {
			return false, err
		}
		if err := p.link.send(ctx, message{Type: typeIsHealthy}); err != nil {
			return false, orGone(err)
		}
	}
}

// Unhealthy says that the candidate is unhealthy and about to give everything
// back, and waits until the old generation forwards nothing to it any more.
func (p *Predecessor) Unhealthy(ctx context.Context) error {
	if err := p.link.send(ctx, message{Type: typeUnhealthy}); err != nil {
		return orGone(err)
	}
	_, err := p.expect(ctx, typeForwardsNothing)
	return err
}

// Return gives the states back, with why as the reason, waits until the old
// generation serves again, and passes it the connections. left holds those that
// it did not take. After an error other than [ErrPredecessorGone] the old
// generation may be serving.
func (p *Predecessor) Return(ctx context.Context, why *UpgradeError, states *States, conns []Conn) (left []Conn, err error) {
	m := message{Type: typeReturned, States: states.infos, Stage: why.Stage, Module: why.Module, Error: why.Err.Error()}
	if err := p.link.send(ctx, m, states.file); err != nil {
		return conns, orGone(err)
	}
	if _, err := p.expect(ctx, typeServesAgain); err != nil {
		return conns, err
	}
	if left, err = sendConns(ctx, p.link, conns); err == nil {
		err = p.link.send(ctx, message{Type: typeEnd})
	}
	return left, orGone(err)
}

// Ready makes the candidate final and waits for the old generation's
// confirmation.
func (p *Predecessor) Ready(ctx context.Context) error {
	if err := p.self.ready(); err != nil {
		return orGone(err)
	}
	_, err := p.expect(ctx, typeReady)
	return err
}

// Gone waits for the old generation to exit.
func (p *Predecessor) Gone(ctx context.Context) error { return p.self.waitForParent(ctx) }

// Fail tells the old generation why the candidate gives up.
func (p *Predecessor) Fail(ctx context.Context, e *UpgradeError) {
	p.link.send(ctx, message{Type: typeFailed, Stage: e.Stage, Module: e.Module, Error: e.Err.Error(), UnixPaths: p.self.sockets()})
}

// Close ends the conversation.
func (p *Predecessor) Close() { p.link.close() }

func (p *Predecessor) expect(ctx context.Context, want string) (message, error) {
	m, files, err := p.link.receive(ctx)
	closeAll(files)
	if err != nil {
		return m, orGone(err)
	}
	if m.Type != want {
		return m, fmt.Errorf("handoff: got %q while waiting for %q: %w", m.Type, want, errGarbage)
	}
	return m, nil
}

// orGone adds [ErrPredecessorGone] to errors which mean that the old generation
// has died.
func orGone(err error) error {
	if err != nil && gone(err) {
		return fmt.Errorf("%w: %w", ErrPredecessorGone, err)
	}
	return err
}
