//go:build !unix

package worker

import "os"

func catchSignals() <-chan os.Signal { return nil }
