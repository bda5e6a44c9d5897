package cmd

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"example.org/orchestrator/app/client"
)

func stopCommand(file *string) *cobra.Command {
	c := &cobra.Command{Use: "stop", Short: "Stop the running program gracefully and wait until it has ended", Args: cobra.NoArgs}
	timeout := c.Flags().Duration("timeout", 0, "kill what has not stopped after this time; by default the configuration's limits count")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if c.Flags().Changed("timeout") && *timeout < time.Millisecond {
			return errors.New("--timeout must be at least 1ms")
		}
		runDir, err := findSame(c, *file)
		if err != nil {
			return err
		}
		code, err := client.Stop(c.Context(), runDir, *timeout)
		if err != nil {
			return failure(err)
		}
		return exit(code)
	}
	return c
}
