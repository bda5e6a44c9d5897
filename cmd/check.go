package cmd

import (
	"fmt"

	"github.com/spf13/cobra"

	"example.org/orchestrator/app"
	"example.org/orchestrator/modules"
)

func checkCommand(list modules.List, file *string) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check a configuration with this program's modules",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := app.Check(*file, list); err != nil {
				return invalid(err)
			}
			fmt.Fprintf(c.OutOrStdout(), "%s is valid\n", *file)
			return nil
		},
	}
}
