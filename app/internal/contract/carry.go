package contract

import (
	"encoding"
	"encoding/json"
	"errors"
	"io"
	"reflect"

	"example.org/orchestrator/modules"
)

// ErrEncodesItself is returned by [Carry] for a value that encodes or streams itself
// and has no Carry: only its export says what it carries.
var ErrEncodesItself = errors.New("the state encodes itself and has no Carry")

// Carry gives the value of to, which is fresh, what the value of from holds,
// without encoding it. Both have the same type. What an export would leave out
// stays as it is in the fresh value.
func Carry(from, to modules.State) error {
	return Protect("Carry", func() error {
		if c, ok := to.Value.(modules.Carrier); ok {
			c.Carry(from.Value)
			return nil
		}
		if encodesItself(to.Value) {
			return ErrEncodesItself
		}
		copyFields(reflect.ValueOf(to.Value).Elem(), reflect.ValueOf(from.Value).Elem())
		return nil
	})
}

// CarryWhole is [Carry] for a value that encodes itself: it copies the whole value,
// with everything that the value may not want to be copied. It is a last resort.
func CarryWhole(from, to modules.State) error {
	return Protect("Carry", func() error {
		reflect.ValueOf(to.Value).Elem().Set(reflect.ValueOf(from.Value).Elem())
		return nil
	})
}

// encodesItself reports whether v, a pointer, decides itself what an export holds.
func encodesItself(v any) bool {
	switch v.(type) {
	case io.WriterTo, io.ReaderFrom, json.Marshaler, json.Unmarshaler, encoding.TextMarshaler, encoding.TextUnmarshaler:
		return true
	}
	return false
}

// copyFields copies what an export of from would hold. Fields that JSON leaves out
// keep their value in to.
func copyFields(to, from reflect.Value) {
	if to.Kind() != reflect.Struct || to.CanAddr() && encodesItself(to.Addr().Interface()) {
		to.Set(from)
		return
	}
	for i := range to.NumField() {
		f := to.Type().Field(i)
		if !f.IsExported() && !f.Anonymous || f.Tag.Get("json") == "-" || !to.Field(i).CanSet() {
			continue
		}
		copyFields(to.Field(i), from.Field(i))
	}
}
