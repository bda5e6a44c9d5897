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
	runDir, _, err := locate(c, file)
	return runDir, err
}

// locate is findProgram. sure reports whether the file that was named says it itself.
func locate(c *cobra.Command, file string) (runDir string, sure bool, err error) {
	if !c.Flags().Changed("config") {
		return config.RunDir(file), true, nil
	}
	runDir, said, err := config.FindRunDir(file)
	if err != nil {
		return "", false, &exitError{client.ExitUsage, fmt.Errorf("%w\nnothing was done", err)}
	}
	return runDir, said, nil
}

// findSame is findProgram for commands that change something. Where a file leaves the
// run_dir to the default, the program that runs there must have been started with it.
func findSame(c *cobra.Command, file string) (string, error) {
	runDir, sure, err := locate(c, file)
	if err != nil || sure {
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
