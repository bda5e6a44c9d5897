package worker

import (
	"encoding/json"
	"time"

	"example.org/orchestrator/config"
)

// terms are the settings of one reload. They come from the configuration that is
// being loaded, so that a limit which was too tight can be widened by the reload
// that needs it.
type terms struct {
	HotReload  bool             `json:"hot_reload"`
	Hook       time.Duration    `json:"hook_timeout"`
	Run        time.Duration    `json:"run_timeout"`
	Drain      time.Duration    `json:"drain"`
	MaxPause   time.Duration    `json:"max_pause"`
	MaxFreeze  time.Duration    `json:"max_freeze"`
	Probation  time.Duration    `json:"probation"`
	MaxState   int64            `json:"max_state"`
	StateLimit map[string]int64 `json:"state_limit"` // of each module's state
}

func termsOf(cfg *config.Config) terms {
	app := cfg.App
	t := terms{
		HotReload:  app.HotReload,
		Hook:       app.HookTimeout,
		Run:        app.RunTimeout,
		Drain:      app.Drain,
		MaxPause:   app.MaxPause,
		MaxFreeze:  app.MaxFreeze,
		Probation:  app.Probation,
		MaxState:   int64(app.MaxState),
		StateLimit: map[string]int64{},
	}
	for _, m := range cfg.Modules {
		t.StateLimit[m.Name] = stateLimit(cfg, m)
	}
	return t
}

// agreed returns the terms of the candidate, or mine if it has not told any.
func agreed(mine terms, theirs json.RawMessage) terms {
	t := mine
	if len(theirs) == 0 || json.Unmarshal(theirs, &t) != nil || t.Hook <= 0 || t.MaxPause <= 0 {
		return mine
	}
	for name, limit := range mine.StateLimit { // a module that the candidate does not have
		if _, ok := t.StateLimit[name]; !ok {
			t.StateLimit[name] = limit
		}
	}
	return t
}
