package handoff

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrTooLarge is returned for states above their limit.
var ErrTooLarge = errors.New("handoff: the state is too large")

// States holds the exported states of modules in one file that has no name and
// lives in memory where the system can do that. It passes from one generation
// to the next, and a rollback starts from it. Each state carries a checksum,
// which [States.Read] verifies.
//
// It is not safe for concurrent use.
type States struct {
	file  *os.File
	infos []StateInfo
	limit int64
	end   int64
}

// NewStates returns empty States that take at most limit bytes.
func NewStates(limit int64) (*States, error) {
	file, err := anonymousFile()
	if err != nil {
		return nil, fmt.Errorf("handoff: make the file for the states: %w", err)
	}
	return &States{file: file, limit: limit}, nil
}

// receivedStates reads States that another process wrote. It takes
// responsibility for files; there must be exactly one.
func receivedStates(files []file, infos []StateInfo) (s *States, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
		}
	}()
	if len(files) != 1 {
		return nil, fmt.Errorf("handoff: the states came with %d files: %w", len(files), errGarbage)
	}
	file, ok := files[0].(*os.File)
	if !ok {
		return nil, fmt.Errorf("handoff: the states came in a %T: %w", files[0], errGarbage)
	}
	stat, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("handoff: read the states: %w", err)
	}
	s = &States{file: file, infos: infos, limit: stat.Size(), end: stat.Size()}
	seen := map[string]bool{}
	for _, i := range infos {
		if i.Offset < 0 || i.Size < 0 || i.Offset > s.end || i.Size > s.end-i.Offset || seen[i.Module] {
			return nil, fmt.Errorf("handoff: read the states: %s cannot have %d bytes at %d of %d: %w", i.Module, i.Size, i.Offset, s.end, errGarbage)
		}
		seen[i.Module] = true
	}
	return s, nil
}

// Add appends what write writes as a module's state, at most limit bytes. After
// an error none of it is kept.
func (s *States) Add(module string, version int, limit int64, write func(io.Writer) error) error {
	room := min(limit, s.limit-s.end)
	w := &stateWriter{file: s.file, at: s.end, room: room}
	buffer := bufio.NewWriterSize(w, 64<<10)
	err := write(buffer)
	if err == nil {
		err = buffer.Flush()
	}
	if w.full { // even if write ignored the error
		err = fmt.Errorf("%w: more than %d bytes", ErrTooLarge, room)
		if room < limit {
			err = fmt.Errorf("%w: more than the %d bytes that all states together may have", ErrTooLarge, s.limit)
		}
	}
	if err != nil {
		s.file.Truncate(s.end)
		return err
	}
	s.infos = append(s.infos, StateInfo{Module: module, Version: version, Offset: s.end, Size: w.at - s.end, Checksum: w.sum})
	s.end = w.at
	return nil
}

// Modules returns the names of the modules that have a state here.
func (s *States) Modules() []string {
	names := make([]string, 0, len(s.infos))
	for _, i := range s.infos {
		names = append(names, i.Module)
	}
	return names
}

// Version returns the version of a module's state; ok is false if there is
// none.
func (s *States) Version(module string) (version int, ok bool) {
	i := s.find(module)
	if i == nil {
		return 0, false
	}
	return i.Version, true
}

// Size returns the size of a module's state in bytes, 0 if there is none.
func (s *States) Size(module string) int64 {
	if i := s.find(module); i != nil {
		return i.Size
	}
	return 0
}

// Read calls read with a module's state, then verifies the checksum, even if
// read did not read to the end. It may be called again.
func (s *States) Read(module string, read func(*StateReader) error) error {
	i := s.find(module)
	if i == nil {
		return fmt.Errorf("handoff: no state of %s", module)
	}
	r := &StateReader{section: io.NewSectionReader(s.file, i.Offset, i.Size), size: i.Size}
	err := read(r)
	if _, readErr := io.Copy(io.Discard, r); readErr != nil {
		return fmt.Errorf("handoff: read the state of %s: %w", module, readErr)
	}
	if r.sum != i.Checksum {
		return fmt.Errorf("handoff: the state of %s was damaged in transit (checksum %08x, want %08x)", module, r.sum, i.Checksum)
	}
	return err
}

// Copy adds a module's state from other unchanged, or nothing if other has
// none.
func (s *States) Copy(other *States, module string) error {
	version, ok := other.Version(module)
	if !ok {
		return nil
	}
	return s.Add(module, version, other.Size(module), func(w io.Writer) error {
		return other.Read(module, func(r *StateReader) error {
			_, err := io.Copy(w, r)
			return err
		})
	})
}

// Without returns the same states except those of modules for which drop is
// true. Both share the file: closing one closes the other.
func (s *States) Without(drop func(module string) bool) *States {
	rest := &States{file: s.file, limit: s.limit, end: s.end}
	for _, i := range s.infos {
		if !drop(i.Module) {
			rest.infos = append(rest.infos, i)
		}
	}
	return rest
}

// Close frees the memory. A nil States is an empty one.
func (s *States) Close() {
	if s != nil {
		s.file.Close()
	}
}

func (s *States) find(module string) *StateInfo {
	if s == nil {
		return nil
	}
	for i := range s.infos {
		if s.infos[i].Module == module {
			return &s.infos[i]
		}
	}
	return nil
}

// stateWriter writes one state and computes its checksum.
type stateWriter struct {
	file *os.File
	at   int64
	room int64
	sum  uint32
	full bool
}

func (w *stateWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > w.room {
		w.full = true
		return 0, ErrTooLarge
	}
	n, err := w.file.WriteAt(p, w.at)
	w.at += int64(n)
	w.room -= int64(n)
	w.sum = crc32.Update(w.sum, castagnoli, p[:n])
	return n, err
}

// StateReader reads one state.
type StateReader struct {
	section *io.SectionReader
	size    int64
	sum     uint32
}

// Size returns the number of bytes of the whole state.
func (r *StateReader) Size() int64 { return r.size }

func (r *StateReader) Read(p []byte) (int, error) {
	n, err := r.section.Read(p)
	r.sum = crc32.Update(r.sum, castagnoli, p[:n])
	return n, err
}

// unlinkedFile stands in where there are no files in memory.
func unlinkedFile() (*os.File, error) {
	f, err := os.CreateTemp("", "orchestrator-states-*")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}
