package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEverythingButInitIsRefusedBeforeInit(t *testing.T) {
	for _, c := range allCommands() {
		switch c.(type) {
		case InitCluster, Batch:
			continue
		}
		refused(t, New(), c, ErrNotInitialised, "pontoon init")
	}
	refused(t, New(), Batch{Commands: []Command{DeleteService{Name: "web"}}}, ErrNotInitialised)
}

func TestInitMakesTheFirstNodeAnAliveVoter(t *testing.T) {
	s := do(t, New(), initCluster())
	want := lbNode("lb1", 1)
	want.Voter, want.Alive, want.Joined = true, true, 1
	if diff := cmp.Diff([]Node{want}, s.Nodes()); diff != "" {
		t.Error(diff)
	}
	if s.Cluster().ID != "c1" || New().Cluster().ID != "" {
		t.Error("cluster id is wrong")
	}
	if inst, ok := s.Instance(DefaultInstance); !ok || inst.Master != "" || inst.Epoch != 0 {
		t.Errorf("default instance %+v, want no master yet", inst)
	}
}

func TestSecondInitIsRefused(t *testing.T) {
	s := do(t, New(), initCluster())
	refused(t, s, initCluster(), ErrAlreadyInitialised, "c1", "pontoon leave")
}

func TestInitReportsAllProblems(t *testing.T) {
	c := InitCluster{
		Cluster: Cluster{ID: "Bad Id", GossipKey: [][]byte{{1}}},
		Node:    Node{Name: "-x", Role: "king", Address: "nowhere", GossipPort: 0},
	}
	refused(t, New(), c, ErrInvalid, "id", "ca", "gossip_key", "name -x", "role king", "address nowhere", "gossip_port", "key has 0 bytes")
	c = InitCluster{Cluster: testCluster(), Node: Node{Name: "a", Role: RoleLB, Address: "0.0.0.0:7400", GossipPort: 7400, Key: nodeKey("a")}}
	refused(t, New(), c, ErrInvalid, "can connect to", "not the gossip port")
	var v *ValidationError
	if err := New().Check(c); !errors.As(err, &v) || len(v.Problems) != 2 || v.Problems[0].Field != "address" {
		t.Errorf("problems %+v", v)
	}
}

