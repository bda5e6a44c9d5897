package sources

import (
	"syscall"
	"testing"
)

// PretendNoEvents makes the kind of dir's file system count as one without
// events, for a test.
func PretendNoEvents(t *testing.T, dir string) bool {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		t.Fatal(err)
	}
	kind := uint32(stat.Type)
	eventless[kind] = "a test"
	t.Cleanup(func() { delete(eventless, kind) })
	return true
}
