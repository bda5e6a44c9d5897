package app_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// files returns the files of this repository with these extensions, except those
// that git ignores. Their paths begin with "../".
func files(t *testing.T, ext ...string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := e.Name()
		if e.IsDir() && path != ".." && (name[0] == '.' && name != ".ci" || name == "bin" || name == "tmp") {
			return filepath.SkipDir
		}
		if !e.IsDir() && slices.Contains(ext, filepath.Ext(name)) {
			paths = append(paths, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// TestDocsNameTestsThatExist checks that the tests named in the docs exist.
func TestDocsNameTestsThatExist(t *testing.T) {
	exist := map[string]bool{} // "TestX" and "package.TestX"
	for _, path := range files(t, ".go") {
		if !strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				exist[fn.Name.Name] = true
				exist[filepath.Base(filepath.Dir(path))+"."+fn.Name.Name] = true
			}
		}
	}
	name := regexp.MustCompile(`\b(?:[a-z0-9]+\.)?(?:Test|Fuzz|Benchmark)[A-Z]\w*`)
	for _, doc := range []string{"../docs/GUARANTEES.md", "../docs/ARCHITECTURE.md", "../docs/TRACK.md", "../docs/BENCHMARKS.md", "../docs/MODULES.md", "../docs/decisions.md", "../CONTRIBUTING.md", "../SECURITY.md", "../STYLE.md", "../README.md"} {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		named := name.FindAllString(string(text), -1)
		if doc == "../docs/GUARANTEES.md" && len(named) < 50 {
			t.Errorf("%s names %d tests only", doc, len(named))
		}
		for _, test := range named {
			if !exist[test] {
				t.Errorf("%s names %s, which does not exist", doc, test)
			}
		}
	}
}

// TestDocsNameFunctionsThatExist does the same for "folder/file.go:function" in the
// walk through a save. Only the file's name has to fit: the walk shortens paths.
func TestDocsNameFunctionsThatExist(t *testing.T) {
	exist := map[string]bool{}
	for _, path := range files(t, ".go") {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				exist[filepath.Base(path)+":"+fn.Name.Name] = true
			}
		}
	}
	text, err := os.ReadFile("../docs/ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`(\w+\.go):(\w+)`).FindAllString(string(text), -1)
	if len(named) < 30 {
		t.Errorf("docs/ARCHITECTURE.md names %d functions only: %q", len(named), named)
	}
	for _, name := range named {
		if !exist[name] {
			t.Errorf("docs/ARCHITECTURE.md names %s, which does not exist", name)
		}
	}
}

// TestDocsNameScriptsThatExist does the same for scripts.
func TestDocsNameScriptsThatExist(t *testing.T) {
	text, err := os.ReadFile("../docs/GUARANTEES.md")
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Glob("../cmd/orchestrator/testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatal("there are no scripts: ", err)
	}
	for _, path := range scripts {
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		if !strings.Contains(string(text), "`"+name+"`") {
			t.Logf("no promise names the script %s", name)
		}
	}
	for _, m := range regexp.MustCompile("`([a-z]+(?:_[a-z]+)+)`").FindAllStringSubmatch(string(text), -1) {
		path := "../cmd/orchestrator/testdata/script/" + m[1] + ".txtar"
		if _, err := os.Stat(path); err != nil && !notScripts[m[1]] {
			t.Errorf("docs/GUARANTEES.md names the script %s, which does not exist", m[1])
		}
	}
}

// notScripts are settings and outcomes that look like the name of a script.
var notScripts = map[string]bool{"hot_reload": true, "rolled_back": true, "run_dir": true, "last_crash": true, "max_state": true, "hook_timeout": true, "drop_state": true}
