package contract_test

import (
	"errors"
	"math/big"
	"sync"
	"testing"

	"example.org/orchestrator/app/internal/contract"
	"example.org/orchestrator/modules"
)

type carried struct {
	Users  map[string]int
	Inner  struct{ N int }
	Number big.Int
	Cache  map[string]int `json:"-"`
	mu     sync.Mutex
}

func TestCarry(t *testing.T) {
	from, to := &carried{Users: map[string]int{"a": 1}, Cache: map[string]int{"old": 1}}, &carried{Cache: map[string]int{"fresh": 1}}
	from.Inner.N = 7
	from.Number.SetInt64(42)
	from.mu.Lock() // whoever holds it belongs to the old value
	if err := contract.Carry(modules.State{Value: from}, modules.State{Value: to}); err != nil {
		t.Fatal(err)
	}
	if to.Users["a"] != 1 || to.Inner.N != 7 || to.Number.Int64() != 42 {
		t.Errorf("carried %+v", to)
	}
	if to.Cache["fresh"] != 1 || !to.mu.TryLock() {
		t.Error("what an export leaves out was carried too")
	}
}

type withCarry struct{ big.Int }

func (c *withCarry) Carry(from any) { c.Set(&from.(*withCarry).Int) }

func TestCarry_ofValuesThatEncodeThemselves(t *testing.T) {
	plain, fresh := big.NewInt(42), new(big.Int)
	if err := contract.Carry(modules.State{Value: plain}, modules.State{Value: fresh}); !errors.Is(err, contract.ErrEncodesItself) {
		t.Errorf("Carry of a value without Carry = %v", err)
	}
	if err := contract.CarryWhole(modules.State{Value: plain}, modules.State{Value: fresh}); err != nil || fresh.Int64() != 42 {
		t.Errorf("CarryWhole = %v, %v", fresh, err)
	}
	from, to := &withCarry{}, &withCarry{}
	from.SetInt64(42)
	if err := contract.Carry(modules.State{Value: from}, modules.State{Value: to}); err != nil || to.Int64() != 42 {
		t.Errorf("Carry = %v, %v", &to.Int, err)
	}
}
