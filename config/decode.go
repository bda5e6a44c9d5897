package config

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// decoder walks a YAML tree against a Go value. yaml.v3 by itself ignores
// unknown keys below a node and reports lines without columns, so the walk is
// ours and only the leaves are decoded by the library.
type decoder struct {
	file string
	errs []error
	pos  map[string]position // where each key's value is, by dotted path

	depth, visits int // aliases can make a small file deep, huge or endless
}

// Limits of a file with its aliases resolved.
const (
	maxDepth  = 100
	maxVisits = 100_000
)

// enter counts a visit to n, which leave ends. It reports false beyond the
// limits, which is an error of the file, reported once.
func (d *decoder) enter(n *yaml.Node, key string) bool {
	d.depth++
	d.visits++
	if d.depth > maxDepth || d.visits > maxVisits {
		if d.visits <= maxVisits {
			d.fail(n, key, "nested more than %d deep; does an alias contain itself?", maxDepth)
		} else if d.visits == maxVisits+1 {
			d.fail(n, key, "more than %d values; do aliases repeat each other?", maxVisits)
		}
		d.visits = max(d.visits, maxVisits+1) // one such error is enough
		return false
	}
	return true
}

func (d *decoder) leave() { d.depth-- }

type position struct{ line, column int }

func (d *decoder) fail(n *yaml.Node, key, format string, args ...any) {
	d.errs = append(d.errs, &Error{File: d.file, Line: n.Line, Column: n.Column, Key: key, Msg: fmt.Sprintf(format, args...)})
}

// decode stores n in v, which is addressable. What n does not mention keeps
// its value.
func (d *decoder) decode(n *yaml.Node, v reflect.Value, key string) {
	defer d.leave()
	if !d.enter(n, key) {
		return
	}
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if d.pos != nil {
		d.pos[key] = position{n.Line, n.Column}
	}
	if n.Tag == "!!null" {
		return
	}
	if _, ok := v.Addr().Interface().(yaml.Unmarshaler); ok {
		d.leaf(n, v, key)
		return
	}
	switch section, ok := v.Addr().Interface().(*Section); {
	case ok:
		*section = Section{file: d.file, key: key, node: n}
	case v.Kind() == reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.decode(n, v.Elem(), key)
	case v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]():
		d.structure(n, v, key)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() != reflect.Uint8:
		d.sequence(n, v, key)
	case v.Kind() == reflect.Map && v.Type().Key().Kind() == reflect.String:
		d.mapping(n, v, key)
	default:
		d.leaf(n, v, key)
	}
}

func (d *decoder) leaf(n *yaml.Node, v reflect.Value, key string) {
	if err := n.Decode(v.Addr().Interface()); err != nil {
		if n.Kind == yaml.ScalarNode && (v.Kind() != reflect.Struct) {
			d.fail(n, key, "expected %s, got %q", kindName(v.Type()), n.Value)
			return
		}
		d.fail(n, key, "expected %s: %v", kindName(v.Type()), err)
	}
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, key, "expected a list, got %s", nodeName(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		d.decode(item, out.Index(i), fmt.Sprintf("%s[%d]", key, i))
	}
	v.Set(out)
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, key string) {
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	d.pairs(n, key, func(k, value *yaml.Node, path string) {
		item := reflect.New(v.Type().Elem()).Elem()
		d.decode(value, item, path)
		v.SetMapIndex(reflect.ValueOf(k.Value).Convert(v.Type().Key()), item)
	})
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, key string) {
	fields, names := structFields(v)
	d.pairs(n, key, func(k, value *yaml.Node, path string) {
		field, ok := fields[k.Value]
		if !ok {
			d.fail(k, key, "unknown key %q (%s)", k.Value, suggest(k.Value, names))
			return
		}
		d.decode(value, field, path)
	})
}

// pairs calls f for each key of a mapping, once; merged ("<<") mappings come
// first, so that explicit keys win.
func (d *decoder) pairs(n *yaml.Node, key string, f func(k, value *yaml.Node, path string)) {
	defer d.leave()
	if !d.enter(n, key) {
		return
	}
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.MappingNode {
		d.fail(n, key, "expected keys and values, got %s", nodeName(n))
		return
	}
	seen := map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		if k := n.Content[i]; k.Tag == "!!merge" {
			d.pairs(n.Content[i+1], key, f)
		}
	}
	for i := 0; i < len(n.Content); i += 2 {
		k, value := n.Content[i], n.Content[i+1]
		if k.Tag == "!!merge" {
			continue
		}
		if line, dup := seen[k.Value]; dup {
			d.fail(k, key, "duplicate key %q, first given on line %d", k.Value, line)
			continue
		}
		seen[k.Value] = k.Line
		path := k.Value
		if key != "" {
			path = key + "." + k.Value
		}
		f(k, value, path)
	}
}

// structFields lists the settable fields of v by their YAML names.
func structFields(v reflect.Value) (fields map[string]reflect.Value, names []string) {
	fields = map[string]reflect.Value{}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		tag, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case tag == "-":
			continue
		case strings.Contains(options, "inline") && f.Type.Kind() == reflect.Struct:
			inner, innerNames := structFields(v.Field(i))
			for name, field := range inner {
				fields[name] = field
			}
			names = append(names, innerNames...)
			continue
		case tag == "":
			tag = strings.ToLower(f.Name)
		}
		fields[tag] = v.Field(i)
		names = append(names, tag)
	}
	return fields, names
}

func kindName(t reflect.Type) string {
	if t == reflect.TypeFor[time.Duration]() {
		return "a duration such as 500ms or 2s"
	}
	if t == reflect.TypeFor[Size]() {
		return "a size such as 512KiB, 64MiB or 1GiB"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number, not negative"
	case reflect.Float32, reflect.Float64:
		return "a number"
	default:
		return "a " + t.String()
	}
}

func nodeName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	default:
		return fmt.Sprintf("%q", n.Value)
	}
}
