package cmd

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"example.org/orchestrator/app/client"
)

func reloadCommand(file *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "reload",
		Short: "Upgrade the running program and wait for the outcome",
		Args:  cobra.NoArgs,
	}
	var r client.ReloadRequest
	c.Flags().BoolVar(&r.Build, "build", false, "build from the sources first, even if hot_reload is off")
	c.Flags().StringVar(&r.Binary, "binary", "", "upgrade to this `FILE`")
	c.Flags().BoolVar(&r.Force, "force", false, "cut requests that do not end in time, and leave behind what hangs")
	c.Flags().BoolVar(&r.WaitProbation, "wait-probation", false, "wait until the new generation is final")
	timeout := c.Flags().Duration("timeout", 0, "give up after this time, unless committed; by default the configuration's limits count")
	drop := c.Flags().String("drop-state", "", "start all modules, or this `MODULE`, without their state")
	c.Flags().Lookup("drop-state").NoOptDefVal = "*"
	asJSON := c.Flags().Bool("json", false, "print the outcome as JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if r.Build && r.Binary != "" {
			return errors.New("--build and --binary exclude each other")
		}
		if c.Flags().Changed("timeout") && *timeout < time.Millisecond {
			return errors.New("--timeout must be at least 1ms")
		}
		r.TimeoutMS = timeout.Milliseconds()
		if r.Binary != "" {
			abs, err := filepath.Abs(r.Binary)
			if err != nil {
				return &exitError{client.ExitFailed, err}
			}
			r.Binary = abs
		}
		if *drop != "" {
			r.DropState = []string{*drop}
		}
		runDir, err := findSame(c, *file)
		if err != nil {
			return err
		}
		outcome, err := client.Reload(c.Context(), runDir, r)
		if err != nil {
			return failure(err)
		}
		if *asJSON {
			err = printJSON(c.OutOrStdout(), outcome)
		} else {
			_, err = fmt.Fprintln(c.OutOrStdout(), outcome)
		}
		if !outcome.Good() {
			return exit(outcome.ExitCode())
		}
		return printed(err)
	}
	return c
}
