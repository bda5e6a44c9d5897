package cmd

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"

	"example.org/orchestrator/app"
	"example.org/orchestrator/app/client"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and what this program was built from",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			info, ok := debug.ReadBuildInfo()
			if !ok {
				return &exitError{client.ExitFailed, errors.New("this program carries no build information")}
			}
			fmt.Fprintf(c.OutOrStdout(), "orchestrator %s (%s %s, %s)\n", app.Version, info.Path, info.Main.Version, info.GoVersion)
			return nil
		},
	}
}
