package app_test

import (
	"os"
	"strings"
	"testing"

	"example.org/orchestrator/app"
)

// TestTheVersionIsTheSameEverywhere compares what `version` prints, the shipped
// configuration and the newest entry of the changelog.
func TestTheVersionIsTheSameEverywhere(t *testing.T) {
	for file, want := range map[string]string{
		"../config/main.yaml": "\n  version: " + app.Version + "\n",
		"../CHANGELOG.md":     "\n## " + app.Version,
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), want) {
			t.Errorf("%s does not say %q", file, strings.TrimSpace(want))
		}
	}
	changelog, err := os.ReadFile("../CHANGELOG.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, rest, _ := strings.Cut(string(changelog), "\n## "); !strings.HasPrefix(rest, app.Version) {
		t.Errorf("the first entry of the changelog is not %s", app.Version)
	}
}
