package modules

import (
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"runtime/debug"
)

// Entry is a module that is compiled into the program.
type Entry struct {
	Name string        // as main.yaml names it
	New  func() Module // a fresh value at each call
}

// List is all modules of a program. It does not tell which run: main.yaml does.
type List []Entry

// EntryError says which compiled-in module is wrong.
type EntryError struct {
	Module string
	Err    error
}

func (e *EntryError) Error() string { return "modules: " + e.Module + ": " + e.Err.Error() }

func (e *EntryError) Unwrap() error { return e.Err }

// Names are the names of all modules, in order.
func (l List) Names() []string {
	names := make([]string, 0, len(l))
	for _, e := range l {
		names = append(names, e.Name)
	}
	return names
}

// New makes a value of the module called name. A factory that panics or
// returns nothing is an [*EntryError], as is what [Check] finds.
func (l List) New(name string) (m Module, err error) {
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

// Check makes a value of every module, configured or not, and returns the
// first mistake: a name given twice, a broken factory, a wrong signature.
func (l List) Check() error {
	seen := map[string]bool{}
	for _, e := range l {
		if e.Name == "" || seen[e.Name] {
			return &EntryError{e.Name, errors.New("the name is empty or given twice")}
		}
		seen[e.Name] = true
		if _, err := l.New(e.Name); err != nil {
			return err
		}
	}
	return nil
}

// parts are the optional parts of the contract by the method that marks them.
var parts = map[string]reflect.Type{
	"ServeHTTP":  reflect.TypeFor[http.Handler](),
	"HandleConn": reflect.TypeFor[ConnHandler](),
	"State":      reflect.TypeFor[Stateful](),
	"Prepare":    reflect.TypeFor[Preparer](),
	"Healthy":    reflect.TypeFor[HealthChecker](),
	"Run":        reflect.TypeFor[Runner](),
	"DependsOn":  reflect.TypeFor[Dependent](),
}

// Check refuses what would go wrong in silence later: a method with the name
// of an optional part and another signature, which Go takes for not
// implemented, also when only a pointer to m has it; and a state of which a
// part would be lost. m must be fresh from its factory.
func Check(m Module) error {
	if err := checkParts(m); err != nil {
		return err
	}
	if s, ok := m.(Stateful); ok {
		return CheckState(s.State())
	}
	return nil
}

func checkParts(m Module) error {
	t := reflect.TypeOf(m)
	all := t
	if t.Kind() != reflect.Pointer && t.Kind() != reflect.Interface {
		all = reflect.PointerTo(t)
	}
	for method, part := range parts {
		have, ok := all.MethodByName(method)
		if !ok || t.Implements(part) {
			continue
		}
		want, _ := part.MethodByName(method)
		if all.Implements(part) {
			return fmt.Errorf("%v has %s on its pointer only: let the factory return a pointer", t, method)
		}
		return fmt.Errorf("method %s of %v has the signature %s, but the contract wants %s", method, t, signature(have.Type), want.Type)
	}
	return nil
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

// Package is the import path of the package that defines m.
func Package(m Module) string {
	t := reflect.TypeOf(m)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.PkgPath()
}
