package cmd

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/config"
)

// findProgram returns the run_dir of the program with this configuration. A file that
// was named with -c must say it: a typing error must not reach another program.
func findProgram(c *cobra.Command, file string) (string, error) {
	if !c.Flags().Changed("config") {
		return config.RunDir(file), nil
	}
	runDir, err := config.FindRunDir(file)
	if err != nil {
		return "", &exitError{client.ExitUsage, fmt.Errorf("%w\nnothing was done", err)}
	}
	return runDir, nil
}

// findSame is findProgram for commands that change something: the program that runs
// there must have been started with that file.
func findSame(c *cobra.Command, file string) (string, error) {
	runDir, err := findProgram(c, file)
	if err != nil || !c.Flags().Changed("config") {
		return runDir, err
	}
	status, err := client.GetStatus(c.Context(), runDir)
	if err != nil {
		return "", failure(err)
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", &exitError{client.ExitFailed, err}
	}
	if abs != status.Config && !sameFile(abs, status.Config) {
		return "", &exitError{client.ExitUsage, fmt.Errorf("the program in %s was started with %s, not with %s: nothing was done", runDir, status.Config, abs)}
	}
	return runDir, nil
}
