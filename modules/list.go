package modules

// Entry is a module that is compiled into the program.
type Entry struct {
	Name string        // as main.yaml names it
	New  func() Module // returns a fresh value at each call
}

// List is all modules of a program. main.yaml decides which of them run, and in
// which order.
type List []Entry

// Names returns the names of all modules, in order.
func (l List) Names() []string {
	names := make([]string, 0, len(l))
	for _, e := range l {
		names = append(names, e.Name)
	}
	return names
}
