package config

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// Setting describes one setting of a configuration.
type Setting struct {
	Key     string `json:"key"`     // its path in the file, such as app.drain
	Type    string `json:"type"`    // what is written there
	Default string `json:"default"` // in words if it depends on other settings
	Value   string `json:"value"`   // as it is now
	From    string `json:"from"`    // "default", or the place in the file
	Doc     string `json:"doc"`     // what it means
}

// Settings returns all settings, with their values in cfg. Without cfg those of the
// defaults, and one entry for each setting of a module.
func Settings(cfg *Config) []Setting {
	modules := true
	if cfg == nil {
		cfg = defaults()
		cfg.App.fill()
		cfg.Modules, modules = []Module{{}}, false
	}
	standard := defaults()
	standard.App.HotReload = cfg.App.HotReload
	standard.App.fill()
	var list []Setting
	describe := func(prefix string, v, def reflect.Value) {}
	describe = func(prefix string, v, def reflect.Value) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name := f.Tag.Get("yaml")
			if name == "" {
				continue
			}
			key := prefix + name
			if f.Type == reflect.TypeFor[TLS]() {
				describe(key+".", v.Field(i), def.Field(i))
				continue
			}
			s := Setting{Key: key, Type: typeName(f.Type), Default: f.Tag.Get("default"), Doc: f.Tag.Get("doc"), Value: text(v.Field(i)), From: "default"}
			if s.Default == "" {
				s.Default = text(def.Field(i))
			}
			if p, ok := cfg.pos[key]; ok {
				s.From = fmt.Sprintf("%s:%d", cfg.file, p.line)
			}
			list = append(list, s)
		}
	}
	describe("app.", reflect.ValueOf(cfg.App), reflect.ValueOf(standard.App))
	describe("build.", reflect.ValueOf(cfg.Build), reflect.ValueOf(standard.Build))
	for i, m := range cfg.Modules {
		prefix := "modules[]."
		if modules {
			prefix = fmt.Sprintf("modules[%d].", i)
		}
		describe(prefix, reflect.ValueOf(m), reflect.ValueOf(Module{}))
	}
	return list
}

// Describe returns the settings of a module, below the key of its section, such as
// modules[0].config. standard points to the struct with its defaults, value to the one
// in which the section was decoded. A doc tag says what a setting means.
func (s Section) Describe(key string, standard, value any) []Setting {
	given := map[string]int{} // line of each key that the section has
	if s.node != nil {
		for i := 0; i+1 < len(s.node.Content); i += 2 {
			given[s.node.Content[i].Value] = s.node.Content[i+1].Line
		}
	}
	v, def := reflect.ValueOf(value).Elem(), reflect.ValueOf(standard).Elem()
	var list []Setting
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "" {
			name = strings.ToLower(f.Name)
		}
		if !f.IsExported() || name == "-" {
			continue
		}
		one := Setting{Key: key + "." + name, Type: typeName(f.Type), Default: text(def.Field(i)), Value: text(v.Field(i)), From: "default", Doc: f.Tag.Get("doc")}
		if line, ok := given[name]; ok {
			one.From = fmt.Sprintf("%s:%d", s.file, line)
		}
		list = append(list, one)
	}
	return list
}

// typeName says what is written for a value of this type.
func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration, such as 1m30s"
	case reflect.TypeFor[Size]():
		return "size, such as 64KiB"
	case reflect.TypeFor[Section]():
		return "mapping"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "number"
	case reflect.Slice:
		return "list of text"
	default:
		return "text"
	}
}

// text returns a value as it is written in the file.
func text(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case Section:
		if x.node == nil {
			return ""
		}
		return fmt.Sprintf("(%d settings)", len(x.node.Content)/2)
	case []string:
		return "[" + strings.Join(x, ", ") + "]"
	case Size:
		if x == 0 {
			return "0"
		}
		return x.String()
	default:
		return fmt.Sprint(x)
	}
}

// SettingsTable returns all settings as Markdown.
func SettingsTable() string {
	var b strings.Builder
	b.WriteString("| setting | type | default | meaning |\n|---|---|---|---|\n")
	for _, s := range Settings(nil) {
		def := s.Default
		if def == "" {
			def = "empty"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", s.Key, s.Type, def, s.Doc)
	}
	return b.String()
}
