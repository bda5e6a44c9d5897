package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/config"
)

var compiledIn = []string{"hello", "counter", "chat", "kv"}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "main.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestTheShippedFileIsValid(t *testing.T) {
	cfg, err := config.Load("main.yaml", compiledIn)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Modules) != 4 || !cfg.App.HotReload {
		t.Errorf("Load(main.yaml) = %+v, want hot reload and four modules", cfg)
	}
}

func TestDefaults(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		drain      time.Duration
	}{
		{"an empty program", "modules: []\n", 500 * time.Millisecond},
		{"in production", "app: {hot_reload: false}\n", 10 * time.Second},
		{"a given drain", "app: {hot_reload: false, drain: 2s}\n", 2 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := config.Load(write(t, tt.text), compiledIn)
			if err != nil {
				t.Fatal(err)
			}
			if cfg.App.Drain != tt.drain || cfg.App.Listen != "127.0.0.1:8080" || cfg.App.RunDir != ".orchestrator" {
				t.Errorf("Load(%q) = %+v, want the defaults with drain %v", tt.text, cfg.App, tt.drain)
			}
		})
	}
}

func TestMistakesNameTheirPlace(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string // what the error must contain; FILE stands for the path
	}{
		{"an empty file", "", []string{"FILE: it is empty", "modules: []"}},
		{"comments only", "# nothing\n", []string{"FILE: it is empty"}},
		{"unknown key", "app:\n  lisen: 127.0.0.1:1\n", []string{"FILE:2:3: app: unknown key \"lisen\" (did you mean \"listen\"?)"}},
		{"unknown key without a near one", "app:\n  zzzzzz: 1\n", []string{"FILE:2:3: app: unknown key \"zzzzzz\" (known: name, version,"}},
		{"duplicate key", "app:\n  name: a\n  name: b\n", []string{"FILE:3:3: app: duplicate key \"name\", first given on line 2"}},
		{"wrong type", "app:\n  hot_reload: maybe\n", []string{"FILE:2:15: app.hot_reload: expected true or false, got \"maybe\""}},
		{"a number as duration", "app:\n  drain: 5\n", []string{"FILE:2:10: app.drain: expected a duration such as 500ms"}},
		{"a list for a mapping", "app: [1]\n", []string{"FILE:1:6: app: expected keys and values, got a list"}},
		{"a mapping for a list", "modules: {a: b}\n", []string{"FILE:1:10: modules: expected a list"}},
		{"bad address", "app:\n  listen: localhost\n", []string{"FILE:2:11: app.listen: expected an address such as 127.0.0.1:8080 or unix://path, got \"localhost\""}},
		{"an empty socket path", "app:\n  listen: unix://\n", []string{"FILE:2:11: app.listen: expected a path"}},
		{"address twice", "app:\n  listen: tcp://h:1\nmodules:\n  - name: kv\n    listen: h:1\n", []string{"FILE:5:13: modules[0].listen: the program itself already listens on h:1"}},
		{"one address in two ways", "app:\n  listen: localhost:1\nmodules:\n  - name: kv\n    listen: 127.0.0.1:01\n", []string{"FILE:5:13: modules[0].listen: the program itself already listens on localhost:1"}},
		{"an address within every address", "app:\n  listen: :1\nmodules:\n  - name: kv\n    listen: '[::1]:1'\n", []string{"FILE:5:13: modules[0].listen: the program itself already listens on :1"}},
		{"a socket twice", "app:\n  listen: unix://a/b\nmodules:\n  - name: kv\n    listen: unix://a//b\n", []string{"FILE:5:13: modules[0].listen: the program itself already listens on a/b"}},
		{"bad port", "app:\n  listen: localhost:99999\n", []string{"FILE:2:11: app.listen: expected a port"}},
		{"missing module", "modules:\n  - name: helo\n", []string{"FILE:2:11: modules[0].name: no module \"helo\" is compiled into this program (did you mean \"hello\"?)"}},
		{"module twice", "modules:\n  - name: kv\n  - name: kv\n", []string{"FILE:3:11: modules[1].name: module \"kv\" is listed twice"}},
		{"a module without a name", "modules:\n  - path: /x/\n", []string{"FILE:2:5: modules[0]: a module needs a name"}},
		{"bad path", "modules:\n  - name: kv\n    path: kv\n", []string{"FILE:3:11: modules[0].path: expected a path that starts and ends with a slash"}},
		{"path twice", "modules:\n  - name: kv\n  - {name: hello, path: /kv/}\n", []string{"FILE:3:25: modules[1].path: module \"kv\" already has the path /kv/"}},
		{"half of TLS", "app:\n  tls: {cert: a.pem}\n", []string{"FILE:2:8: app.tls: needs both cert and key"}},
		{"a zero pause", "app:\n  max_pause: 0s\n", []string{"FILE:2:14: app.max_pause: must be a duration above zero"}},
		{"bad YAML", "app:\n  name: [a\n", []string{"FILE:", ": bad YAML: "}},
		{"two documents", "app: {name: a}\n---\napp: {name: b}\n", []string{"a second YAML document"}},
		{"every mistake at once", "app:\n  lisen: x\n  drain: 5\n", []string{"FILE:2:3:", "FILE:3:10:"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := write(t, tt.text)
			_, err := config.Load(file, compiledIn)
			if err == nil {
				t.Fatalf("Load(%q) = nil, want an error", tt.text)
			}
			if !config.IsInvalid(err) {
				t.Errorf("IsInvalid(%v) = false, want true", err)
			}
			for _, want := range tt.want {
				want = strings.ReplaceAll(want, "FILE", file)
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Load(%q) = %q, want it to contain %q", tt.text, err, want)
				}
			}
		})
	}
}

