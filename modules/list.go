package modules

import (
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

// Names are the names of all modules, in order.
func (l List) Names() []string {
	names := make([]string, 0, len(l))
	for _, e := range l {
		names = append(names, e.Name)
	}
	return names
}

// New makes a value of the module called name. A factory that panics or
// returns nothing is an error.
func (l List) New(name string) (m Module, err error) {
	for _, e := range l {
		if e.Name != name {
			continue
		}
		defer func() {
			if p := recover(); p != nil {
				m, err = nil, fmt.Errorf("modules: %s: factory panicked: %v\n%s", name, p, debug.Stack())
			}
		}()
		if m = e.New(); m == nil {
			return nil, fmt.Errorf("modules: %s: factory returned nil", name)
		}
		return m, Check(name, m)
	}
	return nil, fmt.Errorf("modules: %s: not compiled in", name)
}

// Check makes a value of every module, configured or not, and returns the
// first mistake: a name given twice, a broken factory, a wrong signature.
func (l List) Check() error {
	seen := map[string]bool{}
	for _, e := range l {
		if e.Name == "" || seen[e.Name] {
			return fmt.Errorf("modules: the name %q is empty or given twice", e.Name)
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
	"ServeHTTP": reflect.TypeFor[http.Handler](),
	"State":     reflect.TypeFor[Stateful](),
	"Prepare":   reflect.TypeFor[Preparer](),
	"Healthy":   reflect.TypeFor[HealthChecker](),
	"Run":       reflect.TypeFor[Runner](),
	"DependsOn": reflect.TypeFor[Dependent](),
}

// Check refuses a module that has a method with the name of an optional part
// and another signature: Go would take it for not implemented, in silence.
// A method that only a pointer has is found as well when m is not a pointer.
func Check(name string, m Module) error {
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
			return fmt.Errorf("modules: %s: %v has %s on its pointer only: let the factory return a pointer", name, t, method)
		}
		return fmt.Errorf("modules: %s: method %s of %v has the signature %s, but the contract wants %s", name, method, t, signature(have.Type), want.Type)
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