func TestStateKeepsNoMemoryOfTheCaller(t *testing.T) {
	c := InitCluster{Cluster: testCluster(), Node: lbNode("lb1", 1)}
	s := do(t, New(), c)
	before := snap(t, s)
	c.Cluster.CA[0], c.Cluster.GossipKey[0][0] = 99, 99
	c.Node.Key[0]++
	if diff := cmp.Diff(before, snap(t, s)); diff != "" {
		t.Error(diff)
	}
	p := map[NodeID]int{"lb1": 5}
	hash := secretHash("x")
	svc := webService()
	s = do(t, s, CreateToken{Token: Token{ID: "a", Hash: hash, Role: RoleLB, Expires: epoch0.Add(1)}, Now: epoch0.Add(-time.Hour)})
	before = snap(t, s)
	s2 := do(t, s, PutInstance{Name: "blue", Priorities: p}, PutVIP{VIP: VIP{Address: svc.VIP}}, PutService{Service: svc})
	before2 := snap(t, s2)
	p["lb1"], hash[0] = 9, hash[0]+1
	svc.Endpoints[0].Weight = 77
	inst, _ := s2.Instance("blue")
	inst.Priorities["lb1"] = 11
	s2.Nodes()[0].Alive = false
	if diff := cmp.Diff(before, snap(t, s)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(before2, snap(t, s2)); diff != "" {
		t.Error(diff)
	}
}

func TestTokens(t *testing.T) {
	s := do(t, New(), initCluster())
	tok := Token{ID: "abc", Hash: secretHash("x"), Role: RoleLB, Expires: epoch0.Add(time.Hour)}
	with := func(change func(*Token)) Command {
		c := tok
		change(&c)
		return CreateToken{Token: c, Now: epoch0}
	}
	refused(t, s, with(func(c *Token) { c.ID = "A b" }), ErrInvalid, "id")
	refused(t, s, with(func(c *Token) { c.Hash = []byte("plain") }), ErrInvalid, "SHA-256")
	refused(t, s, with(func(c *Token) { c.Role = "" }), ErrInvalid, "role", "lb or witness")
	refused(t, s, with(func(c *Token) { c.Expires = epoch0 }), ErrInvalid, "not in the future")
	refused(t, s, with(func(c *Token) { c.Expires = epoch0.Add(MaxTokenTTL + 1e9) }), ErrInvalid, "shorter --ttl")
	s = do(t, s, CreateToken{Token: tok, Now: epoch0})
	refused(t, s, CreateToken{Token: tok, Now: epoch0}, ErrExists)
	refused(t, s, RevokeToken{ID: "nix"}, ErrNotFound, "token list")
	if got := do(t, s, RevokeToken{ID: "abc"}).Tokens(); len(got) != 0 {
		t.Errorf("tokens after revoking: %v", got)
	}
	// A day after its end a token is forgotten with the next one made.
	later := epoch0.Add(time.Hour + TokenMemory + time.Second)
	s = do(t, s, CreateToken{Token: Token{ID: "new", Hash: secretHash("y"), Role: RoleLB, Expires: later.Add(time.Hour)}, Now: later})
	if got := s.Tokens(); len(got) != 1 || got[0].ID != "new" {
		t.Errorf("tokens %v, want the new one alone", got)
	}
}

func TestTokenTimeHasOneForm(t *testing.T) {
	zone := time.FixedZone("x", 7200)
	mk := func(at time.Time) []byte {
		return snap(t, do(t, New(), initCluster(), CreateToken{Token: Token{ID: "a", Hash: secretHash("x"), Role: RoleLB, Expires: at}, Now: epoch0}))
	}
	if diff := cmp.Diff(mk(epoch0.Add(time.Hour)), mk(epoch0.Add(time.Hour).In(zone))); diff != "" {
		t.Error(diff)
	}
}

func TestJoinUsesTheTokenUp(t *testing.T) {
	s := do(t, New(), initCluster())
	cmds := joining(lbNode("lb2", 2))
	s = do(t, s, cmds[0], cmds[1])
	n, ok := s.Node("lb2")
	want := lbNode("lb2", 2)
	want.Slot, want.Joined = 1, 3
	if diff := cmp.Diff(want, n); !ok || diff != "" {
		t.Error(diff)
	}
	if len(s.Tokens()) != 0 {
		t.Error("the token is still there")
	}
	again := cmds[1].(JoinNode)
	again.Node = lbNode("lb3", 3)
	refused(t, s, again, ErrTokenInvalid, "used", "pontoon token create")
	if n, _ := do(t, s, SetVoter{Node: "lb2"}).Node("lb2"); !n.Voter {
		t.Error("lb2 is no voter")
	}
	refused(t, s, SetVoter{Node: "lb9"}, ErrNotFound)
}

func TestJoinRefusals(t *testing.T) {
	s := do(t, New(), initCluster(), PutVIP{VIP: VIP{Address: addr("10.0.0.100")}})
	cmds := joining(lbNode("lb2", 2))
	s = do(t, s, cmds[0])
	with := func(change func(*JoinNode)) JoinNode {
		j := cmds[1].(JoinNode)
		change(&j)
		return j
	}
	rows := []struct {
		name   string
		change func(*JoinNode)
		kind   error
		words  []string
	}{
		{"unknown token", func(j *JoinNode) { j.TokenID = "nix" }, ErrTokenInvalid, []string{"nix", "unknown", "token create"}},
		{"wrong secret", func(j *JoinNode) { j.SecretHash = secretHash("guess") }, ErrTokenInvalid, []string{"wrong secret"}},
		{"no secret", func(j *JoinNode) { j.SecretHash = nil }, ErrTokenInvalid, []string{"wrong secret"}},
		{"expired", func(j *JoinNode) { j.Now = epoch0.Add(time.Hour) }, ErrTokenInvalid, []string{"t-lb2 expired at 2026-01-02T04:04:05Z: make a new one"}},
		{"other role", func(j *JoinNode) { j.Node.Role = RoleWitness }, ErrTokenInvalid, []string{"role lb", "--role witness"}},
		{"name taken", func(j *JoinNode) { j.Node.Name = "lb1" }, ErrExists, []string{"lb1", "taken", "--name"}},
		{"bad name", func(j *JoinNode) { j.Node.Name = "lb/2" }, ErrInvalid, []string{"lb/2"}},
		{"address taken", func(j *JoinNode) { j.Node.Address = "192.0.2.1:7400" }, ErrInUse, []string{"192.0.2.1:7400", "node lb1", "--address"}},
		{"address taken, other form", func(j *JoinNode) { j.Node.Address = "[::ffff:192.0.2.1]:7400" }, ErrInUse, []string{"node lb1"}},
		{"gossip taken", func(j *JoinNode) { j.Node.Address = "192.0.2.1:7500" }, ErrInUse, []string{"192.0.2.1:7401", "--gossip-port"}},
		{"address is another's gossip", func(j *JoinNode) { j.Node.Address = "192.0.2.1:7401"; j.Node.GossipPort = 7402 }, ErrInUse, []string{"node lb1"}},
		{"address is a vip", func(j *JoinNode) { j.Node.Address = "10.0.0.100:7400" }, ErrInUse, []string{"VIP"}},
		{"no key", func(j *JoinNode) { j.Node.Key = nil }, ErrInvalid, []string{"key has 0 bytes", "32"}},
		{"half a key", func(j *JoinNode) { j.Node.Key = j.Node.Key[:16] }, ErrInvalid, []string{"key has 16 bytes", "32"}},
		{"no port", func(j *JoinNode) { j.Node.Address = "192.0.2.7" }, ErrInvalid, []string{"192.0.2.11:7400"}},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { refused(t, s, with(r.change), r.kind, r.words...) })
	}
	both := with(func(j *JoinNode) { j.Node.Name, j.Node.Address = "lb1", "192.0.2.1:7400" })
	refused(t, s, both, ErrExists, "name lb1 is taken", "address 192.0.2.1:7400")
	refused(t, s, both, ErrInUse)
	do(t, s, with(func(*JoinNode) {})) // the token has survived all of that
}

