package cmd

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"example.org/orchestrator/app"
	"example.org/orchestrator/app/client"
	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

func runCommand(list modules.List, file *string) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the program in the foreground; SIGHUP reloads, SIGTERM and Ctrl-C stop",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			withoutSIGPIPE()
			opts, err := supervisorOptions(list, *file)
			if err != nil {
				return err
			}
			code, err := app.Supervise(opts, c.ErrOrStderr(), logger)
			if err != nil {
				return &exitError{max(code, client.ExitFailed), err}
			}
			return exit(code)
		},
	}
}

// supervisorOptions reads the configuration. In development an invalid one is
// not an error yet: only the build to come knows all modules.
func supervisorOptions(list modules.List, file string) (app.SupervisorOptions, error) {
	if err := config.Rereadable(file); err != nil {
		return app.SupervisorOptions{}, invalid(err)
	}
	hot := config.HotReload(file)
	cfg, err := config.Load(file, list.Names())
	if err != nil && (!hot || !config.IsInvalid(err)) {
		return app.SupervisorOptions{}, invalid(err)
	}
	runDir := config.RunDir(file)
	if cfg != nil {
		runDir = cfg.App.RunDir
	}
	binary, err := program()
	if err != nil {
		return app.SupervisorOptions{}, &exitError{client.ExitFailed, fmt.Errorf("find this program: %w", err)}
	}
	settings := config.BuildSettings(file)
	return app.SupervisorOptions{
		ConfigFile: file,
		RunDir:     runDir,
		HotReload:  hot,
		Binary:     binary,
		Package:    cmp.Or(settings.Package, mainPackage()),
		Flags:      settings.Flags,
		Debug:      settings.Debug,
		Direct:     settings.Direct,
		WorkerArgs: []string{"worker", "--config", file, "--run-dir", runDir},
	}, nil
}
