package worker_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/app/internal/worker"
	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

// dependent is a module that depends on others.
type dependent struct{ on []string }

func (d *dependent) Initialize(context.Context, *eventbus.Bus, modules.Config) error { return nil }
func (d *dependent) Shutdown(context.Context) error                                  { return nil }
func (d *dependent) DependsOn() []string                                             { return d.on }

func entry(name string, on ...string) modules.Entry {
	return modules.Entry{Name: name, New: func() modules.Module { return &dependent{on} }}
}

// configured is a module with settings.
type configured struct {
	dependent
	settings
}

type settings struct {
	Size int `yaml:"size"`
}

func (s *settings) Validate() error {
	if s.Size < 0 {
		return errors.New("size must not be negative")
	}
	return nil
}

func (c *configured) Settings() any { return &c.settings }

// TestSettingsOfModulesAreChecked without starting anything.
func TestSettingsOfModulesAreChecked(t *testing.T) {
	list := modules.List{{Name: "a", New: func() modules.Module { return &configured{} }}}
	for settings, want := range map[string]string{
		"{}":         "",
		"{size: 1}":  "",
		"{sise: 1}":  `main.yaml:1:30: modules[0].config: unknown key "sise" (did you mean "size"?)`,
		"{size: x}":  "main.yaml:1:36: modules[0].config.size: expected",
		"{size: -1}": "main.yaml:1:29: modules[0].config: size must not be negative",
	} {
		file := filepath.Join(t.TempDir(), "main.yaml")
		if err := os.WriteFile(file, []byte("modules: [{name: a, config: "+settings+"}]\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := worker.Check(file, list); (err == nil) != (want == "") || err != nil && (!config.IsInvalid(err) || !strings.Contains(err.Error(), want)) {
			t.Errorf("Check with %s = %v, want %q", settings, err, want)
		}
	}
}

func TestDependenciesAreChecked(t *testing.T) {
	for _, tt := range []struct {
		name, modules, want string
		list                modules.List
	}{
		{"fine", "[{name: a}, {name: b}]", "", modules.List{entry("a", "b"), entry("b")}},
		{"a circle", "[{name: a}, {name: b}]", "main.yaml:1:18: modules[0].name: modules depend on each other in a cycle: [a b a]", modules.List{entry("a", "b"), entry("b", "a")}},
		{"itself", "[{name: a}]", "in a cycle: [a a]", modules.List{entry("a", "a")}},
		{"an unknown name", "[{name: a}]", `main.yaml:1:18: modules[0].name: module "a" depends on "c", which is not listed under modules`, modules.List{entry("a", "c"), entry("c")}},
		{"connections it cannot take", "[{name: a, listen: 'tcp://x:1'}]", `modules[0].listen: module "a" cannot listen`, modules.List{entry("a")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "main.yaml")
			if err := os.WriteFile(file, []byte("modules: "+tt.modules+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			err := worker.Check(file, tt.list)
			if tt.want == "" {
				if err != nil {
					t.Errorf("Check = %v, want nil", err)
				}
				return
			}
			if err == nil || !config.IsInvalid(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check = %v, want a configuration error with %q", err, tt.want)
			}
		})
	}
}
