package upgrade_test

import (
	"os"
	"testing"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// TestACurrentLink: a program that was started by way of a link goes on in its folder
// when the link means another one, and a reload takes the binary that is there now.
func TestACurrentLink(t *testing.T) {
	t.Parallel()
	p, b := e2etest.Light(t)
	p.Check(os.Mkdir(p.Path("next"), 0o755))
	p.Check(os.Mkdir(p.Path("next/bin"), 0o755))
	p.Check(os.Link(b.New, p.Path("next/bin/orchestrator")))
	p.Check(os.Symlink(".", p.Path("current")))
	p.StartIn("current")
	p.Check(os.Remove(p.Path("current")))
	p.Check(os.Symlink("next", p.Path("current")))
	for range 2 {
		o, err := p.Upgrade(client.ReloadRequest{WaitProbation: true})
		if err != nil || o.Verdict != client.Reloaded {
			t.Fatalf("reload = %v, %v", o, err)
		}
		if !p.AnswersNew() {
			t.Error("the old binary serves")
		}
	}
}
