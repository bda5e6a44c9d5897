//go:build unix

package e2etest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/creack/pty"
)

// Terminal starts args in a pseudo-terminal of its own. Nothing reads its screen;
// closing the file closes the terminal.
func (p *Project) Terminal(args ...string) *os.File {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = p.Dir, Environ
	tty, err := pty.Start(cmd)
	p.Check(err)
	p.Began(cmd)
	return tty
}

// Screen copies what the terminal shows into the project's log.
func (p *Project) Screen(tty *os.File) {
	screen, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	p.Check(err)
	go func() {
		defer screen.Close()
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			screen.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
}

func (p *Project) Serving() bool {
	s, err := p.TryStatus()
	return err == nil && s.State == "serving"
}

// Zombies counts the dead children of the project's processes.
func Zombies(p *Project) (n int) {
	ours := map[string]bool{}
	for _, pid := range p.Processes() {
		ours[strconv.Itoa(pid)] = true
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		data, _ := os.ReadFile(path)
		_, rest, _ := strings.Cut(string(data), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[0] == "Z" && ours[f[1]] {
			n++
		}
	}
	return n
}
