//go:build !unix

package serve

import (
	"errors"
	"net"
)

// Pair returns the two ends of a connection between processes.
func Pair() (near, far net.Conn, err error) {
	return nil, nil, errors.New("serve: connections between processes are not supported on this system")
}
