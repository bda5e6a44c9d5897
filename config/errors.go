package config

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Error is one mistake in a configuration file, with its place. Line and
// Column start at 1; 0 means that the place is not known.
type Error struct {
	File   string
	Line   int
	Column int
	Key    string // the dotted path of the key, such as modules[1].path
	Msg    string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
		if e.Column > 0 {
			fmt.Fprintf(&b, ":%d", e.Column)
		}
	}
	b.WriteString(": ")
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	b.WriteString(e.Msg)
	return b.String()
}

// IsInvalid reports whether err says that a configuration is wrong or missing,
// as opposed to, say, unreadable because a disk failed.
func IsInvalid(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

var yamlLine = regexp.MustCompile(`^yaml: (?:unmarshal errors:\s+)?line (\d+): (?s:(.*))$`)

// syntaxError returns an error of the YAML parser with its place. The parser
// gives only a line, and sometimes not even that.
func syntaxError(file string, err error) error {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ := strconv.Atoi(m[1])
		return &Error{File: file, Line: line, Msg: "bad YAML: " + m[2]}
	}
	return &Error{File: file, Msg: "bad YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
}

// nearest returns the member of known that name may be a misspelling of, or "".
func nearest(name string, known []string) string {
	best, limit := "", len(name)/3+1
	for _, k := range known {
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d <= limit {
			best, limit = k, d-1
		}
	}
	return best
}

// distance is the Levenshtein distance of a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// suggest returns what follows an unknown name in an error: the nearest known
// one, or all.
func suggest(name string, known []string) string {
	if n := nearest(name, known); n != "" {
		return fmt.Sprintf("did you mean %q?", n)
	}
	if len(known) == 0 {
		return "no key is known here"
	}
	return "known: " + strings.Join(known, ", ")
}
