package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pontoon/fsm"
	"pontoon/web"
)

// Whoever can be asked is, and of whom it cannot the operator is told.
func TestUsesAreThoseOfAllNodes(t *testing.T) {
	use := func(s string) []web.AddressUse {
		return []web.AddressUse{{Prefix: netip.MustParsePrefix(s), What: "an address of eth1"}}
	}
	nodes := []fsm.Node{
		{Name: "_", Role: fsm.RoleLB, Alive: true},
		{Name: "_2", Role: fsm.RoleLB, Alive: true},
		{Name: "a", Role: fsm.RoleLB, Alive: true},
		{Name: "b", Role: fsm.RoleLB, Alive: true},
		{Name: "c", Role: fsm.RoleLB},
		{Name: "d", Role: fsm.RoleLB, Alive: true},
		{Name: "w", Role: fsm.RoleWitness, Alive: true},
	}
	got := gatherUses(t.Context(), nodes, "b", use("10.0.0.2/32"), func(_ context.Context, n fsm.NodeID) ([]web.AddressUse, error) {
		switch n {
		case "a":
			return use("10.0.0.1/32"), nil
		case "_":
			return nil, fmt.Errorf("%w: reach _: %w", errNotLeader, &dialError{errors.New("refused")})
		case "_2":
			return nil, fmt.Errorf("%w: read answer of _2: 404 page not found", errUnknownOutcome)
		case "d":
			return nil, errors.New("no route to it")
		}
		t.Errorf("%s was asked", n)
		return nil, nil
	})
	want := []web.NodeUses{
		{Node: "_", Error: "it does not answer"},
		{Node: "_2", Error: "its answer cannot be read; it may be of an earlier version"},
		{Node: "a", Uses: use("10.0.0.1/32")},
		{Node: "b", Uses: use("10.0.0.2/32")},
		{Node: "c", Error: "it is down"},
		{Node: "d", Error: "no route to it"},
	}
	if !slices.EqualFunc(got, want, func(a, b web.NodeUses) bool {
		return a.Node == b.Node && a.Error == b.Error && slices.Equal(a.Uses, b.Uses)
	}) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
