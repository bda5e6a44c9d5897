package config

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
	"unicode/utf16"
)

// FuzzConfig reads any text. It must end, without a panic, with a valid
// configuration or with errors whose places are within the file.
func FuzzConfig(f *testing.F) {
	shipped, err := os.ReadFile("main.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, text := range []string{
		string(shipped), "", "app: {hot_reload: maybe}", "modules: [{name: kv, config: &a [*a]}]", "a: &a {<<: *a}", "app: &a {name: *a}",
		"modules: &m [*m]", "app: {max_state: 99999999999GiB}", "app: {drain: 1h, probation: -1s}", "\xff\xfe", "\xfe\xff\x00a\x00:\x20\x28\x00:", "--- a\n--- b", "? {a: b}\n: c",
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
		lines := ends(data) + 2
		for _, err := range leaves(err) {
			var e *Error
			if !errors.As(err, &e) {
				t.Errorf("error %v (%T) has no place", err, err)
			} else if e.Line < 0 || e.Line > lines {
				t.Errorf("error %v is in line %d of %d", err, e.Line, lines)
			}
		}
	})
}

// ends counts what YAML takes for line ends, in UTF-8 or UTF-16.
func ends(data []byte) (n int) {
	text := []rune(string(data))
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(data, []byte("\xff\xfe")):
		order = binary.LittleEndian
	case bytes.HasPrefix(data, []byte("\xfe\xff")):
		order = binary.BigEndian
	}
	if order != nil {
		units := make([]uint16, len(data)/2)
		for i := range units {
			units[i] = order.Uint16(data[2*i:])
		}
		text = utf16.Decode(units)
	}
	for _, r := range text {
		if strings.ContainsRune("\n\r\u0085\u2028\u2029", r) {
			n++
		}
	}
	return n
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
