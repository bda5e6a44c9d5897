package cmd

import (
	"fmt"

	"github.com/spf13/cobra"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/config"
)

func eventsCommand(file *string) *cobra.Command {
	c := &cobra.Command{Use: "events", Short: "Print the last events and, with --follow, those to come", Args: cobra.NoArgs}
	follow := c.Flags().Bool("follow", false, "go on until interrupted")
	asJSON := c.Flags().Bool("json", false, "print one JSON object per line")
	c.RunE = func(c *cobra.Command, _ []string) error {
		for e, err := range client.Events(c.Context(), config.RunDir(*file), *follow) {
			if err != nil {
				return failure(err)
			}
			if *asJSON {
				err = printJSON(c.OutOrStdout(), e)
			} else {
				_, err = fmt.Fprintf(c.OutOrStdout(), "%6d %s generation %d %s %s\n", e.Seq, e.Time.Format("15:04:05.000"), e.Generation, e.Topic, e.Data)
			}
			if err := printed(err); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}
