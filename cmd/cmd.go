// Package cmd is the command line. [Main] is a whole program; what modules it
// has is up to the caller.
package cmd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"orchestrator/app"
	"orchestrator/app/supervisor"
	"orchestrator/config"
	"orchestrator/modules"
)

// Exit codes, part of the contract.
const (
	exitOK         = 0
	exitFailed     = 1
	exitUsage      = 2 // also a wrong configuration, for run and check
	exitRejected   = 3 // or superseded: the old generation still serves
	exitNotRunning = 4
	exitBuild      = 5 // the build failed, the old generation still serves
)

// exitError ends the program with a code.
type exitError struct {
	code int
	err  error // printed unless nil
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// Main runs the command line of a program with these modules and exits.
func Main(list modules.List) {
	os.Exit(run(list, os.Args[1:], os.Stdout, os.Stderr))
}

func run(list modules.List, args []string, stdout, stderr io.Writer) int {
	root := command(list)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	if err == nil {
		return exitOK
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{exitUsage, err} // what cobra itself refuses
	}
	if exit.err != nil {
		fmt.Fprintln(stderr, exit.err)
	}
	return exit.code
}

func command(list modules.List) *cobra.Command {
	root := &cobra.Command{
		Use:           "orchestrator",
		Short:         "Runs Go modules and replaces itself while it runs",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return c.Help()
		},
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	file := root.PersistentFlags().StringP("config", "c", config.DefaultFile, "the configuration `FILE`")
	root.AddCommand(
		runCommand(list, file),
		workerCommand(list, file),
		reloadCommand(file),
		statusCommand(file),
		eventsCommand(file),
		checkCommand(list, file),
		versionCommand(),
	)
	return root
}

func runCommand(list modules.List, file *string) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the program in the foreground; SIGHUP reloads, SIGTERM and Ctrl-C stop",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			withoutSIGPIPE()
			// In development only the build to come knows all its modules.
			hot := config.HotReload(*file)
			cfg, err := config.Load(*file, list.Names())
			if err != nil && (!hot || !config.IsInvalid(err) || !fileExists(*file)) {
				return invalid(err)
			}
			runDir := config.RunDir(*file)
			if cfg != nil {
				runDir = cfg.App.RunDir
			}
			binary, err := program()
			if err != nil {
				return &exitError{exitFailed, fmt.Errorf("find this program: %w", err)}
			}
			settings := config.BuildSettings(*file)
			code, err := supervisor.Run(supervisor.Options{
				ConfigFile: *file,
				RunDir:     runDir,
				HotReload:  hot,
				Binary:     binary,
				Package:    cmp.Or(settings.Package, mainPackage()),
				Flags:      settings.Flags,
				Debug:      settings.Debug,
				Direct:     settings.Direct,
				WorkerArgs: []string{"worker", "--config", *file, "--run-dir", runDir},
				Log:        logger(c.ErrOrStderr()),
				Out:        c.ErrOrStderr(),
			})
			if err != nil {
				return &exitError{max(code, exitFailed), err}
			}
			if code != exitOK {
				return &exitError{code, nil}
			}
			return nil
		},
	}
}

// workerCommand is how the supervisor and older generations start a worker.
func workerCommand(list modules.List, file *string) *cobra.Command {
	c := &cobra.Command{Use: "worker", Hidden: true, Args: cobra.NoArgs}
	runDir := c.Flags().String("run-dir", "", "")
	c.RunE = func(c *cobra.Command, _ []string) error {
		withoutSIGPIPE()
		code := app.Run(app.Options{ConfigFile: *file, RunDir: *runDir, Modules: list, Log: logger(c.ErrOrStderr()), Out: c.ErrOrStderr()})
		if code != exitOK {
			return &exitError{code, nil}
		}
		return nil
	}
	return c
}

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

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print what this program was built from",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			info, ok := debug.ReadBuildInfo()
			if !ok {
				return &exitError{exitFailed, errors.New("this program carries no build information")}
			}
			fmt.Fprintf(c.OutOrStdout(), "orchestrator %s (%s, %s)\n", info.Main.Version, info.Path, info.GoVersion)
			return nil
		},
	}
}

func invalid(err error) error {
	if config.IsInvalid(err) {
		return &exitError{exitUsage, err}
	}
	return &exitError{exitFailed, err}
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// program is the path that this program was started by. [os.Executable] would
// be what a symbolic link in it led to at that time, and a reload is to follow
// one that was changed since then.
func program() (string, error) {
	running, err := os.Executable()
	if err != nil {
		return "", err
	}
	started, err := exec.LookPath(os.Args[0])
	if err == nil {
		started, err = filepath.Abs(started)
	}
	if err != nil || !sameFile(started, running) {
		return running, nil // whoever started it has named it otherwise
	}
	return started, nil
}

func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// withoutSIGPIPE has writes to a terminal or a pipe whose other end is gone
// fail. Otherwise they would end the process without a Shutdown.
func withoutSIGPIPE() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// mainPackage is the import path this program was built from.
func mainPackage() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Path != "" && info.Path != "command-line-arguments" {
		return info.Path
	}
	return "./" + filepath.Join("cmd", "orchestrator")
}

func logger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && len(groups) == 0 {
			return slog.String(slog.TimeKey, a.Value.Time().Format("15:04:05.000"))
		}
		return a
	}}))
}
