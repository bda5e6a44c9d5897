//go:build !unix

package wire

import (
	"errors"
	"os"
)

var errNoFiles = errors.New("control: files cannot be passed on this system")

// SendFiles is not supported here.
func (c *Conn) SendFiles(any, []*os.File) error { return errNoFiles }

// ReceiveFiles is not supported here.
func (c *Conn) ReceiveFiles(any) ([]*os.File, error) { return nil, errNoFiles }
