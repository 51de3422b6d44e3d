package fsm

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// spread counts masterships of the instances that are not the default one.
func spread(s *State) map[NodeID]int { return s.masterships() }

func TestNewInstancesAreSpread(t *testing.T) {
	s := threeNodes(t) // the default instance has a VIP, so its master bears it
	for i := range 5 {
		s = do(t, s, PutInstance{Name: fmt.Sprintf("i%d", i), Spread: true})
	}
	if got := spread(s); got["lb1"] != 2 || got["lb2"] != 2 || got["lb3"] != 2 {
		t.Errorf("masters %v", got)
	}
	batch := Batch{}
	for i := range 6 {
		batch.Commands = append(batch.Commands, PutInstance{Name: fmt.Sprintf("b%d", i), Spread: true})
	}
	s = do(t, s, batch)
	if got := spread(s); got["lb1"] != 4 || got["lb2"] != 4 || got["lb3"] != 4 {
		t.Errorf("masters %v after a batch", got)
	}
	if inst, _ := s.Instance("b0"); inst.Epoch != s.Index() || inst.Succession[0] != inst.Master {
		t.Errorf("%+v", inst)
	}
	s = do(t, s, PutInstance{Name: "p", Spread: true, Priorities: map[NodeID]int{"lb2": 5}}, PutInstance{Name: "p2", Spread: true, Priorities: map[NodeID]int{"lb2": 5}})
	if master(s, "p") != "lb2" || master(s, "p2") != "lb2" {
		t.Error("a priority decides before the load does")
	}
	before, _ := s.Instance("b0")
	if after, _ := do(t, s, PutInstance{Name: "b0", Spread: true}).Instance("b0"); after.Master != before.Master {
		t.Error("an instance that is there was moved")
	}
}

// What is in logs of earlier versions must elect whom it elected then.
func TestWithoutSpreadTheHashDecides(t *testing.T) {
	s := threeNodes(t)
	for i := range 6 {
		name := fmt.Sprintf("i%d", i)
		s = do(t, s, PutInstance{Name: name})
		if got := master(s, name); got != s.Eligible(name)[0] {
			t.Errorf("%s has master %s, not the first of %v", name, got, s.Eligible(name))
		}
	}
	if VersionOf(PutInstance{Name: "x"}) != baseVersion || VersionOf(PutInstance{Name: "x", Spread: true}) != poolVersion {
		t.Error("a command is not written as old as it can be")
	}
}

func TestRebalanceAfterANodeCameBack(t *testing.T) {
	s := threeNodes(t)
	for i := range 6 {
		s = do(t, s, PutInstance{Name: fmt.Sprintf("i%d", i), Spread: true})
	}
	if moves := s.Rebalance(); len(moves) != 0 {
		t.Fatalf("even already, and yet %+v", moves)
	}
	s = do(t, s, NodeVerdict{Node: "lb3"})
	s = do(t, s, healthy("lb3")...)
	if got := spread(s); got["lb3"] != 0 {
		t.Fatalf("instances came back by themselves: %v", got)
	}
	moves := s.Rebalance()
	if len(moves) != 2 {
		t.Fatalf("%+v, want two moves", moves)
	}
	for len(moves) > 0 { // as they are carried out: one, then look again
		s = do(t, s, MoveInstance{Name: moves[0].Instance, To: moves[0].To})
		again := s.Rebalance()
		if len(again) != len(moves)-1 {
			t.Fatalf("after %+v there are %+v to do", moves[0], again)
		}
		moves = again
	}
	for n, load := range spread(s) {
		if load < 2 || load > 3 {
			t.Errorf("%s is master of %d", n, load)
		}
	}
}

