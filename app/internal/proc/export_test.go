//go:build unix

package proc

// HoldUp lets no child be reaped until release is called.
func (r *Reaper) HoldUp() (release func()) {
	r.mu.Lock()
	return r.mu.Unlock
}
