//go:build !failpoints || !unix

package failpoint

// At does nothing in this build. Its result tells whether the message that is
// about to be sent shall be replaced by garbage.
func At(side, when, what string) (garbage bool) { return false }
