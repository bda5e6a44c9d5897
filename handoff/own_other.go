//go:build !linux

package handoff

import "net"

// ownedSockets returns nothing: here the host of a port changes with a restart only.
func ownedSockets(int) []owned { return nil }

func (s owned) listener() (net.Listener, error) { return nil, errNotOwned }

func share(int) error { return errNotOwned }

func listenShared(string) (net.Listener, error) { return nil, errNotOwned }

func bindShared(*net.TCPAddr) (net.Listener, error) { return nil, errNotOwned }

func listen(net.Listener) error { return errNotOwned }
