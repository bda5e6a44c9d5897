package config_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/orchestrator/config"
)

var update = flag.Bool("update", false, "write the table in the docs")

// TestEverySettingIsExplained: a setting without its text is not one.
func TestEverySettingIsExplained(t *testing.T) {
	list := config.Settings(nil)
	if len(list) < 25 {
		t.Fatalf("there are %d settings", len(list))
	}
	for _, s := range list {
		if s.Doc == "" || s.Type == "" {
			t.Errorf("%s has no text: %+v", s.Key, s)
		}
	}
}

// TestConfigurationIsDocumented: docs/CONFIGURATION.md has the table of all settings.
// With -update it is written.
func TestConfigurationIsDocumented(t *testing.T) {
	const file, begin, end = "../docs/CONFIGURATION.md", "<!-- settings -->\n", "<!-- end of settings -->"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(data), begin)
	have, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the settings", file)
	}
	if have == config.SettingsTable() {
		return
	}
	if !*update {
		t.Fatalf("%s is not up to date: go test ./config -run Documented -update", file)
	}
	if err := os.WriteFile(file, []byte(head+begin+config.SettingsTable()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "main.yaml")
	if err := os.WriteFile(file, []byte("app:\n  hot_reload: false\n  max_pause: 2s\nmodules:\n  - name: m\n    config: {a: 1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file, []string{"m"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][2]string{ // value, from
		"app.hot_reload":       {"false", file + ":2"},
		"app.max_pause":        {"2s", file + ":3"},
		"app.max_freeze":       {"2s", "default"},
		"app.drain":            {"10s", "default"},
		"app.max_header_bytes": {"64KiB", "default"},
		"modules[0].name":      {"m", file + ":5"},
		"modules[0].config":    {"(1 settings)", file + ":6"},
	}
	for _, s := range config.Settings(cfg) {
		if w, ok := want[s.Key]; ok {
			if got := [2]string{s.Value, s.From}; got != w {
				t.Errorf("%s = %q, want %q", s.Key, got, w)
			}
			delete(want, s.Key)
		}
	}
	if len(want) > 0 {
		t.Errorf("missing are %v", want)
	}
}
