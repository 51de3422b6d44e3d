package fsm

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestARecoveryKeepsTheSurvivorAndTheConfiguration(t *testing.T) {
	before := do(t, threeNodes(t), PutInstance{Name: "blue", Priorities: map[NodeID]int{"lb1": 1, "lb2": 5}}, NodeVerdict{Node: "lb2"})
	key := bytes.Repeat([]byte{7}, gossipKeyLen)
	s := do(t, before, RecoverCluster{Survivor: "lb2", GossipKey: key})

	nodes := s.Nodes()
	was, _ := before.Node("lb2")
	if len(nodes) != 1 || nodes[0].Name != "lb2" || !nodes[0].Alive || !nodes[0].Voter || nodes[0].Slot != was.Slot || !bytes.Equal(nodes[0].Key, was.Key) {
		t.Errorf("nodes %+v, want lb2 alone, alive, and who it was", nodes)
	}
	c := s.Cluster()
	if len(c.GossipKey) != 1 || !bytes.Equal(c.GossipKey[0], key) {
		t.Error("an old gossip key is still good")
	}
	if c.ID != before.Cluster().ID || c.Recoveries != 1 || !slices.Equal(c.Without, []NodeID{"lb1", "lb3"}) {
		t.Errorf("cluster %+v", c)
	}
	if diff := cmp.Diff(before.Services(), s.Services(), sameValues()); diff != "" {
		t.Error(diff)
	}
	if inst, _ := s.Instance("blue"); !cmp.Equal(inst.Priorities, map[NodeID]int{"lb2": 5}) {
		t.Errorf("priorities %v", inst.Priorities)
	}
	for _, inst := range s.Instances() {
		if inst.Master != "" && inst.Master != "lb2" {
			t.Errorf("%s is master of %s", inst.Master, inst.Name)
		}
	}
}

func TestARecoveredClusterIsWholeWithThreeVoters(t *testing.T) {
	s := do(t, threeNodes(t), RecoverCluster{Survivor: "lb1", GossipKey: make([]byte, gossipKeyLen)})
	for _, name := range []NodeID{"lb2", "lb3"} {
		if len(s.Cluster().Without) != 2 {
			t.Errorf("with %d nodes the cluster is said to be whole", len(s.Nodes()))
		}
		n := lbNode(name, int(name[2]-'0'))
		n.Key = nodeKey("new " + name)
		s = do(t, s, joining(n)...)
	}
	if c := s.Cluster(); len(c.Without) != 0 || c.Recoveries != 1 {
		t.Errorf("cluster %+v, want nobody missing and the recovery counted", c)
	}
}

func TestWhatARecoveryRefuses(t *testing.T) {
	key := make([]byte, gossipKeyLen)
	s := do(t, New(), initCluster())
	cmds := joining(lbNode("lb2", 2))
	s = do(t, s, cmds[0], cmds[1])
	refused(t, s, RecoverCluster{Survivor: "lb7", GossipKey: key}, ErrNotFound, "lb7")
	refused(t, s, RecoverCluster{Survivor: "lb2", GossipKey: key[1:]}, ErrInvalid, "lb2", "has no vote", "31 bytes")
}

// A node of an older version has to stop at a recovery, and may read on before one.
func TestOnlyARecoveryNeedsItsVersion(t *testing.T) {
	cmd := RecoverCluster{Survivor: "lb1", GossipKey: make([]byte, gossipKeyLen)}
	b, err := Encode(cmd)
	if err != nil || peekVersion(b) != 4 {
		t.Errorf("%s (%v), want version %d", b, err, 4)
	}
	s := threeNodes(t)
	if v := peekVersion(snap(t, s)); v != baseVersion {
		t.Errorf("snapshot before has version %d", v)
	}
	s = do(t, s, cmd)
	bytes := snap(t, s)
	if v := peekVersion(bytes); v != 4 {
		t.Errorf("snapshot after has version %d", v)
	}
	back, err := Restore(bytes)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.Cluster(), back.Cluster()); diff != "" {
		t.Error(diff)
	}
}
