package build

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Sum identifies what a binary does: it is a hash of its content without the
// build IDs, which may differ although the sources are the same.
func Sum(binary string) (string, error) {
	sum, err := sumOf(binary)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sum[:6]), nil
}

func sumOf(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	// The notes are at the beginning, where a program is loaded from.
	head := make([]byte, 16<<10)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return sum, fmt.Errorf("build: read %s: %w", path, err)
	}
	head = head[:n]
	blank(head, "Go\x00\x00", 4)
	blank(head, "GNU\x00", 3)
	h := sha256.New()
	h.Write(head)
	if _, err := io.Copy(h, f); err != nil {
		return sum, fmt.Errorf("build: read %s: %w", path, err)
	}
	h.Sum(sum[:0])
	return sum, nil
}

// blank overwrites the ELF notes of this owner and kind.
func blank(data []byte, owner string, kind uint32) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for at := 0; ; {
			i := bytes.Index(data[at:], []byte(owner))
			if i < 0 {
				break
			}
			at += i + len(owner)
			if at < 16 || order.Uint32(data[at-16:]) != uint32(len(owner)) || order.Uint32(data[at-8:]) != kind {
				continue
			}
			if size := order.Uint32(data[at-12:]); int64(size) <= int64(len(data)-at) {
				clear(data[at : at+int(size)])
			}
		}
	}
}
