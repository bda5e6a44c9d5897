package modules

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"unicode/utf8"
)

// State is what a module carries over.
type State struct {
	// Version of the layout of Value, from 0. It rises when a field is
	// removed or gets another type or meaning.
	Version int

	// Value is a pointer to what survives. It is encoded as JSON after
	// Shutdown, and decoded before Initialize of the next instance. What JSON
	// would lose in silence, such as unexported fields, is refused when the
	// program starts: see [LayoutOf].
	//
	// A large value implements io.WriterTo and io.ReaderFrom and is streamed
	// instead, so that it is never in memory twice. The reader it is given
	// has a method Size() int64: the number of bytes to come.
	Value any

	// Migrate stores in Value what an older version exported: decode reads
	// the exported value into a type of that version. A nil Migrate accepts
	// the module's own version only.
	Migrate func(from int, decode func(v any) error) error
}

// Export writes the value to w.
func (s State) Export(w io.Writer) error {
	if to, ok := s.Value.(io.WriterTo); ok {
		_, err := to.WriteTo(w)
		return err
	}
	data, err := json.Marshal(s.Value)
	if err != nil {
		return err
	}
	// JSON would have another character in the place of what is not UTF-8.
	if bytes.Contains(data, []byte(`\ufffd`)) {
		if path, found := notText(reflect.ValueOf(s.Value), ""); found {
			return fmt.Errorf("state: %s: a string that is not UTF-8 would not survive: store []byte", path)
		}
	}
	_, err = w.Write(data)
	return err
}

// notText finds a string in v that is not UTF-8. Types that encode themselves
// are trusted to do so.
func notText(v reflect.Value, path string) (where string, found bool) {
	if v.IsValid() && (v.Type().Implements(jsonMarshaler) || v.Type().Implements(textMarshaler)) && v.Kind() != reflect.Pointer {
		return "", false
	}
	switch v.Kind() {
	case reflect.String:
		return path, !utf8.ValidString(v.String())
	case reflect.Pointer:
		if !v.IsNil() {
			return notText(v.Elem(), path)
		}
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return "", false
		}
		for i := range v.Len() {
			if where, found = notText(v.Index(i), fmt.Sprintf("%s[%d]", path, i)); found {
				return where, true
			}
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			in := fmt.Sprintf("%s{%q}", path, key)
			if where, found = notText(key, in); found {
				return where, true
			}
			if where, found = notText(v.MapIndex(key), in); found {
				return where, true
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() || f.Anonymous {
				if where, found = notText(v.Field(i), join(path, f.Name)); found {
					return where, true
				}
			}
		}
	}
	return "", false
}

// Restore stores what Export of some version wrote in the value.
func (s State) Restore(version int, r io.Reader) error {
	decode := func(v any) error {
		var err error
		if from, ok := v.(io.ReaderFrom); ok {
			_, err = from.ReadFrom(r)
		} else {
			err = json.NewDecoder(r).Decode(v)
		}
		if err != nil {
			return fmt.Errorf("decode the state of version %d: %w", version, err)
		}
		return nil
	}
	switch {
	case version == s.Version:
		return decode(s.Value)
	case version > s.Version:
		return fmt.Errorf("the state has version %d, newer than this build's %d", version, s.Version)
	case s.Migrate == nil:
		return fmt.Errorf("the state has version %d, this build's %d and it has no Migrate", version, s.Version)
	}
	return s.Migrate(version, decode)
}
