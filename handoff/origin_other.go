//go:build !unix

package handoff

const envOrigin = "ORCHESTRATOR_ORIGIN"

const maxOrigin = 0

func claimOrigin() string { return "" }
