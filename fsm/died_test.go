package fsm

import "testing"

func TestDeathLeavesItsIndexBehind(t *testing.T) {
	s := New()
	apply := func(index uint64, c Command) {
		t.Helper()
		next, err := s.Apply(index, c)
		if err != nil {
			t.Fatal(err)
		}
		s = next
	}
	died := func() uint64 {
		n, _ := s.Node("lb1")
		return n.Died
	}
	apply(1, InitCluster{
		Cluster: Cluster{ID: "0123456789abcdef", CA: []byte{1}, GossipKey: [][]byte{make([]byte, 32)}},
		Node:    Node{Name: "lb1", Role: RoleLB, Address: "192.0.2.1:7400", GossipPort: 7401, Voter: true, Alive: true, Key: nodeKey("lb1")},
	})
	if died() != 0 {
		t.Fatalf("died at %d before any verdict", died())
	}
	apply(5, NodeVerdict{Node: "lb1"})
	apply(6, NodeVerdict{Node: "lb1"})
	apply(7, NodeVerdict{Node: "lb1", Alive: true})
	if died() != 5 {
		t.Fatalf("died at %d, want 5: the first verdict of that death, kept over the revival", died())
	}
	apply(9, NodeVerdict{Node: "lb1"})
	if died() != 9 {
		t.Fatalf("died at %d, want 9", died())
	}
}
