package app_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// forbidden has words that a native speaker has to read twice, or for which this
// project has another word: see docs/GLOSSARY.md.
var forbidden = []struct{ word, instead string }{
	{`\bshall\b`, "will, must, or the present tense"},
	{`\b[Tt]ells (whether|if)\b`, "reports whether"},
	{`\blest\b`, "or, so that ... not"},
	{`\bbut for\b`, "except"},
	{`\bin spite of it\b`, "all the same"},
	{`\b(un)?well\b.{0,3}(generation|candidate|module)`, "unhealthy"},
	{`\bis (un)?well\b`, "is (un)healthy"},
	{`\brew(ind|inds|ound|inding)\b`, "revert"},
	{`\bbeaten\b`, "discarded"},
	{`\bsickness\b`, "fault"},
	{`say(s)? goodbye`, "confirm"},
	{`\blast words\b`, "last message"},
	{`\boutbox\b`, "send queue"},
	{`\b[Ff]acade\b`, "the interface itself"},
	{`\bparted\b`, "detached"},
	{`\bfixedConn\b|\bfixed connections?\b`, "pinned"},
}

// exceptions are files that may use these words: they explain them, or are
// history.
var exceptions = []string{
	"../app/words_test.go",
	"../docs/GLOSSARY.md",
	"../docs/decisions.md",
	"../LICENSE",
}

func TestNoForbiddenWords(t *testing.T) {
	var patterns []*regexp.Regexp
	for _, f := range forbidden {
		patterns = append(patterns, regexp.MustCompile(f.word))
	}
	for _, path := range files(t, ".go", ".md", ".txtar", ".yaml", "") {
		if slices.Contains(exceptions, path) {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			for k, p := range patterns {
				if word := p.FindString(line); word != "" {
					t.Errorf("%s:%d: %q: say %s", strings.TrimPrefix(path, "../"), i+1, word, forbidden[k].instead)
				}
			}
		}
	}
}