func TestSlotsAreUniqueAndTheLowestFreeIsTaken(t *testing.T) {
	s := do(t, New(), initCluster())
	for i := 2; i <= MaxSlots; i++ {
		s = do(t, s, joining(lbNode(NodeID(fmt.Sprintf("lb%d", i)), i))...)
	}
	cmds := joining(lbNode("lb99", 99))
	s = do(t, s, cmds[0])
	refused(t, s, cmds[1], ErrInUse, "slot", "8 are taken", "witness")
	w := Node{Name: "W", Role: RoleWitness, Address: "192.0.2.50:7400", GossipPort: 7401, Key: nodeKey("W")}
	s = do(t, s, joining(w)...)
	if n, _ := s.Node("W"); n.Slot != NoSlot {
		t.Errorf("witness has slot %d", n.Slot)
	}
	s = do(t, s, RemoveNode{Node: "lb6"}, RemoveNode{Node: "lb3"}, cmds[1])
	if n, _ := s.Node("lb99"); n.Slot != 2 {
		t.Errorf("slot %d, want 2, the lowest free one", n.Slot)
	}
}

func TestLastVoterStaysUnlessForced(t *testing.T) {
	s := do(t, New(), initCluster())
	cmds := joining(lbNode("lb2", 2))
	s = do(t, s, cmds[0], cmds[1])
	refused(t, s, RemoveNode{Node: "lb1"}, ErrInUse, "last voter", "--force")
	refused(t, s, RemoveNode{Node: "lb7"}, ErrNotFound, "lb7", "node list")
	if got := do(t, s, RemoveNode{Node: "lb1", Force: true}).Nodes(); len(got) != 1 {
		t.Errorf("nodes %v", got)
	}
	s = do(t, s, SetVoter{Node: "lb2"}, RemoveNode{Node: "lb1"})
	if _, ok := s.Node("lb1"); ok {
		t.Error("lb1 is still there")
	}
}

