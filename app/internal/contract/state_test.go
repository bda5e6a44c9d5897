package contract_test

import (
	"bytes"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/modules"
)

type stateful struct{ value any }

func (s *stateful) State() modules.State { return modules.State{Value: s.value} }

// TestWhatAStateWouldLoseIsRefused at the start of a program, with the names of
// the fields.
func TestWhatAStateWouldLoseIsRefused(t *testing.T) {
	type inner struct{ N int }
	for _, tt := range []struct {
		name  string
		value any
		want  string // "" for no error
	}{
		{"plain", &struct {
			M     int
			Names []string
			When  time.Time
			Inner *inner
			inner
		}{}, ""},
		{"unexported", &struct{ n int }{}, "n: an unexported field"},
		{"a channel", &struct{ C chan int }{}, "C: a value of type chan int"},
		{"an embedded time and more", &struct {
			time.Time
			Count int
		}{}, "MarshalJSON from what is embedded"},
		{"an embedded time alone", &struct{ time.Time }{}, ""},
		{"a named time and more", &struct {
			Time  time.Time
			Count int
		}{}, ""},
		{"an embedded buffer and more", &struct {
			bytes.Buffer
			Count int
		}{}, "WriteTo from what is embedded"},
		{"a default that comes back", &struct {
			Limit int `json:"limit,omitempty"`
		}{Limit: 10}, "Limit: it starts as 10"},
		{"a zero that does not come back", &struct {
			Limits struct{ N int } `json:",omitzero"`
		}{struct{ N int }{10}}, "Limits: it starts as {10}, and would be that again once emptied: drop omitzero"},
		{"a struct, which omitempty keeps", &struct {
			Limits struct{ N int } `json:",omitempty"`
		}{struct{ N int }{10}}, ""},
		{"an empty default that is not zero", &struct {
			Users map[string]int `json:",omitzero"`
		}{Users: map[string]int{}}, "drop omitzero"},
		{"an empty default", &struct {
			Users map[string]int `json:"users,omitempty"`
		}{Users: map[string]int{}}, ""},
		{"a default inside", &struct {
			Deep struct {
				On bool `json:",omitempty"`
			}
		}{struct {
			On bool `json:",omitempty"`
		}{true}}, "Deep.On"},
		{"a map that starts with content", &struct{ Limits map[string]int }{map[string]int{"guest": 10}}, "Limits: it starts with 1 entries"},
		{"a list of structs that starts with content", &struct{ Users []struct{ N int } }{make([]struct{ N int }, 1)}, "Users: it starts with 1 elements"},
		{"a list of strings that does", &struct{ Names []string }{[]string{"a"}}, ""},
		{"a number that encodes itself by its pointer, in a map", &struct{ Sums map[string]big.Int }{}, "store pointers"},
		{"the same in a struct in a map", &struct {
			Accounts map[string]struct{ Balance big.Int }
		}{}, "Accounts{}.Balance"},
		{"the same behind a pointer", &struct {
			Sums  map[string]*big.Int
			Lists map[string][]big.Int
			One   big.Int
		}{}, ""},
	} {
		err := contract.CheckState((&stateful{tt.value}).State())
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// TestLayoutsThatDecodeDifferently are different.
func TestLayoutsThatDecodeDifferently(t *testing.T) {
	for name, types := range map[string][2]any{
		"a shorter array": {&struct{ A [4]int }{}, &struct{ A [2]int }{}},
		"a number in a string": {&struct{ N int }{}, &struct {
			N int `json:",string"`
		}{}},
	} {
		old, err := contract.LayoutOf(types[0])
		if err != nil {
			t.Fatal(err)
		}
		newer, err := contract.LayoutOf(types[1])
		if err != nil {
			t.Fatal(err)
		}
		if broke, _ := old.Changes(newer); len(broke) != 1 {
			t.Errorf("%s: broke %q, want one field", name, broke)
		}
	}
}

// TestTextThatJSONCannotCarry is an error that names the field; text that only
// looks like it is carried.
func TestTextThatJSONCannotCarry(t *testing.T) {
	type notes struct {
		Names []string
		By    map[string]string
		Raw   json.RawMessage
	}
	for _, tt := range []struct {
		name, want string
		value      notes
	}{
		{"text", "", notes{Names: []string{"\ufffd", `\ufffd`}, Raw: json.RawMessage(`"\ufffd"`)}},
		{"in a list", "Names[1]", notes{Names: []string{"ok", "\xff"}}},
		{"in a map", `By{"k"}`, notes{By: map[string]string{"k": "\xc3"}}},
		{"as a key", "By", notes{By: map[string]string{"\xff": "v"}}},
	} {
		var out bytes.Buffer
		err := contract.Write(modules.State{Value: &tt.value}, &out)
		if tt.want != "" {
			if err == nil || !strings.Contains(err.Error(), tt.want) || out.Len() > 0 {
				t.Errorf("%s: %v, %d bytes; want an error about %s", tt.name, err, out.Len(), tt.want)
			}
			continue
		}
		var back notes
		if err == nil {
			err = contract.Read(modules.State{Value: &back}, 0, &out)
		}
		if err != nil || back.Names[0] != tt.value.Names[0] || back.Names[1] != tt.value.Names[1] {
			t.Errorf("%s: came back as %q, %v", tt.name, back.Names, err)
		}
	}
}
