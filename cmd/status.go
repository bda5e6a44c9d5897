package cmd

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"example.org/orchestrator/app/client"
)

func statusCommand(file *string) *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "Show what is running; the exit code is 1 if it is degraded", Args: cobra.NoArgs}
	asJSON := c.Flags().Bool("json", false, "print it as JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		runDir, err := findProgram(c, *file)
		if err != nil {
			return err
		}
		status, err := client.GetStatus(c.Context(), runDir)
		if err != nil {
			return failure(err)
		}
		if *asJSON {
			err = printJSON(c.OutOrStdout(), status)
		} else {
			var text strings.Builder
			printStatus(&text, status)
			_, err = io.WriteString(c.OutOrStdout(), text.String())
		}
		if err == nil && status.State == client.Degraded {
			return exit(client.ExitFailed)
		}
		return printed(err)
	}
	return c
}

func printStatus(w io.Writer, s *client.Status) {
	mode := "off"
	if s.HotReload {
		mode = "on"
	}
	if s.Generation == 0 {
		fmt.Fprintf(w, "%s: nothing serves yet\nsupervisor %d, hot reload %s\n", s.State, s.SupervisorPID, mode)
	} else {
		fmt.Fprintf(w, "%s: %s, generation %d (process %d, build %s)\n", s.Name, s.State, s.Generation, s.PID, s.Build)
		fmt.Fprintf(w, "supervisor %d, hot reload %s, listening on %s\n", s.SupervisorPID, mode, strings.Join(s.Listen, ", "))
	}
	for _, m := range s.Modules {
		fmt.Fprintf(w, "  %-12s %s, unchanged since generation %d", m.Name, m.State, m.Generation)
		if m.Listen != "" {
			fmt.Fprintf(w, ", listening on %s", m.Listen)
		}
		if m.Error != "" {
			fmt.Fprintf(w, ": %s", m.Error)
		}
		fmt.Fprintln(w)
	}
	if c := s.LastCrash; c != nil {
		fmt.Fprintf(w, "last crash: generation %d at %s: %s; state lost: %s\n", c.Generation, c.Time.Format(time.DateTime), c.Error, strings.Join(c.Lost, ", "))
	}
	if s.LastReload != nil {
		fmt.Fprintln(w, "last reload:", s.LastReload)
	}
}
