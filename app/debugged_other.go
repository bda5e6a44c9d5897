//go:build !linux

package app

func debugged() bool { return false }
