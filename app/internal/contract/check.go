package contract

import (
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"

	"example.org/orchestrator/modules"
)

// EntryError says which compiled-in module is wrong.
type EntryError struct {
	Module string
	Err    error
}

func (e *EntryError) Error() string { return "modules: " + e.Module + ": " + e.Err.Error() }

func (e *EntryError) Unwrap() error { return e.Err }

// New makes a value of the module called name in l. If the factory panics or
// returns nothing, or [Check] finds a mistake, the error is an [*EntryError].
func New(l modules.List, name string) (m modules.Module, err error) {
	for _, e := range l {
		if e.Name != name {
			continue
		}
		what := "factory"
		defer func() {
			if p := recover(); p != nil {
				m, err = nil, &EntryError{name, fmt.Errorf("%s panicked: %v\n%s", what, p, debug.Stack())}
			}
		}()
		if m = e.New(); m == nil {
			return nil, &EntryError{name, errors.New("factory returned nil")}
		}
		what = "State of a fresh value"
		if err := Check(m); err != nil {
			return nil, &EntryError{name, err}
		}
		return m, nil
	}
	return nil, &EntryError{name, errors.New("not compiled in")}
}

// CheckList makes a value of every module, configured or not, and returns the
// first mistake: a name given twice, a broken factory, a wrong signature.
func CheckList(l modules.List) error {
	seen := map[string]bool{}
	for _, e := range l {
		if e.Name == "" || seen[e.Name] {
			return &EntryError{e.Name, errors.New("the name is empty or given twice")}
		}
		seen[e.Name] = true
		if _, err := New(l, e.Name); err != nil {
			return err
		}
	}
	return nil
}

// Check refuses what would silently go wrong later: a method with the name of
// an optional part's method but another signature, which Go treats as not
// implemented; a part that only a pointer to m has; and a state that would lose
// some of its content. m must be fresh from its factory.
func Check(m modules.Module) error {
	for _, h := range Hooks {
		if err := checkPart(m, h); err != nil {
			return err
		}
	}
	if c, ok := m.(modules.Configured); ok {
		if v := reflect.ValueOf(c.Settings()); v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
			return fmt.Errorf("the settings: Settings returns %v: it must return a pointer to a struct", v)
		}
	}
	if s, ok := m.(modules.Stateful); ok {
		state := s.State()
		if !same(state.Value, s.State().Value) {
			return errors.New("state: State points to another value each time, so what it exports is not what the module has changed: keep the value in the module")
		}
		return CheckState(state)
	}
	return nil
}

// same reports whether two pointers are equal. Those to values without a size need
// not be.
func same(a, b any) bool {
	v, w := reflect.ValueOf(a), reflect.ValueOf(b)
	if v.Kind() != reflect.Pointer || w.Kind() != reflect.Pointer || v.Type().Elem().Size() == 0 {
		return true // CheckState says what is wrong with it
	}
	return v.Pointer() == w.Pointer()
}

func checkPart(m modules.Module, h Hook) error {
	t := reflect.TypeOf(m)
	all := t
	if t.Kind() != reflect.Pointer && t.Kind() != reflect.Interface {
		all = reflect.PointerTo(t)
	}
	have, ok := all.MethodByName(h.Method)
	if !ok || t.Implements(h.Part) {
		return nil
	}
	if all.Implements(h.Part) {
		return fmt.Errorf("%v has %s on its pointer only: let the factory return a pointer", t, h.Method)
	}
	want, _ := h.Part.MethodByName(h.Method)
	return fmt.Errorf("method %s of %v has the signature %s, but the contract wants %s", h.Method, t, signature(have.Type), want.Type)
}

// signature prints a method of a concrete type without its receiver.
func signature(t reflect.Type) string {
	var in, out []reflect.Type
	for i := 1; i < t.NumIn(); i++ {
		in = append(in, t.In(i))
	}
	for i := range t.NumOut() {
		out = append(out, t.Out(i))
	}
	return reflect.FuncOf(in, out, t.IsVariadic()).String()
}

// Package returns the import path of the package that defines m.
func Package(m modules.Module) string {
	t := reflect.TypeOf(m)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.PkgPath()
}
