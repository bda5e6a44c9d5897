// Package cmd is the command line. [Main] is a whole program with the modules
// that the caller gives it.
//
// Each command has a file of its own and a line in [command].
package cmd

import (
	"context"
	"encoding/json"
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

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

// exitError ends the program with an exit code.
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

// exit returns an error that ends the program with code and prints nothing; nil
// for code 0.
func exit(code int) error {
	if code == client.ExitOK {
		return nil
	}
	return &exitError{code, nil}
}

// Main runs the command line of a program with these modules and exits.
func Main(list modules.List) {
	os.Exit(run(list, os.Args[1:], os.Stdout, os.Stderr))
}

func run(list modules.List, args []string, stdout, stderr io.Writer) int {
	root := command(list)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return client.ExitOK
	}
	code := client.ExitUsage // an error of cobra, or of flags that exclude each other
	var exit *exitError
	if errors.As(err, &exit) {
		code, err = exit.code, exit.err
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
	}
	return code
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
		stopCommand(file),
		configCommand(list, file),
		checkCommand(list, file),
		versionCommand(),
	)
	return root
}

// failure adds the exit code to an error of package client.
func failure(err error) error {
	var nobody *client.NotRunningError
	if errors.As(err, &nobody) {
		return &exitError{client.ExitNotRunning, err}
	}
	return &exitError{client.ExitFailed, err}
}

// printed adds the exit code to an error of printing.
func printed(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{client.ExitFailed, err}
}

// invalid adds the exit code to an error about a configuration.
func invalid(err error) error {
	if config.IsInvalid(err) {
		return &exitError{client.ExitUsage, err}
	}
	return &exitError{client.ExitFailed, err}
}

func printJSON(w io.Writer, v any) error {
	return json.NewEncoder(w).Encode(v)
}

// withoutSIGPIPE makes writes to a closed terminal or pipe fail. Otherwise they
// would end the process without a Shutdown.
func withoutSIGPIPE() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// program returns the path by which this program was started. [os.Executable]
// resolves symbolic links, but a reload must follow one that was changed since.
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
		return running, nil // it was started with another name in argv[0]
	}
	return started, nil
}

func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// mainPackage returns the import path that this program was built from.
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
