//go:build unix

package main_test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"example.org/orchestrator/app/e2e/e2etest"
)

// TestScripts runs testdata/script: a script for each promise, written as a
// user's session. In addition to testscript's own commands there are
//
//	run [CODE]            orchestrator run; waits until it serves, or for its exit code
//	orchestrator ARGS     any other command; [!] if it must fail
//	edit FILE OLD NEW     replaces text in a source file
//	get PATH TEXT         waits until GET PATH answers TEXT
//	post PATH TEXT        POST PATH answers TEXT
//	logged TEXT...        waits until the program has printed TEXT, in this order
//	neverlogged TEXT      the program has not printed TEXT
//	stop                  sends SIGTERM and waits for the end
func TestScripts(t *testing.T) {
	type key struct{}
	of := func(ts *testscript.TestScript) *e2etest.Project { return ts.Value(key{}).(*e2etest.Project) }
	testscript.Run(t, testscript.Params{
		Dir: "../../cmd/orchestrator/testdata/script",
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "orch")
			if err != nil {
				return err
			}
			p := e2etest.Make(env.T().(e2etest.Reporter), dir)
			// The files of the script belong in the project.
			err = filepath.WalkDir(env.WorkDir, func(path string, e os.DirEntry, err error) error {
				rel, _ := filepath.Rel(env.WorkDir, path)
				if err != nil || e.IsDir() || strings.HasPrefix(rel, ".tmp") {
					return err
				}
				data, err := os.ReadFile(path)
				p.Write(rel, string(data))
				return err
			})
			env.Cd = dir
			env.Values[key{}] = p
			env.Defer(func() {
				p.CleanUp()
				os.RemoveAll(dir)
			})
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"run": func(ts *testscript.TestScript, _ bool, args []string) {
				p := of(ts)
				p.T = ts
				if len(args) == 0 {
					p.StartServing()
					return
				}
				p.Start()
				if got := p.Ended(); args[0] != e2etest.Itoa(got) {
					ts.Fatalf("run ended with %d, want %s\n%s", got, args[0], p.Printed())
				}
			},
			"stop": func(ts *testscript.TestScript, _ bool, _ []string) {
				p := of(ts)
				ts.Check(p.Cmd.Process.Signal(os.Signal(e2etest.Sigterm)))
				if got := p.Ended(); got != 0 {
					ts.Fatalf("run ended with %d, want 0\n%s", got, p.Printed())
				}
			},
			"orchestrator": func(ts *testscript.TestScript, neg bool, args []string) {
				want := 0
				if neg {
					want = -1
				}
				if len(args) > 1 && strings.HasPrefix(args[0], "exit=") {
					want, args = e2etest.Atoi(strings.TrimPrefix(args[0], "exit=")), args[1:]
				}
				out, errs, code := of(ts).Command(args...)
				ts.Logf("%s%s", out, errs)
				if want == -1 && code == 0 || want >= 0 && code != want {
					ts.Fatalf("orchestrator %s: exit code %d, want %d", strings.Join(args, " "), code, want)
				}
				ts.Check(os.WriteFile(ts.MkAbs("stdout"), []byte(out), 0o644))
				ts.Check(os.WriteFile(ts.MkAbs("stderr"), []byte(errs), 0o644))
			},
			"edit": func(ts *testscript.TestScript, _ bool, args []string) {
				of(ts).Edit(args[0], args[1], args[2])
			},
			"get": func(ts *testscript.TestScript, _ bool, args []string) {
				p := of(ts)
				p.Wait("GET "+args[0]+" to answer "+args[1], func() bool { return p.Get(args[0]) == args[1] })
			},
			"post": func(ts *testscript.TestScript, _ bool, args []string) {
				_, got, err := e2etest.Do(http.MethodPost, of(ts).URL(args[0]), "")
				ts.Check(err)
				if got != args[1] {
					ts.Fatalf("POST %s = %q, want %q", args[0], got, args[1])
				}
			},
			"logged": func(ts *testscript.TestScript, _ bool, args []string) {
				p := of(ts)
				p.Wait("the program to print "+strings.Join(args, ", then "), func() bool {
					rest := p.Printed()
					return !slices.ContainsFunc(args, func(text string) bool {
						var ok bool
						_, rest, ok = strings.Cut(rest, text)
						return !ok
					})
				})
			},
			"neverlogged": func(ts *testscript.TestScript, _ bool, args []string) {
				if log := of(ts).Printed(); strings.Contains(log, args[0]) {
					ts.Fatalf("the program printed %q:\n%s", args[0], log)
				}
			},
		},
	})
}
