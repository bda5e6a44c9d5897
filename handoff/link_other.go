//go:build !unix

package handoff

func (l *socketLink) write([]byte, []int) (int, error) { return 0, ErrNotSupported }
func (l *socketLink) read([]byte) (int, []file, error) { return 0, nil, ErrNotSupported }

// FreeFiles returns how many more files this process may open, nil if unknown.
func FreeFiles() *int { return nil }
