//go:build unix

package handoff

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

func (l *socketLink) write(b []byte, fds []int) (int, error) {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := l.conn.WriteMsgUnix(b, oob, nil)
	return n, err
}

// read reads the first bytes of a message and the files attached to them.
func (l *socketLink) read(p []byte) (n int, files []file, err error) {
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, size, flags, _, err := l.conn.ReadMsgUnix(p, oob)
	if err != nil {
		return n, nil, err
	}
	control, err := unix.ParseSocketControlMessage(oob[:size])
	if err != nil {
		return n, nil, err
	}
	for i := range control {
		fds, err := unix.ParseUnixRights(&control[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "handoff"))
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		closeAll(files)
		return n, nil, errTruncated
	}
	if n == 0 {
		return n, files, io.EOF
	}
	return n, files, nil
}
