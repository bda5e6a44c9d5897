//go:build !failpoints || !unix

package failpoint

// At does nothing in this build. garbage reports whether to replace the message
// that is about to be sent with garbage.
func At(side, when, what string) (garbage bool) { return false }
