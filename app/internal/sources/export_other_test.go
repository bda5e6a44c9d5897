//go:build !linux

package sources

import "testing"

// PretendNoEvents is not possible here.
func PretendNoEvents(*testing.T, string) bool { return false }
