//go:build unix

package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"example.org/orchestrator/app/client"
	"example.org/orchestrator/app/e2e/e2etest"
)

// manyModule is a small stateful module, to be compiled in many times.
const manyModule = `package many

import (
	"context"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/modules"
)

type Many struct{ state struct{ Text string } }

func New() modules.Module { m := &Many{}; m.state.Text = "some state"; return m }

func (m *Many) State() modules.State { return modules.State{Version: 1, Value: &m.state} }
func (m *Many) Initialize(context.Context, *eventbus.Bus, modules.Config) error { return nil }
func (m *Many) Shutdown(context.Context) error { return nil }
`

// cost is what a reload costs at one size of something.
type cost struct {
	size         int
	pause, total []float64
}

// costs measures a few reloads to the same binary.
func costs(p *e2etest.Project, binary string, size int) cost {
	c := cost{size: size}
	for range 7 {
		o, err := p.Upgrade(client.ReloadRequest{Binary: binary, TimeoutMS: 120_000, WaitProbation: true})
		if err != nil || o.Verdict != client.Reloaded {
			p.T.Fatalf("reload = %+v, %v", o, err)
		}
		c.pause, c.total = append(c.pause, o.StagesMS["pause"]), append(c.total, o.TotalMS)
	}
	return c
}

// reloadCost measures reloads with many modules, large states and large trees.
func reloadCost(t *measurement, _ int) {
	project := func() *e2etest.Project {
		p := e2etest.Make(t, t.TempDir())
		t.Cleanup(p.CleanUp)
		return p
	}
	var modules, states, trees []cost
	for _, n := range []int{10, 100, 1000} {
		p := project()
		p.Write("modules/many/many.go", manyModule)
		var list, settings strings.Builder
		for i := range n {
			fmt.Fprintf(&list, "{Name: \"m%d\", New: many.New}, ", i)
			fmt.Fprintf(&settings, "  - name: m%d\n", i)
		}
		p.Edit("cmd/orchestrator/modules.go", `"example.org/orchestrator/modules/kv"`, "\"example.org/orchestrator/modules/kv\"\n\t\"example.org/orchestrator/modules/many\"")
		p.Edit("cmd/orchestrator/modules.go", `{Name: "kv", New: kv.New},`, `{Name: "kv", New: kv.New}, `+list.String())
		p.Write("config/main.yaml", "app:\n  hot_reload: false\n  listen: 127.0.0.1:0\n  probation: 100ms\nmodules:\n"+settings.String())
		p.Check(os.Remove(p.Path("bin/orchestrator")))
		p.Check(p.Compile("bin/orchestrator"))
		p.StartWith()
		modules = append(modules, costs(p, p.Path("bin/orchestrator"), n))
		p.CleanUp()
	}
	for _, mib := range []int{1, 64, 1024} {
		p := project()
		binary, _ := e2etest.LargeProject(p, mib)
		states = append(states, costs(p, binary, mib))
		p.CleanUp()
	}
	for _, files := range []int{0, 10_000, 50_000} {
		p := project()
		for i := range files {
			p.Write(fmt.Sprintf("tree/d%d/f%d.go", i/100, i), "package tree\n")
		}
		p.Write("config/main.yaml", strings.Replace(e2etest.StandardConfig, "hot_reload: true", "probation: 100ms\n  hot_reload: true", 1))
		p.StartServing()
		trees = append(trees, costs(p, p.Path("bin/orchestrator"), files))
		p.CleanUp()
	}
	table := &strings.Builder{}
	fmt.Fprintln(table, "| | pause ms | whole reload ms |\n|---|---|---|")
	for _, part := range []struct {
		unit string
		list []cost
	}{{"modules", modules}, {"MiB of state", states}, {"files in the tree that are not in the build", trees}} {
		for _, c := range part.list {
			fmt.Fprintf(table, "| %d %s | %s | %s |\n", c.size, part.unit, spread("%.1f", c.pause), spread("%.1f", c.total))
		}
	}
	fmt.Fprintf(table, "\n| watching | look at all content, ms | heap MiB |\n|---|---|---|\n")
	for _, n := range []int{1000, 10_000, 50_000} {
		look, heap, err := e2etest.Watching(t.TempDir(), n)
		if err != nil {
			t.Fatalf("%v", err)
		}
		fmt.Fprintf(table, "| %d files | %s | %.1f |\n", n, spread("%.1f", look), heap)
	}
	p := project()
	p.StartServing()
	s := p.Status()
	fmt.Fprintf(table, "\nAfter the start the supervisor has %d MiB resident, a worker %d MiB; idle, neither uses the processor (`TestIdleCostsNothing`).\n", e2etest.Memory(s.SupervisorPID), e2etest.Memory(s.PID))
	t.Logf("%s", table)
	writeSection(t, "cost", "7 reloads each", table.String()+"\n![cost of a reload](reload-cost.svg)\n")
	if err := os.WriteFile(filepath.Join(e2etest.Repository(), "docs/reload-cost.svg"), []byte(plotCosts(modules, states)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// plotCosts draws the total time of reloads against modules and MiB. Both axes
// are logarithmic: linear cost is a line of slope one.
func plotCosts(modules, states []cost) string {
	const left, width, height = 60, 480, 260
	x := func(size int) float64 { return left + math.Log10(float64(size))/math.Log10(1024)*width }
	y := func(ms float64) float64 { return 20 + height - (math.Log10(ms)/4)*height } // 1 ms to 10 s
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12"><rect width="100%%" height="100%%" fill="white"/>`+"\n", left+width+160, height+60)
	for _, ms := range []float64{1, 10, 100, 1000, 10000} {
		fmt.Fprintf(&b, `<path d="M%d %.0fh%d" stroke="#ddd"/><text x="%d" y="%.0f" text-anchor="end">%.0f ms</text>`+"\n", left, y(ms), width, left-4, y(ms)+4, ms)
	}
	for _, n := range []int{1, 10, 100, 1000} {
		fmt.Fprintf(&b, `<text x="%.0f" y="%d" text-anchor="middle">%d</text>`+"\n", x(n), height+38, n)
	}
	for _, line := range []struct {
		name, color string
		list        []cost
	}{{"modules", "#2a7de1", modules}, {"MiB of state", "#d1495b", states}} {
		path := ""
		for i, c := range line.list {
			m := quantile(c.total, 0.5)
			path += fmt.Sprintf("%s%.1f %.1f", map[bool]string{true: "M", false: "L"}[i == 0], x(c.size), y(m))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`, x(c.size), y(m), line.color)
		}
		last := line.list[len(line.list)-1]
		fmt.Fprintf(&b, `<path d="%s" stroke="%s" fill="none"/><text x="%.0f" y="%.0f">%s</text>`+"\n", path, line.color, x(last.size)+8, y(quantile(last.total, 0.5))+4, line.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
