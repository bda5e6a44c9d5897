package contract

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"unicode/utf8"

	"example.org/orchestrator/modules"
)

// Write encodes the value of a state to w.
func Write(s modules.State, w io.Writer) error {
	if to, ok := s.Value.(io.WriterTo); ok {
		_, err := to.WriteTo(w)
		return err
	}
	data, err := json.Marshal(s.Value)
	if err != nil {
		return err
	}
	// JSON replaces what is not UTF-8 with another character.
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

// Read decodes a state of some version, as [Write] wrote it, into the value of
// s.
func Read(s modules.State, version int, r io.Reader) error {
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
