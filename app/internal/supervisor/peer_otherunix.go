//go:build unix && !linux

package supervisor

import "net"

// peerUID is not known here: the mode of the socket keeps others out.
func peerUID(net.Conn) (uid int, ok bool) { return 0, false }
