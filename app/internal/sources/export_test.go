package sources

// CountReads is how many files f reads.
func CountReads(f func()) int {
	before := reads.Load()
	f()
	return int(reads.Load() - before)
}
