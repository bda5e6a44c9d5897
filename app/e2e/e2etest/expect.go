//go:build unix

package e2etest

import (
	"strings"
	"testing"

	"example.org/orchestrator/app/client"
)

// Rejected fails the test unless o is a rejection with this reason and the
// program serves as before.
func (p *Project) Rejected(o *client.Outcome, err error, why string, before *client.Status) {
	p.Check(err)
	if o.Verdict != client.Rejected || !strings.Contains(o.Error, why) {
		p.T.Fatalf("reload = %+v, want rejected, with %q", *o, why)
	}
	after, err := p.Peek()
	p.Check(err)
	if after.PID != before.PID || after.State != "serving" {
		p.T.Fatalf("process %d is %s, want %d, serving", after.PID, after.State, before.PID)
	}
}

// NextReloadWorks reloads once, and compares the counter before and after it.
func (p *Project) NextReloadWorks(binary string) {
	s, err := p.Peek()
	p.Check(err)
	was, err := Count(s.Listen[0])
	p.Check(err)
	o, err := p.Upgrade(client.ReloadRequest{Binary: binary, WaitProbation: true})
	p.Check(err)
	if o.Verdict != client.Reloaded || o.Probation != client.ProbationPassed {
		p.T.Fatalf("the next reload = %+v, want reloaded", *o)
	}
	if is, err := Count(s.Listen[0]); err != nil || is != was {
		p.T.Fatalf("after the next reload the counter is %d, %v; want %d", is, err, was)
	}
}

// Reloads reloads once and fails the test unless that succeeds.
func (p *Project) Reloads(binary string) {
	o, err := p.Upgrade(client.ReloadRequest{Binary: binary, TimeoutMS: 60_000, WaitProbation: true})
	if err != nil || o.Verdict != client.Reloaded || o.Probation != client.ProbationPassed {
		p.T.Fatalf("reload = %+v, %v; want reloaded", o, err)
	}
}

// Started starts a light program and counts to three.
func Started(t *testing.T, edits ...string) (*Project, Pair, *client.Status) {
	t.Helper()
	p, b := Light(t)
	p.Configure(edits...)
	p.StartWith()
	s, err := p.Peek()
	p.Check(err)
	for range 3 {
		_, _, err := Increment(s.Listen[0])
		p.Check(err)
	}
	return p, b, s
}

// AnswersNew reports whether the second of a pair serves.
func (p *Project) AnswersNew() bool {
	_, isNew, err := Increment(p.Address())
	p.Check(err)
	return isNew
}

// Address returns the address on which the program serves HTTP.
func (p *Project) Address() string {
	s, err := p.Peek()
	p.Check(err)
	return s.Listen[0]
}
