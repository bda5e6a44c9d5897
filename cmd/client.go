package cmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"orchestrator/app/control"
	"orchestrator/app/supervisor"
	"orchestrator/config"
)

// dial connects to the running program.
func dial(file string) (*control.Conn, error) {
	path := control.Socket(config.RunDir(file))
	c, err := control.Dial(path, control.Hello{Role: control.RoleClient})
	var version *control.VersionError
	if errors.As(err, &version) {
		return nil, &exitError{exitFailed, err}
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, &exitError{exitFailed, fmt.Errorf("this user may not control the program: %w", err)}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, &exitError{exitFailed, fmt.Errorf("the program does not answer; is it stopped? %w", err)}
	}
	if err != nil {
		if abs, absErr := filepath.Abs(path); absErr == nil {
			path = abs
		}
		return nil, &exitError{exitNotRunning, fmt.Errorf("nothing is running: nobody answers at %s", path)}
	}
	return c, nil
}

// answer receives until a message of the wanted type comes.
func answer(c *control.Conn, want string) (control.Message, error) {
	for {
		m, err := c.Receive()
		if err != nil {
			return m, &exitError{exitFailed, fmt.Errorf("the program ended before it answered: %w", err)}
		}
		switch m.Type {
		case want, control.TypeEnd:
			return m, nil
		case control.TypeError:
			return m, &exitError{exitFailed, errors.New(m.Error)}
		}
	}
}

func printJSON(w io.Writer, v any) error {
	return json.NewEncoder(w).Encode(v)
}

func reloadCommand(file *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "reload",
		Short: "Upgrade the running program and wait for the outcome",
		Args:  cobra.NoArgs,
	}
	var r control.ReloadRequest
	c.Flags().BoolVar(&r.Build, "build", false, "build from the sources first, also with hot_reload off")
	c.Flags().StringVar(&r.Binary, "binary", "", "upgrade to this `FILE`")
	c.Flags().BoolVar(&r.Force, "force", false, "cancel requests that do not end in time")
	c.Flags().BoolVar(&r.WaitProbation, "wait-probation", false, "wait until the new generation is final")
	timeout := c.Flags().Duration("timeout", 15*time.Second, "give up after this time, unless committed")
	drop := c.Flags().String("drop-state", "", "start all modules, or this `MODULE`, without their state")
	c.Flags().Lookup("drop-state").NoOptDefVal = "*"
	asJSON := c.Flags().Bool("json", false, "print the outcome as JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if r.Build && r.Binary != "" {
			return errors.New("--build and --binary exclude each other")
		}
		if *timeout <= 0 {
			return errors.New("--timeout must be above zero")
		}
		r.TimeoutMS = timeout.Milliseconds()
		if r.Binary != "" {
			abs, err := filepath.Abs(r.Binary)
			if err != nil {
				return &exitError{exitFailed, err}
			}
			r.Binary = abs
		}
		if *drop != "" {
			r.DropState = []string{*drop}
		}
		conn, err := dial(*file)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.Send(control.Message{Type: control.TypeReload, Reload: &r}); err != nil {
			return &exitError{exitFailed, err}
		}
		m, err := answer(conn, control.TypeOutcome)
		if err != nil {
			return err
		}
		if m.Outcome == nil {
			return &exitError{exitFailed, errors.New("the program gave no outcome: whether the new code is live is not known; see status")}
		}
		if *asJSON {
			err = printJSON(c.OutOrStdout(), m.Outcome)
		} else {
			_, err = fmt.Fprintln(c.OutOrStdout(), supervisor.Describe(*m.Outcome))
		}
		if code := exitCode(m.Outcome); code != exitOK {
			return &exitError{code, nil}
		}
		return err
	}
	return c
}

func exitCode(o *control.Outcome) int {
	switch {
	case o.Outcome == control.Reloaded || o.Outcome == control.Unchanged:
		return exitOK
	case o.Outcome == control.Failed && o.Stage == "build":
		return exitBuild
	case o.Outcome == control.Failed:
		return exitFailed
	default:
		return exitRejected
	}
}

func statusCommand(file *string) *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "Tell what is running", Args: cobra.NoArgs}
	asJSON := c.Flags().Bool("json", false, "print it as JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		conn, err := dial(*file)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.Send(control.Message{Type: control.TypeStatus}); err != nil {
			return &exitError{exitFailed, err}
		}
		m, err := answer(conn, control.TypeStatus)
		if err != nil {
			return err
		}
		if m.Status == nil {
			return &exitError{exitFailed, errors.New("the program gave no status")}
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), m.Status)
		}
		printStatus(c.OutOrStdout(), m.Status)
		return nil
	}
	return c
}

func printStatus(w io.Writer, s *control.Status) {
	mode := "off"
	if s.HotReload {
		mode = "on"
	}
	fmt.Fprintf(w, "%s: %s, generation %d (process %d, build %s)\n", s.Name, s.State, s.Generation, s.PID, s.Build)
	fmt.Fprintf(w, "supervisor %d, hot reload %s, listening on %s\n", s.SupervisorPID, mode, strings.Join(s.Listen, ", "))
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
		fmt.Fprintln(w, "last reload:", supervisor.Describe(*s.LastReload))
	}
}

func eventsCommand(file *string) *cobra.Command {
	c := &cobra.Command{Use: "events", Short: "Print the events there were and, with --follow, those to come", Args: cobra.NoArgs}
	follow := c.Flags().Bool("follow", false, "go on until interrupted")
	asJSON := c.Flags().Bool("json", false, "print a JSON object a line")
	c.RunE = func(c *cobra.Command, _ []string) error {
		conn, err := dial(*file)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.Send(control.Message{Type: control.TypeEvents, Events: &control.EventsRequest{Follow: *follow}}); err != nil {
			return &exitError{exitFailed, err}
		}
		for {
			m, err := answer(conn, control.TypeEvent)
			if err != nil {
				return err
			}
			if m.Type == control.TypeEnd || m.Event == nil {
				return nil
			}
			e := m.Event
			if *asJSON {
				err = printJSON(c.OutOrStdout(), e)
			} else {
				_, err = fmt.Fprintf(c.OutOrStdout(), "%6d %s generation %d %s %s\n", e.Seq, e.Time.Format("15:04:05.000"), e.Generation, e.Topic, e.Data)
			}
			if err != nil {
				return &exitError{exitFailed, err}
			}
		}
	}
	return c
}
