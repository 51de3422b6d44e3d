package fsm

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// voterNode is a healthy node of role lb, changed by what the row wants.
func voterNode(name NodeID, change ...func(*Node)) Node {
	n := Node{Name: name, Role: RoleLB, Voter: true, Alive: true, Ready: true, LinksUp: true, InSync: true}
	for _, c := range change {
		c(&n)
	}
	return n
}

func dead(n *Node)     { n.Alive = false }
func notReady(n *Node) { n.Ready = false }
func noLink(n *Node)   { n.LinksUp = false }
func draining(n *Node) { n.Draining = true }
func lagging(n *Node)  { n.InSync = false }
func witness(n *Node)  { n.Role = RoleWitness }

func TestElection(t *testing.T) {
	type nodes = []Node
	prio := map[NodeID]int{"a": 3, "b": 2, "c": 1}
	for _, r := range []struct {
		name      string
		incumbent NodeID
		nodes     nodes
		want      []NodeID // succession
		master    NodeID
	}{
		{"priority decides", "", nodes{voterNode("c"), voterNode("b"), voterNode("a")}, []NodeID{"a", "b", "c"}, "a"},
		{"incumbent stays against priority", "c", nodes{voterNode("a"), voterNode("b"), voterNode("c")}, []NodeID{"c", "a", "b"}, "c"},
		{"dead incumbent goes", "a", nodes{voterNode("a", dead), voterNode("b"), voterNode("c")}, []NodeID{"b", "c"}, "b"},
		{"unready incumbent goes", "a", nodes{voterNode("a", notReady), voterNode("b")}, []NodeID{"b"}, "b"},
		{"incumbent without link goes", "a", nodes{voterNode("a", noLink), voterNode("b")}, []NodeID{"b"}, "b"},
		{"draining incumbent goes", "a", nodes{voterNode("a", draining), voterNode("b")}, []NodeID{"b"}, "b"},
		{"lagging incumbent goes while another is in sync", "a", nodes{voterNode("a", lagging), voterNode("b")}, []NodeID{"b"}, "b"},
		{"lagging incumbent stays when all lag", "b", nodes{voterNode("a", lagging), voterNode("b", lagging)}, []NodeID{"b", "a"}, "b"},
		{"in sync but draining does not count", "", nodes{voterNode("a", draining), voterNode("b", lagging)}, []NodeID{"b"}, "b"},
		{"removed incumbent goes", "x", nodes{voterNode("a")}, []NodeID{"a"}, "a"},
		{"witness is never master", "", nodes{voterNode("a", witness), voterNode("b")}, []NodeID{"b"}, "b"},
		{"only a witness", "", nodes{voterNode("a", witness)}, []NodeID{}, ""},
		{"nobody eligible: draining incumbent keeps it", "a", nodes{voterNode("a", draining), voterNode("b", dead)}, []NodeID{"a"}, "a"},
		{"nobody eligible: incumbent without link keeps it", "a", nodes{voterNode("a", noLink), voterNode("b", notReady)}, []NodeID{"a"}, "a"},
		{"nobody eligible: dead incumbent loses it", "a", nodes{voterNode("a", dead), voterNode("b", dead)}, []NodeID{}, ""},
		{"nobody eligible: removed incumbent loses it", "x", nodes{voterNode("b", notReady)}, []NodeID{}, ""},
		{"no nodes", "", nil, []NodeID{}, ""},
	} {
		t.Run(r.name, func(t *testing.T) {
			inst := Instance{Name: "i", Priorities: prio, Assignment: Assignment{Master: r.incumbent, Epoch: 5}}
			got := elect(inst, eligible(r.nodes), r.nodes)
			want := Assignment{Master: r.master, Succession: r.want, Epoch: 5}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRendezvousIsFixed(t *testing.T) {
	// These values are part of the replicated format.
	for _, r := range []struct {
		instance string
		node     NodeID
		want     uint64
	}{{"default", "lb1", 0xe9a8f5e11d874347}, {"default", "lb2", 0x8c9c0031211f639e}, {"", "", 0x25fc6dd36ce04b20}} {
		if got := rendezvous(r.instance, r.node); got != r.want {
			t.Errorf("rendezvous(%q, %q) = %#x, want %#x", r.instance, r.node, got, r.want)
		}
	}
}

func TestRendezvousSpreadsInstances(t *testing.T) {
	var nodes []Node
	for i := range 4 {
		nodes = append(nodes, voterNode(NodeID(fmt.Sprintf("lb%d", i+1))))
	}
	count := map[NodeID]int{}
	for i := range 1000 {
		count[rank(Instance{Name: fmt.Sprintf("inst-%d", i)}, nodes)[0]]++
	}
	for _, n := range nodes {
		if count[n.Name] < 200 || count[n.Name] > 300 {
			t.Errorf("node %s is first for %d of 1000 instances, want about 250", n.Name, count[n.Name])
		}
	}
}

func TestMasterDiesAndComesBackWithoutPreEmption(t *testing.T) {
	s := do(t, threeNodes(t), PutInstance{Name: DefaultInstance, Priorities: map[NodeID]int{"lb1": 9, "lb2": 5}})
	was, _ := s.Instance(DefaultInstance)
	if was.Master != "lb1" {
		t.Fatalf("master %s, want lb1, the first node there", was.Master)
	}
	s = do(t, s, NodeVerdict{Node: "lb1"})
	now, _ := s.Instance(DefaultInstance)
	want := Assignment{Master: "lb2", Succession: []NodeID{"lb2", "lb3"}, Epoch: s.Index()}
	if diff := cmp.Diff(want, now.Assignment); diff != "" {
		t.Error(diff)
	}
	s = do(t, s, healthy("lb1")...)
	back, _ := s.Instance(DefaultInstance)
	want.Succession = []NodeID{"lb2", "lb1", "lb3"}
	if diff := cmp.Diff(want, back.Assignment); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]NodeID{"lb1", "lb2", "lb3"}, s.Eligible(DefaultInstance)); diff != "" {
		t.Error(diff)
	}
	if got := s.Eligible("nix"); len(got) != 0 {
		t.Errorf("eligible for an unknown instance: %v", got)
	}
}

func TestMoveInstance(t *testing.T) {
	s := threeNodes(t)
	from := master(s, DefaultInstance)
	moved := do(t, s, MoveInstance{Name: DefaultInstance, To: "lb3"})
	inst, _ := moved.Instance(DefaultInstance)
	if inst.Master != "lb3" || inst.Succession[0] != "lb3" || inst.Epoch != moved.Index() || from == "lb3" {
		t.Errorf("from %s, now %+v", from, inst)
	}
	same, _ := do(t, moved, MoveInstance{Name: DefaultInstance, To: "lb3"}).Instance(DefaultInstance)
	if diff := cmp.Diff(inst, same); diff != "" {
		t.Error(diff)
	}
	// An incumbent that is kept for want of a better one may be asked for too.
	alone := do(t, do(t, New(), initCluster()), append(healthy("lb1"), DrainNode{Node: "lb1", Draining: true})...)
	if got := master(do(t, alone, MoveInstance{Name: DefaultInstance, To: "lb1"}), DefaultInstance); got != "lb1" {
		t.Errorf("master %q, want the draining lb1 still", got)
	}
	refused(t, s, MoveInstance{Name: "nix", To: "lb2"}, ErrNotFound)
	refused(t, s, MoveInstance{Name: DefaultInstance, To: "nix"}, ErrNotFound)
	move := MoveInstance{Name: DefaultInstance, To: "lb2"}
	refused(t, do(t, s, DrainNode{Node: "lb2", Draining: true}), move, ErrNotEligible, "is draining", "lb1")
	refused(t, do(t, s, NodeVerdict{Node: "lb2"}), move, ErrNotEligible, "is not alive")
	refused(t, do(t, s, NodeReport{Node: "lb2", LinksUp: true, InSync: true}), move, ErrNotEligible, "no data plane ready")
	refused(t, do(t, s, NodeReport{Node: "lb2", Ready: true, InSync: true}), move, ErrNotEligible, "without link")
	refused(t, do(t, s, NodeReport{Node: "lb2", Ready: true, LinksUp: true}), move, ErrNotEligible, "does not hold all flows yet")
}

func TestElectionWithoutAMaster(t *testing.T) {
	type nodes = []Node
	prio := map[NodeID]int{"a": 3, "b": 2, "c": 1}
	for _, r := range []struct {
		name  string
		was   []NodeID
		nodes nodes
		want  []NodeID
	}{
		{"all who are eligible, in order", nil, nodes{voterNode("c"), voterNode("b"), voterNode("a")}, []NodeID{"a", "b", "c"}},
		{"who was there before has no preference", []NodeID{"c"}, nodes{voterNode("a"), voterNode("c")}, []NodeID{"a", "c"}},
		{"a dead one is out", []NodeID{"a", "b"}, nodes{voterNode("a", dead), voterNode("b")}, []NodeID{"b"}},
		{"a draining one is out", []NodeID{"a", "b"}, nodes{voterNode("a", draining), voterNode("b")}, []NodeID{"b"}},
		{"one without a link is out", []NodeID{"a", "b"}, nodes{voterNode("a", noLink), voterNode("b")}, []NodeID{"b"}},
		{"a lagging one is out while another is in sync", []NodeID{"a", "b"}, nodes{voterNode("a", lagging), voterNode("b")}, []NodeID{"b"}},
		{"all lag: all serve", []NodeID{"a"}, nodes{voterNode("a", lagging), voterNode("b", lagging)}, []NodeID{"a", "b"}},
		{"a witness never serves", nil, nodes{voterNode("a", witness), voterNode("b")}, []NodeID{"b"}},
		{"nobody eligible: who is left alive goes on", []NodeID{"a", "b", "c"}, nodes{voterNode("a", draining), voterNode("b", dead), voterNode("c", noLink)}, []NodeID{"a", "c"}},
		{"nobody eligible: who did not serve does not begin", []NodeID{"a"}, nodes{voterNode("a", dead), voterNode("b", notReady)}, []NodeID{}},
		{"no nodes", nil, nil, []NodeID{}},
	} {
		t.Run(r.name, func(t *testing.T) {
			inst := Instance{Name: "i", Kind: InstanceECMP, Priorities: prio, Assignment: Assignment{Succession: r.was, Epoch: 5}}
			want := Assignment{Succession: r.want, Epoch: 5}
			if diff := cmp.Diff(want, elect(inst, eligible(r.nodes), r.nodes)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// routedNodes are threeNodes whose VIP reaches the network by BGP.
func routedNodes(t *testing.T) *State {
	t.Helper()
	return do(t, threeNodes(t), PutVIP{VIP: VIP{Address: addr("10.0.0.100"), Announce: AnnounceBGP}})
}

func TestInstanceBecomesOneWithoutAMasterAndBack(t *testing.T) {
	s := do(t, routedNodes(t), PutInstance{Name: DefaultInstance, Kind: InstanceECMP})
	now, _ := s.Instance(DefaultInstance)
	if now.Master != "" || len(now.Succession) != 3 || now.Epoch != s.Index() {
		t.Fatalf("%+v at %d", now, s.Index())
	}
	began := now.Epoch
	s = do(t, s, NodeVerdict{Node: "lb2"})
	now, _ = s.Instance(DefaultInstance)
	if len(now.Succession) != 2 || now.Epoch != began {
		t.Errorf("one node less is no new epoch: %+v", now)
	}
	if now.Serves("lb2") || !now.Serves("lb1") || now.Serves("") {
		t.Errorf("%+v serves", now)
	}
	s = do(t, s, NodeVerdict{Node: "lb1"}, NodeReport{Node: "lb3", LinksUp: true, InSync: true}, PutInstance{Name: DefaultInstance, Kind: InstanceBackup})
	now, _ = s.Instance(DefaultInstance)
	if now.Master != "lb3" || now.Epoch != s.Index() {
		t.Errorf("who is left of those who served is the master, eligible or not: %+v", now)
	}
	s = do(t, s, healthy("lb1")...)
	s = do(t, s, PutInstance{Name: "other", Kind: InstanceECMP})
	if other, _ := s.Instance("other"); other.Epoch != s.Index() {
		t.Errorf("made without a master: %+v", other)
	}
}

func TestInstanceWithoutAMasterIsNotMovedButHandedOver(t *testing.T) {
	s := do(t, routedNodes(t), PutInstance{Name: DefaultInstance, Kind: InstanceECMP})
	refused(t, s, MoveInstance{Name: DefaultInstance, To: "lb2"}, ErrInvalid, "has no master", "node drain")
	if err := s.HandOver("lb1"); err != nil {
		t.Errorf("two others serve it: %v", err)
	}
	s = do(t, s, NodeVerdict{Node: "lb2"}, NodeVerdict{Node: "lb3"})
	if err := s.HandOver("lb1"); err == nil {
		t.Error("nobody else serves it")
	}
	drained, _ := do(t, s, DrainNode{Node: "lb1", Draining: true}).Instance(DefaultInstance)
	if diff := cmp.Diff([]NodeID{"lb1"}, drained.Succession); diff != "" {
		t.Error(diff)
	}
}
