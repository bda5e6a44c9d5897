//go:build !race

package e2etest

// RaceFlag is empty: this test is built without the race detector, and so are the
// programs.
var RaceFlag []string
