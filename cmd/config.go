package cmd

import (
	"cmp"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"example.org/orchestrator/app"
	"example.org/orchestrator/modules"
)

func configCommand(list modules.List, file *string) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Show every setting: its value, where that comes from, its default and its meaning", Args: cobra.NoArgs}
	asJSON := c.Flags().Bool("json", false, "print it as JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		settings, err := app.Settings(*file, list)
		if err != nil {
			return invalid(err)
		}
		if *asJSON {
			return printed(printJSON(c.OutOrStdout(), settings))
		}
		w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "SETTING\tVALUE\tFROM\tDEFAULT\tMEANING")
		for _, s := range settings {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Key, cmp.Or(s.Value, "-"), s.From, cmp.Or(s.Default, "-"), s.Doc)
		}
		return printed(w.Flush())
	}
	return c
}
