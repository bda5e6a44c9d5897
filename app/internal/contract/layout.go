package contract

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"example.org/orchestrator/modules"
)

// Layout describes the type of a state's value: it maps the path of each field
// in JSON to the field's type.
type Layout map[string]string

// LayoutOf describes value, a pointer to what a module's State carries. It
// returns an error if a part of value would be lost: unexported fields,
// functions, channels, interfaces. Fields tagged `json:"-"` are left out on
// purpose, and types that encode themselves are trusted to do so.
func LayoutOf(value any) (Layout, error) {
	v := reflect.ValueOf(value)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return nil, fmt.Errorf("State().Value must be a non-nil pointer, got %T", value)
	}
	_, writes := value.(io.WriterTo)
	_, reads := value.(io.ReaderFrom)
	switch {
	case writes && reads:
		if err := promoted(v.Type().Elem(), "WriteTo"); err != nil {
			return nil, err
		}
		return Layout{"": "stream of " + v.Type().Elem().String()}, nil
	case writes || reads:
		return nil, fmt.Errorf("%T has only one of WriteTo and ReadFrom: a state needs both, or neither", value)
	}
	w := walk{layout: Layout{}, inside: map[reflect.Type]bool{}}
	w.add(v.Type().Elem(), "", false)
	return w.layout, errors.Join(w.errs...)
}

// Changes compares the layout with that of a newer build with the same state
// version. What broke cannot be read by the newer build; what was added starts
// as its factory left it. Both are sentences without a full stop.
func (l Layout) Changes(newer Layout) (broke, added []string) {
	for path, was := range l {
		switch is, ok := newer[path]; {
		case !ok:
			broke = append(broke, fmt.Sprintf("field %q (%s) is gone", path, was))
		case is != was:
			broke = append(broke, fmt.Sprintf("field %q was %s and is %s", path, was, is))
		}
	}
	for path, is := range newer {
		if _, ok := l[path]; !ok {
			added = append(added, fmt.Sprintf("field %q (%s) is new", path, is))
		}
	}
	slices.Sort(broke)
	slices.Sort(added)
	return broke, added
}

// walk visits a type as encoding/json would.
type walk struct {
	layout Layout
	inside map[reflect.Type]bool // the structs around the current one
	errs   []error
}

