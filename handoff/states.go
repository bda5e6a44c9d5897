package handoff

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"syscall"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// pack writes all states into one file that has no name.
func pack(states []State) (file *os.File, infos []StateInfo, sum uint32, err error) {
	file, err = anonymousFile()
	if err != nil {
		return nil, nil, 0, fmt.Errorf("make the file for the states: %w", err)
	}
	for _, s := range states {
		if _, err := file.Write(s.Data); err != nil {
			file.Close()
			return nil, nil, 0, fmt.Errorf("write the state of %s: %w", s.Module, err)
		}
		sum = crc32.Update(sum, castagnoli, s.Data)
		infos = append(infos, StateInfo{Module: s.Module, Version: s.Version, Size: int64(len(s.Data))})
	}
	return file, infos, sum, nil
}

// unpack reads what pack wrote and checks it.
func unpack(file *os.File, infos []StateInfo, want uint32) ([]State, error) {
	stat, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("handoff: read the states: %w", err)
	}
	left := stat.Size()
	states := make([]State, 0, len(infos))
	var sum uint32
	var offset int64
	for _, info := range infos {
		if info.Size < 0 || info.Size > left {
			return nil, fmt.Errorf("handoff: read the states: %s has %d bytes of %d: %w", info.Module, info.Size, left, errGarbage)
		}
		left -= info.Size
		data := make([]byte, info.Size)
		if _, err := file.ReadAt(data, offset); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("handoff: read the state of %s: %w", info.Module, err)
		}
		offset += info.Size
		sum = crc32.Update(sum, castagnoli, data)
		states = append(states, State{Module: info.Module, Version: info.Version, Data: data})
	}
	if sum != want {
		return nil, fmt.Errorf("handoff: the states were damaged on the way (checksum %08x, want %08x)", sum, want)
	}
	return states, nil
}

// unlinkedFile is the next best thing where memory has no files.
func unlinkedFile() (*os.File, error) {
	f, err := os.CreateTemp("", "orchestrator-states-*")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// sendFile sends m with file attached.
func sendFile(ctx context.Context, l *link, m message, file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = l.send(ctx, m, int(fd)) }); err != nil {
		return err
	}
	return sent
}

// sendConns sends a batch of connections, which stay open here.
func sendConns(ctx context.Context, l *link, conns []net.Conn) error {
	fds := make([]int, 0, len(conns))
	for _, c := range conns {
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			return err
		}
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return err
		}
	}
	return l.send(ctx, message{Type: typeConns, Conns: len(fds)}, fds...)
}

// gone recognizes the end of the other process.
func gone(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("%w: %w", ErrPredecessorGone, err)
	}
	return err
}
