//go:build race

package e2etest

// RaceFlag builds the programs under test like the test itself.
var RaceFlag = []string{"-race"}
