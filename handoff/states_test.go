package handoff

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

func newStates(t testing.TB, limit int64, texts ...string) *States {
	t.Helper()
	s, err := NewStates(limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for i, text := range texts {
		if err := s.Add(string(rune('a'+i)), i, limit, func(w io.Writer) error { _, err := io.WriteString(w, text); return err }); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func text(t testing.TB, s *States, module string) string {
	t.Helper()
	var b bytes.Buffer
	if err := s.Read(module, func(r *StateReader) error { _, err := io.Copy(&b, r); return err }); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestStatesKeepWhatWasWritten(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 10_000) // beyond the buffer
	s := newStates(t, 1<<20, "first", "", large)
	for module, want := range map[string]string{"a": "first", "b": "", "c": large} {
		for range 2 {
			if got := text(t, s, module); got != want {
				t.Errorf("Read(%s) = %d bytes, want %d", module, len(got), len(want))
			}
		}
	}
	if v, ok := s.Version("c"); v != 2 || !ok {
		t.Errorf("Version(c) = %d, %v; want 2, true", v, ok)
	}
	if _, ok := s.Version("d"); ok {
		t.Error("Version(d) is there")
	}
	other := newStates(t, 1<<20)
	if err := other.Copy(s, "c"); err != nil || text(t, other, "c") != large {
		t.Errorf("Copy = %v", err)
	}
	without := s.Without(func(module string) bool { return module == "b" })
	if got := without.Modules(); !slices.Equal(got, []string{"a", "c"}) || text(t, without, "c") != large {
		t.Errorf("Without = %v", got)
	}
	var none *States
	if _, ok := none.Version("a"); ok {
		t.Error("a nil States has something")
	}
	none.Close()
}

func TestStatesHaveLimits(t *testing.T) {
	s := newStates(t, 10, "1234")
	for _, tt := range []struct {
		name, text, want string
		limit            int64
	}{
		{"its own", "12345", "more than 4 bytes", 4},
		{"that of all", "1234567", "more than the 10 bytes that all states together may have", 100},
	} {
		err := s.Add("x", 0, tt.limit, func(w io.Writer) error { _, err := io.WriteString(w, tt.text); return err })
		if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Add beyond %s = %v, want %q", tt.name, err, tt.want)
		}
		// Ignoring the errors of writes does not help.
		err = s.Add("x", 0, tt.limit, func(w io.Writer) error { io.WriteString(w, strings.Repeat("x", 100<<10)); return nil })
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("Add that ignores errors = %v, want too large", err)
		}
	}
	failure := errors.New("no")
	if err := s.Add("x", 0, 100, func(w io.Writer) error { io.WriteString(w, "12"); return failure }); !errors.Is(err, failure) {
		t.Errorf("Add = %v, want %v", err, failure)
	}
	if err := s.Add("y", 0, 100, func(w io.Writer) error { _, err := io.WriteString(w, "123456"); return err }); err != nil {
		t.Errorf("after failed ones Add = %v: was something kept?", err)
	}
	if got := text(t, s, "y"); got != "123456" {
		t.Errorf("y has %q", got)
	}
}

// TestDamageIsNoticed flips each byte of a state in turn.
func TestDamageIsNoticed(t *testing.T) {
	s := newStates(t, 1<<10, "before", "content", "after")
	info := s.find("b")
	for i := range info.Size {
		original := make([]byte, 1)
		s.file.ReadAt(original, info.Offset+i)
		s.file.WriteAt([]byte{original[0] ^ 1}, info.Offset+i)
		if err := s.Read("b", func(r *StateReader) error { return nil }); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("byte %d: Read = %v, want that it is damaged", i, err)
		}
		s.file.WriteAt(original, info.Offset+i)
	}
	if text(t, s, "b") != "content" {
		t.Error("the repaired state cannot be read")
	}
}

func TestSealedStatesCannotBeChanged(t *testing.T) {
	s := newStates(t, 1<<10, "content")
	seal(s.file)
	if _, err := s.file.WriteAt([]byte("x"), 0); err == nil && anonymousIsSealed() {
		t.Error("a sealed state was changed")
	}
	if text(t, s, "a") != "content" {
		t.Error("a sealed state cannot be read")
	}
}

// anonymousIsSealed reports whether this system can seal files.
func anonymousIsSealed() bool {
	f, err := anonymousFile()
	if err != nil {
		return false
	}
	defer f.Close()
	seal(f)
	_, err = f.Write([]byte("x"))
	return err != nil
}

// FuzzStates reads States that another process wrote: any file with any
// description of it.
func FuzzStates(f *testing.F) {
	good := newStates(f, 1<<10, "first", "second")
	content, _ := io.ReadAll(io.NewSectionReader(good.file, 0, good.end))
	infos, _ := json.Marshal(good.infos)
	f.Add(content, infos)
	f.Add(content[:3], infos)
	f.Add(content, []byte(`[{"module":"a","offset":-1,"size":5}]`))
	f.Add(content, []byte(`[{"module":"a","offset":9223372036854775807,"size":9223372036854775807}]`))
	f.Add(content, []byte(`[{"module":"a","size":1},{"module":"a","size":1}]`))
	f.Fuzz(func(t *testing.T, content, described []byte) {
		var infos []StateInfo
		if json.Unmarshal(described, &infos) != nil {
			return
		}
		memfile, err := unlinkedFile()
		if err != nil {
			t.Fatal(err)
		}
		defer memfile.Close()
		if _, err := memfile.Write(content); err != nil {
			t.Fatal(err)
		}
		s, err := receivedStates([]file{memfile}, infos)
		if err != nil {
			return
		}
		for _, module := range s.Modules() {
			var b bytes.Buffer
			err := s.Read(module, func(r *StateReader) error {
				if r.Size() > int64(len(content)) {
					t.Errorf("%s claims %d bytes of %d", module, r.Size(), len(content))
				}
				_, err := io.Copy(&b, r)
				return err
			})
			if int64(b.Len()) != s.Size(module) {
				t.Errorf("%s: read %d bytes, want %d (%v)", module, b.Len(), s.Size(module), err)
			}
			var value any
			_ = json.Unmarshal(b.Bytes(), &value)
		}
	})
}

func TestUnlinkedFileHasNoName(t *testing.T) {
	f, err := unlinkedFile()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := os.Stat(f.Name()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file has a name: %v", err)
	}
}
