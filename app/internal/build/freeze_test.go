package build_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/orchestrator/app/internal/build"
	"example.org/orchestrator/app/internal/sources"
)

// TestASaveDuringABuild leaves nothing wrong in the go command's cache: it hashes
// a file and compiles it later, so without copies the object of the second content
// would be found for the first one, now and in every later build.
func TestASaveDuringABuild(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("GOCACHE", t.TempDir())
	const source = "package main\n\nfunc main() { println(\"orchestrator-one\") }\n"
	write(t, nil, map[string]string{"go.mod": "module saved\n\ngo 1.26\n", "main.go": source})
	_, reference := newDirect(t)
	in, err := reference.Inputs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	frozen := t.TempDir()
	spec := build.Spec{
		Out: filepath.Join(t.TempDir(), "out"),
		Freeze: func() (map[string]string, error) {
			copies, _, err := sources.Copy(in.Set(), frozen)
			if err == nil {
				err = os.WriteFile("main.go", []byte(strings.Replace(source, "orchestrator-one", "orchestrator-two", 1)), 0o644)
			}
			return copies, err
		},
	}
	if _, err := reference.Build(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(spec.Out)
	if err != nil || !strings.Contains(string(program), "orchestrator-one") || strings.Contains(string(program), "orchestrator-two") {
		t.Errorf("the build is not of the content that it began with (%v)", err)
	}
}
