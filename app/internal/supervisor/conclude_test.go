//go:build unix

package supervisor

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/internal/control"
	"example.org/orchestrator/app/internal/sources"
)

// TestConclude is the table of all endings with their verdicts and exit codes.
func TestConclude(t *testing.T) {
	took := &control.Report{Generation: 2, TookOver: true, Changed: []string{"hello"}, Notes: []string{"theirs"}}
	standby := &control.Report{Generation: 2, TookOver: true, Standby: true}
	for _, tt := range []struct {
		name      string
		f         facts
		verdict   client.Verdict
		code      int
		probation client.Probation
	}{
		{"it took over", facts{report: took}, client.Reloaded, 0, ""},
		{"it took over, and one stands by", facts{report: standby}, client.Reloaded, 0, client.ProbationPending},
		{"before anything was touched", facts{report: &control.Report{Stage: client.StagePrepare}}, client.Rejected, 3, ""},
		{"everything was rolled back", facts{report: &control.Report{Stage: client.StageInitialize}}, client.Rejected, 3, ""},
		{"a module is down", facts{report: &control.Report{Stage: client.StageInitialize, Down: []string{"a"}}}, client.Failed, 1, ""},
		{"a state is lost", facts{report: &control.Report{Stage: client.StageShutdown, Lost: []string{"a"}}}, client.Failed, 1, ""},
		{"after the commit", facts{report: &control.Report{Stage: client.StageProbation, Committed: true}}, client.RolledBack, 3, client.ProbationFailed},
		{"after the commit, with a loss", facts{report: &control.Report{Stage: client.StageProbation, Committed: true, Lost: []string{"a"}}}, client.RolledBack, 3, client.ProbationFailed},
		{"the build failed", facts{end: endBuildFailed, stage: client.StageBuild}, client.Failed, 5, ""},
		{"nothing changed", facts{end: endUnchanged}, client.Unchanged, 0, ""},
		{"it was given up", facts{end: endRefused, stage: client.StageStart}, client.Rejected, 3, ""},
		{"it was given up while it was built", facts{end: endRefused, stage: client.StageBuild}, client.Rejected, 3, ""},
		{"a newer one came", facts{end: endSuperseded}, client.Superseded, 3, ""},
		{"it died", facts{end: endDied, stage: client.StageHold, lost: []string{"a"}}, client.Failed, 1, ""},
		{"both died", facts{end: endDiedAfter, lost: []string{"a"}}, client.Failed, 1, client.ProbationFailed},
	} {
		o := conclude(tt.f)
		if o.Verdict != tt.verdict || o.ExitCode() != tt.code || o.Probation != tt.probation {
			t.Errorf("%s: %s, exit code %d, probation %q; want %s, %d, %q", tt.name, o.Verdict, o.ExitCode(), o.Probation, tt.verdict, tt.code, tt.probation)
		}
		if o.Trigger == nil || o.Modules == nil || o.StagesMS == nil {
			t.Errorf("%s: a list is null in JSON: %+v", tt.name, o)
		}
		tt.f.notes = []string{"ours"}
		if notes := conclude(tt.f).Notes; (len(notes) > 0) != (tt.verdict == client.Reloaded) {
			t.Errorf("%s: notes %q", tt.name, notes)
		}
	}
	o := conclude(facts{report: took, notes: []string{"ours"}, build: 20 * time.Millisecond, total: 30 * time.Millisecond, trigger: []string{"a.go"}, serving: 2})
	want := client.Outcome{
		Verdict: client.Reloaded, Generation: 2, Serving: 2, Trigger: []string{"a.go"}, Modules: []string{"hello"},
		StagesMS: map[client.Stage]float64{client.StageBuild: 20}, TotalMS: 30, Notes: []string{"theirs", "ours"},
	}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("conclude = %+v, want %+v", o, want)
	}
}

// TestConclude_everyEndingHasAVerdict: a new ending must not fall through to the
// verdict of another.
func TestConclude_everyEndingHasAVerdict(t *testing.T) {
	for end := endUnchanged; end < endings; end++ {
		f := facts{end: end}
		if v := f.verdict(); v == "" {
			t.Errorf("ending %d has no verdict", end)
		}
	}
}

func TestRevise(t *testing.T) {
	had := client.Outcome{Verdict: client.Reloaded, Generation: 2, Serving: 2, Modules: []string{"hello"}, TotalMS: 12, Held: 3, Notes: []string{"n"}, Probation: client.ProbationPending}
	now := client.Outcome{Verdict: client.RolledBack, Serving: 1, Stage: client.StageHealthy, FailedModule: "hello", Error: "a headache", Reverted: []string{"counter"}, Notes: []string{"m"}, Probation: client.ProbationFailed}
	o := revise(had, now)
	if o.Verdict != client.RolledBack || o.Serving != 1 || o.Generation != 2 || o.TotalMS != 12 || o.Held != 3 || o.Error != "a headache" || !slices.Equal(o.Notes, now.Notes) || o.Probation != client.ProbationFailed || !slices.Equal(o.Reverted, now.Reverted) || !slices.Equal(o.Modules, had.Modules) {
		t.Errorf("revise = %+v", o)
	}
}

func TestAffected(t *testing.T) {
	says := &control.Serving{
		Modules:  []client.Module{{Name: "a"}, {Name: "b"}},
		Packages: map[string]string{"a": "p/a", "b": "p/b"},
	}
	for _, tt := range []struct {
		packages []string
		unknown  bool
		want     string
	}{{nil, false, ""}, {[]string{"p/b", "p/other"}, false, "b"}, {nil, true, "a b"}} {
		if got := strings.Join(affected(says, tt.packages, tt.unknown), " "); got != tt.want {
			t.Errorf("affected(%q, %v) = %q, want %q", tt.packages, tt.unknown, got, tt.want)
		}
	}
	if got := affected(nil, nil, true); len(got) != 0 {
		t.Errorf("affected without a worker = %q", got)
	}
}

// TestOwnCode: a change in code that this process runs too is not live
// everywhere.
func TestOwnCode(t *testing.T) {
	type here struct{}
	own := reflect.TypeFor[here]().PkgPath()
	pkg := func(path, dir string, imports ...string) sources.Package {
		return sources.Package{ImportPath: path, Dir: dir, Imports: imports}
	}
	in := &sources.Inputs{Root: "/r", Packages: map[string]sources.Package{
		own:        pkg(own, "/r/supervisor", "x/config"),
		"x/config": pkg("x/config", "/r/config"),
		"x/cmd":    pkg("x/cmd", "/r/cmd", own, "x/worker"),
		"x/worker": pkg("x/worker", "/r/worker", "x/config"),
		"x/main":   {ImportPath: "x/main", Dir: "/r/main", Imports: []string{"x/cmd"}, Main: true},
	}}
	for file, want := range map[string]string{
		"/r/supervisor/a.go": own,
		"/r/config/a.go":     "x/config",
		"/r/cmd/a.go":        "x/cmd",
		"/r/worker/a.go":     "",
		"/r/main/a.go":       "",
		"/elsewhere/a.go":    "",
	} {
		if got := strings.Join(ownCode(in, []string{file}), " "); got != want {
			t.Errorf("ownCode(%s) = %q, want %q", file, got, want)
		}
	}
	if ownCode(nil, []string{"/r/config/a.go"}) != nil {
		t.Error("ownCode without inputs says something")
	}
}
