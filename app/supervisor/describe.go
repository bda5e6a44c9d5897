package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"orchestrator/app/build"
	"orchestrator/app/control"
)

// stageOrder is the order in which stages are told to people.
var stageOrder = []string{"build", "start", "prepare", "hold", "shutdown", "restore", "pause"}

// Describe tells an outcome to people, honestly and in one line, but for a
// compiler's message, which is given whole.
func Describe(o control.Outcome) string {
	var stages []string
	for _, stage := range stageOrder {
		if ms, ok := o.StagesMS[stage]; ok {
			stages = append(stages, fmt.Sprintf("%s %.4g", stage, ms))
		}
	}
	times := fmt.Sprintf("%.4g ms", o.TotalMS)
	if len(stages) > 0 {
		times += " (" + strings.Join(stages, ", ") + ")"
	}
	still := fmt.Sprintf("generation %d still serves", o.Serving)
	if o.Serving == 0 {
		still = "nothing serves"
	}
	where := o.Stage
	if o.FailedModule != "" {
		where += " of module " + o.FailedModule
	}
	notes := ""
	for _, n := range o.Notes {
		notes += "\nnote: " + n
	}
	switch o.Outcome {
	case control.Reloaded:
		what := "no module changed"
		if len(o.Modules) > 0 {
			what = strings.Join(o.Modules, ", ")
		}
		return fmt.Sprintf("reloaded: %s: generation %d serves after %s%s%s", what, o.Generation, times, connections(o), notes)
	case control.Unchanged:
		return fmt.Sprintf("unchanged: the build is the one that serves, generation %d, after %s", o.Serving, times)
	case control.Failed:
		if o.Stage == "build" {
			return fmt.Sprintf("%s\nbuild failed after %s; %s", o.Error, times, still)
		}
		return fmt.Sprintf("reload failed in %s: %s%s", where, o.Error, consequence(o))
	case control.RolledBack:
		return fmt.Sprintf("rolled back: generation %d failed after it took over, in %s: %s; generation %d serves again%s", o.Generation, where, o.Error, o.Serving, consequence(o))
	case control.Superseded:
		return fmt.Sprintf("superseded: %s; %s", o.Error, still)
	default:
		if where != "" {
			where = " in " + where
		}
		return fmt.Sprintf("reload rejected%s: %s; %s, after %s%s", where, o.Error, still, times, consequence(o))
	}
}

// connections tells what became of them.
func connections(o control.Outcome) string {
	if o.Held+o.Forwarded+o.Cancelled == 0 {
		return ""
	}
	text := fmt.Sprintf("; connections: %d held, %d moved, %d forwarded; %d cancelled", o.Held, o.Moved, o.Forwarded, o.Cancelled)
	if o.Cut > 0 {
		text += fmt.Sprintf(", %d cut after the drain", o.Cut)
	}
	return text
}

// consequence tells what a failure cost.
func consequence(o control.Outcome) string {
	text := ""
	if o.Cancelled > 0 {
		text += fmt.Sprintf("; cancelled: %d", o.Cancelled)
	}
	if len(o.Rewound) > 0 {
		text += "; rewound to the moment of its takeover: " + strings.Join(o.Rewound, ", ")
	} else if o.Outcome == control.RolledBack {
		text += "; nothing was lost"
	}
	if len(o.Lost) > 0 {
		text += "; state lost: " + strings.Join(o.Lost, ", ")
	}
	return text
}

// supervisorOnly tells when a change concerns code that this process runs and
// no reload replaces.
func supervisorOnly(in *build.Inputs, paths []string) string {
	if in == nil {
		return ""
	}
	var found []string
	for _, path := range paths {
		for _, p := range []string{"app/supervisor/", "app/watch/", "app/build/", "cmd/"} {
			if strings.HasPrefix(path, p) && !strings.HasPrefix(path, "cmd/orchestrator/") {
				found = append(found, strings.TrimSuffix(p, "/"))
			}
		}
	}
	if len(found) == 0 {
		return ""
	}
	slices.Sort(found)
	return "the change in " + strings.Join(slices.Compact(found), ", ") + " is live in the supervisor after restarting run"
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// relative shortens paths below the working directory.
func relative(paths []string) []string {
	wd, err := os.Getwd()
	short := make([]string, 0, len(paths))
	for _, p := range paths {
		if rel, relErr := filepath.Rel(wd, p); err == nil && relErr == nil && !strings.HasPrefix(rel, "..") {
			p = rel
		}
		short = append(short, p)
	}
	return short
}

// copyFile copies an executable.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