var (
	jsonMarshaler   = reflect.TypeFor[json.Marshaler]()
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textMarshaler   = reflect.TypeFor[encoding.TextMarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func (w *walk) fail(path, format string, args ...any) {
	if path == "" {
		path = "the value"
	}
	w.errs = append(w.errs, fmt.Errorf("state: %s: %s", path, fmt.Sprintf(format, args...)))
}

// add visits a value of type t. byValue says that it is in a map, and not behind a
// pointer: encoding/json then cannot call methods of the pointer.
func (w *walk) add(t reflect.Type, path string, byValue bool) {
	pointer := reflect.PointerTo(t)
	for _, m := range []reflect.Type{jsonMarshaler, textMarshaler} {
		if byValue && pointer.Implements(m) && !t.Implements(m) {
			w.fail(path, "%s encodes itself with %s of its pointer, which is not called for a value in a map: store pointers", t, m.Method(0).Name)
			return
		}
	}
	switch {
	case pointer.Implements(jsonMarshaler) && pointer.Implements(jsonUnmarshaler),
		pointer.Implements(textMarshaler) && pointer.Implements(textUnmarshaler):
		method := "MarshalJSON"
		if !pointer.Implements(jsonMarshaler) {
			method = "MarshalText"
		}
		if err := promoted(t, method); err != nil {
			w.fail(path, "%v", err)
		}
		w.layout[path] = t.String()
		return
	case pointer.Implements(jsonMarshaler), pointer.Implements(textMarshaler):
		w.fail(path, "%s encodes itself but cannot be decoded again", t)
		return
	}
	switch t.Kind() {
	case reflect.Bool, reflect.String,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr,
		reflect.Float32, reflect.Float64:
		w.layout[path] = t.Kind().String()
	case reflect.Pointer:
		w.add(t.Elem(), path, false)
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 && t.Kind() == reflect.Slice {
			w.layout[path] = "bytes"
			return
		}
		w.layout[path] = "list"
		if t.Kind() == reflect.Array {
			w.layout[path] = fmt.Sprintf("list of %d", t.Len())
		}
		w.add(t.Elem(), path+"[]", byValue && t.Kind() == reflect.Array)
	case reflect.Map:
		switch key := t.Key(); {
		case key.Kind() == reflect.String,
			key.Kind() >= reflect.Int && key.Kind() <= reflect.Uintptr,
			key.Implements(textMarshaler) && reflect.PointerTo(key).Implements(textUnmarshaler):
		default:
			w.fail(path, "JSON has no maps with keys of type %s", key)
			return
		}
		w.layout[path] = "map by " + t.Key().Kind().String()
		w.add(t.Elem(), path+"{}", true)
	case reflect.Struct:
		w.structure(t, path, byValue)
	default:
		w.fail(path, "a value of type %s would not survive: store plain data, or tag the field `json:\"-\"` and recreate it in Initialize", t)
	}
}

func (w *walk) structure(t reflect.Type, path string, byValue bool) {
	if w.inside[t] {
		w.layout[path] = "again " + t.String()
		return
	}
	w.inside[t] = true
	defer delete(w.inside, t)
	w.layout[path] = "object"
	w.fields(t, path, byValue, map[string]bool{})
}

// fields visits the fields of t and of the structs embedded in it.
func (w *walk) fields(t reflect.Type, path string, byValue bool, seen map[string]bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Tag.Get("json") == "-" || f.Name == "_" {
			continue
		}
		embedded := f.Type
		if embedded.Kind() == reflect.Pointer {
			embedded = embedded.Elem()
		}
		if f.Anonymous && name == "" && embedded.Kind() == reflect.Struct && !reflect.PointerTo(embedded).Implements(jsonMarshaler) {
			if f.Type.Kind() == reflect.Pointer && !f.IsExported() {
				w.fail(join(path, f.Name), "an embedded pointer to an unexported type cannot be decoded")
				continue
			}
			w.fields(embedded, path, byValue && f.Type.Kind() != reflect.Pointer, seen)
			continue
		}
		if !f.IsExported() {
			w.fail(join(path, f.Name), "an unexported field would be lost: export it, or tag it `json:\"-\"` if it need not survive")
			continue
		}
		if name == "" {
			name = f.Name
		}
		if seen[name] {
			w.fail(join(path, name), "two fields have this name in JSON, so neither would survive")
			continue
		}
		seen[name] = true
		w.add(f.Type, join(path, name), byValue)
		if was := w.layout[join(path, name)]; slices.Contains(strings.Split(options, ","), "string") && was != "" {
			w.layout[join(path, name)] = was + " in a string"
		}
	}
}

// CheckState refuses a state that would lose a part; see [LayoutOf]. s must be
// the state of a module fresh from its factory.
func CheckState(s modules.State) error {
	if _, err := LayoutOf(s.Value); err != nil {
		return err
	}
	return lostDefaults(reflect.ValueOf(s.Value), "")
}

// promoted returns an error if t has method from a type embedded in it, and
// other fields beside that type: they would not be encoded.
func promoted(t reflect.Type, method string) error {
	if t.Kind() != reflect.Struct || t.NumField() < 2 {
		return nil
	}
	m, ok := t.MethodByName(method)
	if !ok {
		m, _ = reflect.PointerTo(t).MethodByName(method)
	}
	// The compiler generates the method that calls the embedded one.
	if file, _ := runtime.FuncForPC(m.Func.Pointer()).FileLine(m.Func.Pointer()); file != "<autogenerated>" {
		return nil
	}
	return fmt.Errorf("%v has %s from what is embedded in it, which would lose its other fields: give that a name", t, method)
}

// empty reports whether omitempty has nothing to lose in v: it leaves v out, or v
// is a struct, which it never leaves out.
func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Map, reflect.Slice, reflect.Array, reflect.String:
		return v.Len() == 0
	}
	return v.Kind() == reflect.Struct || v.IsZero()
}

// lostDefaults returns an error if a field of a fresh value is left out when
// empty but does not start empty: once empty, it would come back with its
// initial value.
func lostDefaults(v reflect.Value, path string) error {
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		return lostDefaults(v.Elem(), path)
	}
	if v.Kind() != reflect.Struct {
		return nil
	}
	var errs []error
	for i := range v.NumField() {
		f := v.Type().Field(i)
		tag, start := f.Tag.Get("json"), v.Field(i)
		if tag == "-" || !f.IsExported() && !f.Anonymous {
			continue
		}
		options := strings.Split(tag, ",")[1:]
		for _, option := range []struct {
			name string
			lost bool // a later value that it leaves out comes back as start
		}{{"omitempty", !empty(start)}, {"omitzero", !start.IsZero()}} {
			if option.lost && slices.Contains(options, option.name) {
				errs = append(errs, fmt.Errorf("state: %s: it starts as %v, and would be that again once emptied: drop %s", join(path, f.Name), start, option.name))
			}
		}
		if err := mergedDefault(start, join(path, f.Name)); err != nil {
			errs = append(errs, err)
		}
		errs = append(errs, lostDefaults(start, join(path, f.Name)))
	}
	return errors.Join(errs...)
}

// mergedDefault returns an error if a field of a fresh value starts with content that
// a restored state would be merged into: what was removed from it would be back.
func mergedDefault(start reflect.Value, path string) error {
	switch start.Kind() {
	case reflect.Map:
		if start.Len() > 0 {
			return fmt.Errorf("state: %s: it starts with %d entries, which would be back after each reload: fill it in Initialize if it is nil", path, start.Len())
		}
	case reflect.Slice:
		switch start.Type().Elem().Kind() {
		case reflect.Struct, reflect.Map, reflect.Slice, reflect.Pointer, reflect.Array:
			if start.Len() > 0 {
				return fmt.Errorf("state: %s: it starts with %d elements, which a restored state would be merged into: fill it in Initialize if it is nil", path, start.Len())
			}
		}
	}
	return nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
