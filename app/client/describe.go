package client

import (
	"fmt"
	"strings"
)

// told lists the stages whose times are shown to people, in order.
var told = []Stage{StageBuild, StageStart, StagePrepare, StageHold, StageShutdown, StageRestore, StagePause}

// String describes the outcome to people: in one line, except for notes and for
// a compiler's message, which is given whole.
func (o *Outcome) String() string {
	var stages []string
	for _, stage := range told {
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
	where := string(o.Stage)
	if o.FailedModule != "" {
		where += " of module " + o.FailedModule
	}
	switch o.Verdict {
	case Reloaded:
		what := "no module changed"
		if len(o.Modules) > 0 {
			what = strings.Join(o.Modules, ", ")
		}
		lost := ""
		if len(o.Lost) > 0 {
			lost = "; state lost: " + strings.Join(o.Lost, ", ")
		}
		return fmt.Sprintf("reloaded: %s: generation %d serves after %s%s%s%s", what, o.Generation, times, o.connections(), lost, o.notes())
	case Unchanged:
		return fmt.Sprintf("unchanged: the build is the one that serves, generation %d, after %s", o.Serving, times)
	case Failed:
		if o.Stage == StageBuild {
			return fmt.Sprintf("%s\nbuild failed after %s; %s", o.Error, times, still)
		}
		return fmt.Sprintf("reload failed in %s: %s%s", where, o.Error, o.consequence())
	case RolledBack:
		return fmt.Sprintf("rolled back: generation %d failed after it took over, in %s: %s; generation %d serves again%s", o.Generation, where, o.Error, o.Serving, o.consequence())
	case Superseded:
		return fmt.Sprintf("superseded: %s; %s", o.Error, still)
	default:
		if where != "" {
			where = " in " + where
		}
		return fmt.Sprintf("reload rejected%s: %s; %s, after %s%s", where, o.Error, still, times, o.consequence())
	}
}

func (o *Outcome) notes() (text string) {
	for _, n := range o.Notes {
		text += "\nnote: " + n
	}
	return text
}

// connections says what became of the connections.
func (o *Outcome) connections() string {
	if o.Held+o.Forwarded+o.Cancelled == 0 {
		return ""
	}
	text := fmt.Sprintf("; connections: %d held, %d moved, %d forwarded; %d cancelled", o.Held, o.Moved, o.Forwarded, o.Cancelled)
	if o.Closed > 0 {
		text += fmt.Sprintf(", %d closed after the drain", o.Closed)
	}
	return text
}

// consequence says what a failure cost.
func (o *Outcome) consequence() (text string) {
	if o.Cancelled > 0 {
		text += fmt.Sprintf("; cancelled: %d", o.Cancelled)
	}
	if len(o.Reverted) > 0 {
		text += "; reverted to the moment of the takeover: " + strings.Join(o.Reverted, ", ")
	} else if o.Verdict == RolledBack && len(o.Lost) == 0 {
		text += "; nothing was lost"
	}
	if len(o.Lost) > 0 {
		text += "; state lost: " + strings.Join(o.Lost, ", ")
	}
	return text + o.notes()
}
