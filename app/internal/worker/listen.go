package worker

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"

	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/wire"
	"example.org/orchestrator/config"
	"example.org/orchestrator/handoff"
)

// loadTLS reads the certificate for HTTP. It returns nil if there is none.
func loadTLS(cfg *config.Config) (*tls.Config, error) {
	files := cfg.App.TLS
	if files == (config.TLS{}) {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return nil, cfg.ErrorAt("app.tls", "%v", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}, nil
}

// bind opens or inherits the listeners.
func (g *generation) bind() error {
	g.listen = map[string]string{}
	if err := g.bindAll(); err != nil {
		return err
	}
	for _, l := range g.listeners {
		others, closed, err := g.upgrader.Others(l.ln)
		if err != nil {
			return fault(handoff.StagePrepare, l.owner, fmt.Errorf("inherit a listener: %w", err))
		}
		for _, other := range others {
			g.server.Listen(l.owner, other)
		}
		if closed {
			g.untilFinal = append(g.untilFinal, others...)
		}
	}
	return nil
}

// ownedListener is a listener with its module, or "" for HTTP.
type ownedListener struct {
	owner string
	ln    net.Listener
}

func (g *generation) bindAll() error {
	if err := g.listenOn("", "app.listen", g.cfg.App.Listen); err != nil {
		return err
	}
	for i, m := range g.cfg.Modules {
		if m.Listen == "" {
			continue
		}
		if err := g.listenOn(m.Name, fmt.Sprintf("modules[%d].listen", i), m.Listen); err != nil {
			return err
		}
	}
	return nil
}

// listenOn opens or inherits one listener; owner is a module, or "" for HTTP.
func (g *generation) listenOn(owner, key, text string) error {
	network, address, err := config.SplitAddress(text)
	if err != nil {
		return fault(handoff.StageConfig, owner, g.cfg.ErrorAt(key, "%v", err))
	}
	ln, err := g.upgrader.Listen(owner, network, address)
	if err != nil && strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) { // tableflip does not wrap the error
		if info, statErr := os.Lstat(address); network == "unix" && statErr == nil && info.Mode()&os.ModeSocket == 0 {
			return fault(handoff.StagePrepare, owner, fmt.Errorf("%s: %s exists and is not a socket: move it away or change %s in %s", key, text, key, g.cfg.File()))
		}
		if runtime.GOOS != "linux" && g.upgrader.HasPredecessor() {
			return fault(handoff.StagePrepare, owner, fmt.Errorf("%s: %s is taken, by another program or by this one under another host, which only a restart can change", key, text))
		}
		return fault(handoff.StagePrepare, owner, fmt.Errorf("%s: %s is taken by another program: stop that one or change %s in %s", key, text, key, g.cfg.File()))
	}
	if err != nil {
		return fault(handoff.StagePrepare, owner, fmt.Errorf("%s: %w", key, err))
	}
	g.listen[owner] = ln.Addr().String()
	if owner == "" && g.cfg.App.TLS != (config.TLS{}) {
		g.listen[owner] = "https://" + g.listen[owner]
	}
	if network == "unix" {
		g.listen[owner] = "unix://" + address
	}
	g.listeners = append(g.listeners, ownedListener{owner, ln})
	g.server.Listen(owner, ln)
	return nil
}

// closeReplaced closes the listeners of earlier generations on more addresses than
// this one is to serve.
func (g *generation) closeReplaced() {
	for _, ln := range g.untilFinal {
		ln.Close()
	}
	g.untilFinal = nil
}

// passSockets gives the supervisor duplicates of the listening sockets, in the
// background: if this process dies, clients queue on them until the next one serves.
func (g *generation) passSockets() {
	keys, files, err := g.upgrader.Sockets()
	if err != nil {
		g.log.Warn("a crash of this generation will refuse connections", "err", err)
		return
	}
	m := control.Message{Type: control.TypeSockets}
	for i, key := range keys {
		m.Sockets = append(m.Sockets, control.Socket{Key: key, HTTP: i == 0 && g.cfg.App.TLS == config.TLS{}}) // app.listen is the first
	}
	go func() { // ends with the answer, or the supervisor
		defer func() {
			for _, f := range files {
				f.Close()
			}
		}()
		err := func() error {
			link, err := wire.Dial(wire.Socket(g.opts.RunDir), wire.Hello{Role: wire.RoleSockets, Generation: g.number})
			if err != nil {
				return err
			}
			defer link.Close()
			var known control.Message
			if err := link.Receive(&known); err != nil {
				return err
			}
			return link.SendFiles(m, files)
		}()
		if err != nil {
			g.log.Warn("a crash of this generation will refuse connections", "err", err)
		}
	}()
}
