package modules

// State is what a module carries over.
type State struct {
	// Version of the layout of Value, from 0. It rises when a field is
	// removed or gets another type or meaning.
	Version int

	// Value is a pointer to what survives. It is encoded as JSON after
	// Shutdown, and decoded before Initialize of the next instance. What JSON
	// would lose in silence is refused when the program starts: unexported
	// fields, functions, channels, interfaces. Fields tagged `json:"-"` are
	// left out on purpose, and types that encode themselves are trusted.
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
