//go:build !unix

package handoff

import "os"

func (l *link) write([]byte, []int) (int, error)     { return 0, ErrNotSupported }
func (l *link) read([]byte) (int, []*os.File, error) { return 0, nil, ErrNotSupported }

func freeFiles() *int { return nil }
