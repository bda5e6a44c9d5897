//go:build race

package cmd_test

func init() { raceFlag = []string{"-race"} }
