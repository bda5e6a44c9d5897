//go:build race

package e2etest

// RaceFlag makes go build programs with the race detector, as this test is built.
var RaceFlag = []string{"-race"}
