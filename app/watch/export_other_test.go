//go:build !linux

package watch

import "testing"

// PretendNoEvents is not possible here.
func PretendNoEvents(*testing.T, string) bool { return false }