func TestAMissingFileIsNamed(t *testing.T) {
	_, err := config.Load(filepath.Join(t.TempDir(), "none.yaml"), compiledIn)
	if err == nil || !strings.Contains(err.Error(), "none.yaml: there is no such file") {
		t.Errorf("Load = %v, want the path and what is wrong", err)
	}
}

func TestRunDirReadsWhatItCan(t *testing.T) {
	for text, want := range map[string]string{
		"app: {run_dir: elsewhere, unknown: key}\nmodules: {}\n": "elsewhere",
		"app: {name: [}\n": ".orchestrator",
		"":                 ".orchestrator",
	} {
		if got := config.RunDir(write(t, text)); got != want {
			t.Errorf("RunDir(%q) = %q, want %q", text, got, want)
		}
	}
	if got := config.RunDir(filepath.Join(t.TempDir(), "none")); got != ".orchestrator" {
		t.Errorf("RunDir of a missing file = %q, want the default", got)
	}
}

func TestFindRunDir(t *testing.T) {
	for text, want := range map[string]string{
		"app: {run_dir: elsewhere, unknown: key}\nmodules: {}\n": "elsewhere",
		"app:\n  run_dir: elsewhere\n  name: [\n":                "elsewhere",
		"modules: []\n":    ".orchestrator",
		"":                 ".orchestrator",
		"app: {name: [}\n": "",
	} {
		got, said, err := config.FindRunDir(write(t, text))
		if got != want || said != (want == "elsewhere") || (err == nil) != (want != "") {
			t.Errorf("FindRunDir(%q) = %q, %v, %v; want %q", text, got, said, err, want)
		}
	}
	dir := t.TempDir()
	for _, file := range []string{filepath.Join(dir, "none"), dir, ""} {
		if got, _, err := config.FindRunDir(file); err == nil || !config.IsInvalid(err) {
			t.Errorf("FindRunDir(%q) = %q, %v; want what is wrong with it", file, got, err)
		}
	}
}

func TestRereadable(t *testing.T) {
	good := write(t, "modules: []\n")
	link := filepath.Join(t.TempDir(), "link.yaml")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{good, link} {
		if err := config.Rereadable(file); err != nil {
			t.Errorf("Rereadable(%s) = %v, want nil", file, err)
		}
	}
	for _, file := range []string{"/dev/null", "/dev/stdin", filepath.Join(t.TempDir(), "none")} {
		if err := config.Rereadable(file); err == nil || !config.IsInvalid(err) {
			t.Errorf("Rereadable(%s) = %v, want an error", file, err)
		}
	}
}

func TestSectionDecodesStrictly(t *testing.T) {
	type settings struct {
		Path  string
		Limit int `yaml:"limit"`
	}
	load := func(text string) config.Section {
		t.Helper()
		cfg, err := config.Load(write(t, "modules:\n  - name: kv\n    config: "+text+"\n"), compiledIn)
		if err != nil {
			t.Fatal(err)
		}
		return cfg.Modules[0].Config
	}
	got := settings{Limit: 7}
	if err := load("{path: a.db}").Decode(&got); err != nil || got != (settings{"a.db", 7}) {
		t.Errorf("Decode = %+v, %v, want the path and the default limit", got, err)
	}
	err := load("{paht: a.db}").Decode(&got)
	if err == nil || !strings.Contains(err.Error(), "main.yaml:3:14: modules[0].config: unknown key \"paht\" (did you mean \"path\"?)") {
		t.Errorf("Decode of an unknown key = %v, want its place and the nearest key", err)
	}
	if err := (config.Section{}).Decode(&got); err != nil {
		t.Errorf("Decode of an absent section = %v, want nil", err)
	}
}

func TestDigestTellsChangedSettings(t *testing.T) {
	digest := func(text string) string {
		t.Helper()
		cfg, err := config.Load(write(t, text), compiledIn)
		if err != nil {
			t.Fatal(err)
		}
		return cfg.Digest("kv")
	}
	a := digest("modules: [{name: kv, config: {path: a}}]")
	if b := digest("# a comment\nmodules: [{name: hello}, {name: kv, config: {path: a}}]"); a != b {
		t.Errorf("Digest changed from %s to %s with another module only", a, b)
	}
	if b := digest("modules: [{name: kv, config: {path: b}}]"); a == b {
		t.Errorf("Digest stayed %s when the settings changed", a)
	}
	if got := digest("modules: []"); got != "" {
		t.Errorf("Digest of a module that is not configured = %q, want none", got)
	}
}
