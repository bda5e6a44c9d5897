//go:build unix

package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

const (
	maxFiles    = 253     // that a message can carry
	maxFileLine = 1 << 20 // bytes of a message with files
)

// SendFiles writes one message with files, which stay open here. The other end must
// be waiting in [Conn.ReceiveFiles]: say so before, in a message of your own.
func (c *Conn) SendFiles(message any, files []*os.File) error {
	if len(files) > maxFiles {
		return fmt.Errorf("control: send %d files: at most %d fit into a message", len(files), maxFiles)
	}
	line, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("control: encode: %w", err)
	}
	u, ok := c.conn.(*net.UnixConn)
	if !ok {
		return errors.New("control: this connection carries no files")
	}
	fds := make([]int, 0, len(files))
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return fmt.Errorf("control: send a file: %w", err)
		}
		raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }) // Fd would make it blocking
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	u.SetWriteDeadline(time.Now().Add(sendTimeout))
	line = append(line, '\n')
	n, _, err := u.WriteMsgUnix(line, syscall.UnixRights(fds...), nil)
	if err == nil && n < len(line) {
		_, err = u.Write(line[n:])
	}
	if err != nil {
		return fmt.Errorf("control: send files: %w", err)
	}
	return nil
}

// ReceiveFiles waits for a message that was sent with [Conn.SendFiles]. Nothing may
// have been received since the other end was told to send it. The caller must close
// the files.
func (c *Conn) ReceiveFiles(message any) (files []*os.File, err error) {
	u, ok := c.conn.(*net.UnixConn)
	if !ok {
		return nil, errors.New("control: this connection carries no files")
	}
	u.SetReadDeadline(time.Now().Add(sendTimeout))
	defer u.SetReadDeadline(time.Time{})
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			files = nil
		}
	}()
	var line []byte
	buf, oob := make([]byte, 64<<10), make([]byte, syscall.CmsgSpace(4*maxFiles))
	for !bytes.HasSuffix(line, []byte("\n")) {
		n, m, _, _, err := u.ReadMsgUnix(buf, oob)
		if err != nil {
			return files, fmt.Errorf("control: receive files: %w", err)
		}
		if n == 0 || len(line) > maxFileLine {
			return files, fmt.Errorf("control: receive files: %w", ErrGarbled)
		}
		line = append(line, buf[:n]...)
		files = append(files, filesIn(oob[:m])...)
	}
	if err := json.Unmarshal(line, message); err != nil {
		return files, fmt.Errorf("control: receive files: %w: %w", ErrGarbled, err)
	}
	return files, nil
}

func filesIn(oob []byte) (files []*os.File) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files
}
