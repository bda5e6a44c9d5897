package contract

import (
	"example.org/orchestrator/config"
	"example.org/orchestrator/modules"
)

// Configure stores the settings of a fresh value, which [Check] has seen, in it and
// checks them.
func Configure(m modules.Module, settings config.Section) error {
	c, ok := m.(modules.Configured)
	if !ok {
		return nil
	}
	return Protect(Settings.Name, func() error {
		v := c.Settings()
		if err := settings.Decode(v); err != nil {
			return err
		}
		checked, ok := v.(interface{ Validate() error })
		if !ok {
			return nil
		}
		if err := checked.Validate(); err != nil {
			return settings.At(err)
		}
		return nil
	})
}
