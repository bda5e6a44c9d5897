package modules

// State is what a module carries from one generation to the next.
type State struct {
	// Version is the version of Value's layout, from 0. Raise it when a field
	// is removed or gets another type or meaning.
	Version int

	// Value is a pointer to what survives. It is encoded as JSON after
	// Shutdown, and decoded before Initialize of the next instance. What JSON
	// would silently lose is refused when the program starts: unexported
	// fields, functions, channels, interfaces. Fields tagged `json:"-"` are
	// left out on purpose, and types that encode themselves are trusted.
	//
	// A large value can implement io.WriterTo and io.ReaderFrom. It is then
	// streamed, so that it is never in memory twice. The reader it is given has
	// a method Size() int64: the number of bytes to come.
	Value any

	// Migrate stores in Value what an older version exported: decode reads the
	// exported value into a type of that version. A nil Migrate accepts only
	// the module's own version.
	Migrate func(from int, decode func(v any) error) error
}

// Carrier is a state's Value that encodes or streams itself and can also be copied
// in memory. After a failed reload the old process starts fresh values; they get
// the state of those that were shut down by Carry, in no time, instead of by
// reading the export back. Other values are copied field by field, without the
// fields that the export leaves out.
type Carrier interface {
	// Carry takes over everything from another value of the same type, which
	// nobody uses any more.
	Carry(from any)
}
