package cmd

import (
	"github.com/spf13/cobra"

	"example.org/orchestrator/app"
	"example.org/orchestrator/modules"
)

// workerCommand is the command with which the supervisor and old generations
// start a worker.
func workerCommand(list modules.List, file *string) *cobra.Command {
	c := &cobra.Command{Use: "worker", Hidden: true, Args: cobra.NoArgs}
	runDir := c.Flags().String("run-dir", "", "")
	c.RunE = func(c *cobra.Command, _ []string) error {
		withoutSIGPIPE()
		return exit(app.Work(app.WorkerOptions{ConfigFile: *file, RunDir: *runDir, Modules: list}, c.ErrOrStderr(), logger))
	}
	return c
}
