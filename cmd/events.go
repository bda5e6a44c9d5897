package cmd

import (
	"fmt"

	"github.com/spf13/cobra"

	"example.org/orchestrator/app/client"
)

func eventsCommand(file *string) *cobra.Command {
	c := &cobra.Command{Use: "events", Short: "Print the last events and, with --follow, those to come", Args: cobra.NoArgs}
	var r client.EventsRequest
	c.Flags().BoolVar(&r.Follow, "follow", false, "go on until interrupted")
	c.Flags().BoolVar(&r.All, "all", false, "also the events that modules publish while this runs; implies --follow")
	asJSON := c.Flags().Bool("json", false, "print one JSON object per line")
	c.RunE = func(c *cobra.Command, _ []string) error {
		runDir, err := findProgram(c, *file)
		if err != nil {
			return err
		}
		r.Follow = r.Follow || r.All
		for e, err := range client.Events(c.Context(), runDir, r) {
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
