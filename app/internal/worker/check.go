package worker

import (
	"fmt"
	"io"
	"log/slog"
	"slices"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

// Check checks a configuration and a list of modules without starting anything.
// Of a module it calls only the factory, Settings, State and DependsOn.
func Check(file string, list modules.List) error {
	if err := contract.CheckList(list); err != nil {
		return err
	}
	cfg, err := config.Load(file, list.Names())
	if err != nil {
		return err
	}
	if _, err := loadTLS(cfg); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	_, err = newModuleSet(cfg, list, eventbus.New(eventbus.Options{Log: log}), log, nil, silent)
	return err
}

// Settings returns every setting of a configuration, with those of the modules that
// have [modules.Configured].
func Settings(file string, list modules.List) ([]config.Setting, error) {
	if err := Check(file, list); err != nil {
		return nil, err
	}
	cfg, err := config.Load(file, list.Names())
	if err != nil {
		return nil, err
	}
	settings := config.Settings(cfg)
	for i, m := range cfg.Modules {
		standard, err := contract.New(list, m.Name)
		if err != nil {
			return nil, err
		}
		value, err := contract.New(list, m.Name)
		if err != nil {
			return nil, err
		}
		s, ok := standard.(modules.Configured)
		if !ok {
			continue
		}
		if err := contract.Configure(value, m.Config); err != nil {
			return nil, err
		}
		key := fmt.Sprintf("modules[%d].config", i)
		at := slices.IndexFunc(settings, func(s config.Setting) bool { return s.Key == key })
		settings = slices.Insert(settings, at+1, m.Config.Describe(key, s.Settings(), value.(modules.Configured).Settings())...)
	}
	return settings, nil
}
