package worker

import (
	"io"
	"log/slog"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

// Check checks a configuration and a list of modules without starting anything.
// Of a module it calls only the factory, State and DependsOn.
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