func TestAKeyIsKeptForTheNodesLifeAndNoLonger(t *testing.T) {
	s := do(t, threeNodes(t), NodeVerdict{Node: "lb2"}, NodeVerdict{Node: "lb2", Alive: true},
		NodeReport{Node: "lb2", Ready: true}, DrainNode{Node: "lb2", Draining: true}, SetVoter{Node: "lb2"})
	if n, _ := s.Node("lb2"); !bytes.Equal(n.Key, nodeKey("lb2")) {
		t.Errorf("key is %x, want that of its join", n.Key)
	}
	other := lbNode("lb2", 9)
	other.Key = nodeKey("another machine")
	s = do(t, s, RemoveNode{Node: "lb2"})
	s = do(t, s, joining(other)...)
	if n, _ := s.Node("lb2"); !bytes.Equal(n.Key, other.Key) {
		t.Errorf("key is %x, want that of the machine that has the name now", n.Key)
	}
}

func TestRemovedNodeLeavesNoTraceInPriorities(t *testing.T) {
	s := do(t, threeNodes(t), PutInstance{Name: "blue", Priorities: map[NodeID]int{"lb2": 5, "lb3": 1}}, RemoveNode{Node: "lb2"})
	inst, _ := s.Instance("blue")
	if diff := cmp.Diff(map[NodeID]int{"lb3": 1}, inst.Priorities); diff != "" {
		t.Error(diff)
	}
}

func TestDeadNodeHasToEarnItsMeritsAgain(t *testing.T) {
	s := do(t, threeNodes(t), NodeVerdict{Node: "lb2", Reason: "gossip"})
	if n, _ := s.Node("lb2"); n.Alive || n.Ready || n.LinksUp || n.InSync {
		t.Errorf("%+v", n)
	}
	refused(t, s, NodeReport{Node: "lb2", Ready: true}, ErrNodeDown, "lb2")
	s = do(t, s, NodeVerdict{Node: "lb2", Alive: true})
	if n, _ := s.Node("lb2"); !n.Alive || n.Ready || n.LinksUp || n.InSync {
		t.Errorf("%+v", n)
	}
	refused(t, s, NodeReport{Node: "lb7"}, ErrNotFound)
	refused(t, s, NodeVerdict{Node: "lb7"}, ErrNotFound)
	refused(t, s, DrainNode{Node: "lb7"}, ErrNotFound)
}

func TestIndexMustGrow(t *testing.T) {
	s := do(t, New(), initCluster())
	next, err := s.Apply(1, PutInstance{Name: "blue"})
	if !errors.Is(err, ErrInvalid) || next != s {
		t.Errorf("state %p (was %p), error %v", next, s, err)
	}
	if next, err := s.Apply(9, nil); !errors.Is(err, ErrInvalid) || next.Index() != 9 {
		t.Errorf("no command: index %d, error %v", next.Index(), err)
	}
}

// TestStateMayBeReadWhileTheNextOneIsMade is worth most under the race detector.
func TestStateMayBeReadWhileTheNextOneIsMade(t *testing.T) {
	s := threeNodes(t)
	want := snap(t, s)
	done := make(chan []byte)
	for range 4 {
		go func() {
			var last []byte
			for range 50 {
				last, _ = s.Snapshot()
			}
			done <- last
		}()
	}
	for i := range 200 {
		svc := webService()
		svc.Name, svc.Port = fmt.Sprintf("s%d", i), uint16(1000+i)
		do(t, s, PutService{Service: svc}, DeleteService{Name: "web"}, NodeVerdict{Node: "lb1"}, RemoveNode{Node: "lb2"})
	}
	for range 4 {
		if got := <-done; !bytes.Equal(got, want) {
			t.Error("a reader saw the state change")
		}
	}
}