func TestRebalanceFollowsPriorities(t *testing.T) {
	s := do(t, threeNodes(t), PutInstance{Name: "a", Priorities: map[NodeID]int{"lb2": 9}}, MoveInstance{Name: "a", To: "lb3"})
	moves := s.Rebalance()
	if len(moves) != 1 || moves[0] != (Move{Instance: "a", From: "lb3", To: "lb2", Why: "lb2 is preferred to lb3"}) {
		t.Errorf("%+v", moves)
	}
	if moves := do(t, s, DrainNode{Node: "lb2", Draining: true}).Rebalance(); len(moves) != 0 {
		t.Errorf("moves to a draining node: %+v", moves)
	}
	all := do(t, s, NodeVerdict{Node: "lb1"}, NodeVerdict{Node: "lb2"}, NodeVerdict{Node: "lb3"})
	if moves := all.Rebalance(); len(moves) != 0 {
		t.Errorf("moves without a node: %+v", moves)
	}
}

// The default instance exists whether anybody wants it or not.
func TestAnEmptyDefaultInstanceIsNoBurden(t *testing.T) {
	s := do(t, threeNodes(t), DeleteService{Name: "web"}, DeleteVIP{Address: addr("10.0.0.100")})
	for i := range 3 {
		s = do(t, s, PutInstance{Name: fmt.Sprintf("i%d", i), Spread: true})
	}
	if got := spread(s); got["lb1"] != 1 || got["lb2"] != 1 || got["lb3"] != 1 || len(s.Rebalance()) != 0 {
		t.Errorf("masters %v, moves %+v", got, s.Rebalance())
	}
}

// Every distribution there is of few instances is tried: none is more even, and
// without priorities none as even needs fewer moves.
func TestRebalanceIsAsEvenAsCanBe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := []NodeID{"a", "b", "c"}[:1+dice(t, "nodes", 3)]
		s := New()
		var log []Command
		log = append(log, InitCluster{Cluster: testCluster(), Node: lbNode("a", 1)})
		for i, n := range nodes[1:] {
			log = append(log, joining(lbNode(n, 2+i))...)
		}
		log = append(log, healthy(nodes...)...)
		equal := flag(t, "equal")
		count := dice(t, "instances", 7)
		for i := range count {
			put := PutInstance{Name: fmt.Sprintf("i%d", i)}
			if !equal {
				put.Priorities = map[NodeID]int{}
				for _, n := range nodes {
					put.Priorities[n] = dice(t, "priority", 2)
				}
			}
			log = append(log, put, MoveInstance{Name: put.Name, To: pick(t, "at", nodes)})
		}
		for _, c := range log {
			next, err := s.Apply(s.Index()+1, c)
			if err != nil {
				t.Fatal(err)
			}
			s = next
		}
		wantCost, wantMoves := bestOf(s, nodes)
		moves := s.Rebalance()
		for _, m := range moves {
			next, err := s.Apply(s.Index()+1, MoveInstance{Name: m.Instance, To: m.To})
			if err != nil {
				t.Fatal(err)
			}
			s = next
		}
		if got := cost(s.masterships()); got != wantCost {
			t.Fatalf("masters %v cost %d, and %d can be had", s.masterships(), got, wantCost)
		}
		if equal && len(moves) != wantMoves {
			t.Fatalf("%d moves, and %d do", len(moves), wantMoves)
		}
		if again := s.Rebalance(); len(again) != 0 {
			t.Fatalf("and again: %+v", again)
		}
	})
}

func cost(load map[NodeID]int) int {
	sum := 0
	for _, n := range load {
		sum += n * n
	}
	return sum
}

// bestOf tries all distributions over preferred nodes.
func bestOf(s *State, nodes []NodeID) (best, moves int) {
	able := eligible(s.Nodes())
	var insts []Instance
	for _, i := range s.Instances() {
		if i.Name != DefaultInstance {
			insts = append(insts, i)
		}
	}
	best, moves = 1<<30, 1<<30
	load := map[NodeID]int{}
	var try func(i, moved int)
	try = func(i, moved int) {
		if i == len(insts) {
			if c := cost(load); c < best || c == best && moved < moves {
				best, moves = c, moved
			}
			return
		}
		for _, n := range nodes {
			if !slices.Contains(preferred(insts[i], able), n) {
				continue
			}
			load[n]++
			step := moved
			if n != insts[i].Master {
				step++
			}
			try(i+1, step)
			load[n]--
		}
	}
	try(0, 0)
	return best, moves
}
