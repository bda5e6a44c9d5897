package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

// ErrPredecessorGone tells a candidate that the old generation has died.
var ErrPredecessorGone = errors.New("handoff: the old generation is gone")

// Predecessor is the serving generation as its candidate sees it.
type Predecessor struct {
	upgrader *Upgrader
	link     link
}

// Dial connects to the generation that started this process.
func (u *Upgrader) Dial(ctx context.Context) (*Predecessor, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", u.socket)
	if err != nil {
		return nil, fmt.Errorf("handoff: connect to the old generation: %w", err)
	}
	return &Predecessor{upgrader: u, link: link{conn.(*net.UnixConn)}}, nil
}

// Hello introduces the candidate and returns the answer.
func (p *Predecessor) Hello(ctx context.Context, h Hello) (*Welcome, error) {
	err := p.link.send(ctx, message{Type: typeHello, Protocol: protocol, MinProtocol: minProtocol, PID: os.Getpid(), Hello: &h})
	if err != nil {
		return nil, err
	}
	m, err := p.await(ctx, typeWelcome)
	if err != nil {
		return nil, err
	}
	if m.Welcome == nil {
		return nil, fmt.Errorf("handoff: an empty welcome: %w", errGarbage)
	}
	return m.Welcome, nil
}

// Progress tells where the candidate is, so that the old generation can say
// so should it die there. Errors show up at the next step.
func (p *Predecessor) Progress(ctx context.Context, stage, module string) {
	p.link.send(ctx, message{Type: typeProgress, Stage: stage, Module: module})
}

// Prepared says that nothing fallible is left but what needs the states, and
// waits for them.
func (p *Predecessor) Prepared(ctx context.Context) ([]State, error) {
	if err := p.link.send(ctx, message{Type: typePrepared}); err != nil {
		return nil, err
	}
	m, files, err := p.link.receive(ctx)
	defer closeAll(files)
	switch {
	case err != nil:
		return nil, gone(err)
	case m.Type != typeStates || len(files) != 1:
		return nil, fmt.Errorf("handoff: got %q with %d files instead of the states: %w", m.Type, len(files), errGarbage)
	}
	return unpack(files[0], m.States, m.Checksum)
}

// Healthy says that everything runs, and waits for the commit. With
// [ErrPredecessorGone] the candidate holds the only copy of everything and
// goes on as if committed.
func (p *Predecessor) Healthy(ctx context.Context) (*Commit, error) {
	if err := p.link.send(ctx, message{Type: typeHealthy}); err != nil {
		return nil, gone(err)
	}
	m, err := p.await(ctx, typeCommit)
	if err != nil {
		return nil, err
	}
	if m.Commit == nil {
		return nil, fmt.Errorf("handoff: an empty commit: %w", errGarbage)
	}
	return m.Commit, nil
}

// Accepting says that the candidate accepts, and gives each batch of
// connections it is passed to adopt, which takes responsibility for them.
func (p *Predecessor) Accepting(ctx context.Context, adopt func([]net.Conn)) (moved int, err error) {
	if err := p.link.send(ctx, message{Type: typeAccepting}); err != nil {
		return 0, gone(err)
	}
	for {
		m, files, err := p.link.receive(ctx)
		if err != nil {
			return moved, gone(err)
		}
		switch m.Type {
		case typeEnd:
			closeAll(files)
			return moved, nil
		case typeConns:
			conns := make([]net.Conn, 0, len(files))
			for _, f := range files {
				if c, err := net.FileConn(f); err == nil {
					conns = append(conns, c)
				}
				f.Close()
			}
			adopt(conns)
			moved += len(conns)
			if err := p.link.send(ctx, message{Type: typeConns, Conns: len(conns)}); err != nil {
				return moved, gone(err)
			}
		default:
			closeAll(files)
			return moved, fmt.Errorf("handoff: got %q instead of connections: %w", m.Type, errGarbage)
		}
	}
}

// Ready makes the takeover final and waits for the old generation's word.
func (p *Predecessor) Ready(ctx context.Context) error {
	if err := p.upgrader.tf.Ready(); err != nil {
		return gone(err)
	}
	_, err := p.await(ctx, typeReady)
	return err
}

// Fail tells the old generation why the candidate gives up.
func (p *Predecessor) Fail(ctx context.Context, e *UpgradeError) {
	p.link.send(ctx, message{Type: typeFailed, Stage: e.Stage, Module: e.Module, Error: e.Err.Error()})
}

// Close ends the conversation.
func (p *Predecessor) Close() { p.link.conn.Close() }

func (p *Predecessor) await(ctx context.Context, want string) (message, error) {
	m, files, err := p.link.receive(ctx)
	closeAll(files)
	if err != nil {
		return m, gone(err)
	}
	if m.Type != want {
		return m, fmt.Errorf("handoff: got %q while waiting for %q: %w", m.Type, want, errGarbage)
	}
	return m, nil
}
