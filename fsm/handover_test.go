package fsm

import (
	"errors"
	"strings"
	"testing"
)

func TestHandOverNeedsAnotherNodeWithAllFlows(t *testing.T) {
	s := threeNodes(t)
	owner := master(s, DefaultInstance)
	for _, n := range s.Nodes() {
		if err := s.HandOver(n.Name); err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
	}
	lagging := func(n NodeID) Command { return NodeReport{Node: n, Ready: true, LinksUp: true} }
	others := othersThan(s, owner)
	s = do(t, s, lagging(others[0]))
	if err := s.HandOver(owner); err != nil {
		t.Errorf("one of two is enough: %v", err)
	}
	s = do(t, s, NodeVerdict{Node: others[1]})
	err := s.HandOver(owner)
	if !errors.Is(err, ErrNotEligible) {
		t.Fatalf("error %v", err)
	}
	for _, word := range []string{string(owner), "default", string(others[0]) + " does not hold all flows yet", string(others[1]) + " is not alive"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not say %q", err, word)
		}
	}
	if err := s.HandOver(others[0]); err != nil {
		t.Errorf("who owns nothing loses nothing: %v", err)
	}
	alone := do(t, do(t, New(), initCluster()), healthy("lb1")...)
	if err := alone.HandOver("lb1"); err != nil {
		t.Errorf("an instance without VIPs carries nothing: %v", err)
	}
	alone = do(t, alone, PutVIP{VIP: VIP{Address: addr("10.0.0.100")}})
	if err := alone.HandOver("lb1"); err == nil || !strings.Contains(err.Error(), "no other node of role lb") {
		t.Errorf("error %v", err)
	}
}

// othersThan lists the nodes other than one.
func othersThan(s *State, not NodeID) []NodeID {
	var out []NodeID
	for _, n := range s.Nodes() {
		if n.Name != not {
			out = append(out, n.Name)
		}
	}
	return out
}
