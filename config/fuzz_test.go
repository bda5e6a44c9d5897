package config

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// FuzzConfig reads any text. It must end, without a panic, with a valid
// configuration or with errors that stand within the file.
func FuzzConfig(f *testing.F) {
	shipped, err := os.ReadFile("main.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, text := range []string{
		string(shipped), "", "app: {hot_reload: maybe}", "modules: [{name: kv, config: &a [*a]}]", "a: &a {<<: *a}", "app: &a {name: *a}",
		"modules: &m [*m]", "app: {max_state: 99999999999GiB}", "app: {drain: 1h, probation: -1s}", "\xff\xfe", "--- a\n--- b", "? {a: b}\n: c",
	} {
		f.Add([]byte(text))
	}
	names := []string{"hello", "counter", "kv"}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := parseText("main.yaml", data)
		if err == nil {
			err = cfg.check(names)
		}
		if err == nil {
			for _, m := range cfg.Modules {
				if cfg.Digest(m.Name) == "" {
					t.Errorf("module %q of a valid configuration has no digest", m.Name)
				}
				var settings struct {
					Path string            `yaml:"path"`
					More map[string]string `yaml:"more"`
				}
				m.Config.Decode(&settings)
			}
			return
		}
		lines := strings.Count(strings.ReplaceAll(string(data), "\r", "\n"), "\n") + 2
		for _, err := range leaves(err) {
			var e *Error
			if !errors.As(err, &e) {
				t.Errorf("error %v (%T) has no place", err, err)
			} else if e.Line < 0 || e.Line > lines+strings.Count(string(data), "\u2028")+strings.Count(string(data), "\u2029")+strings.Count(string(data), "\u0085") {
				t.Errorf("error %v is in line %d of %d", err, e.Line, lines)
			}
		}
	})
}

func leaves(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

func TestAliasesAreBounded(t *testing.T) {
	bomb := "app: {name: x}\nmodules:\n  - name: kv\n    config:\n      a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 10; i++ {
		last := string(rune('0' + i - 1))
		bomb += "      a" + string(rune('0'+i)) + ": &a" + string(rune('0'+i)) + " [" + strings.TrimSuffix(strings.Repeat("*a"+last+",", 10), ",") + "]\n"
	}
	for name, tt := range map[string]struct{ text, want string }{
		"within itself": {"modules:\n  - name: kv\n    config: &a {b: *a}\n", "does an alias contain itself?"},
		"merged":        {"modules:\n  - name: kv\n    config: &a {<<: *a}\n", "does an alias contain itself?"},
		"a bomb":        {bomb, "do aliases repeat each other?"},
	} {
		cfg, err := parseText("main.yaml", []byte(tt.text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		cfg.Digest("kv")
		var settings struct {
			B  *struct{ B any }
			A9 [][][][][][][][][][]string
		}
		type recursive struct {
			B *recursive `yaml:"b"`
		}
		var target any = &settings
		if strings.Contains(tt.text, "*a}") {
			target = &recursive{}
		}
		err = cfg.Modules[0].Config.Decode(target)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Decode = %v, want an error with %q", name, err, tt.want)
		}
	}
}
