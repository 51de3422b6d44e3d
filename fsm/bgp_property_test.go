package fsm

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

var propPeers = []string{"10.0.0.1", "192.0.2.3", "192.0.2.201", "192.0.2.201", "192.0.2.202", "2001:db8::f", "fe80::1"}

func genSettings(t *rapid.T, name string) PutInstance {
	c := PutInstance{
		Name: name, Kind: pick(t, "kind", []InstanceKind{"", InstanceBackup, InstanceECMP, InstanceECMP}),
		AnnouncePolicy: pick(t, "policy", []AnnouncePolicy{"", "", PolicyRanked, PolicyMasterOnly, "x"}),
		ASPrepend:      dice(t, "prepend", 4) == 0,
		Communities:    pick(t, "communities", [][]Community{nil, {"65000:01"}, {"65000:1:2", "65000:1"}, {GracefulShutdown}}),
	}
	if flag(t, "next hop") {
		c.NextHops = []netip.Addr{addr(pick(t, "next hop", propAddrs))}
	}
	return c
}

func genBGP(t *rapid.T) Command {
	at, node := addr(pick(t, "peer", propPeers)), pick(t, "node", append([]NodeID{"", ""}, propNodes...))
	as := pick(t, "as", []uint32{0, 64512, 64513, 64514, 65001, 23456})
	switch dice(t, "bgp command", 5) {
	case 0:
		b := BGP{AS: as, Port: pick(t, "port", []uint16{0, 179, 179, 1790})}
		if flag(t, "own") {
			b.Nodes = []BGPNode{{Node: node, AS: as, RouterID: pick(t, "id", []netip.Addr{{}, addr("192.0.2.1"), addr("192.0.2.99")})}}
		}
		if flag(t, "import") {
			b.Import = []ImportRule{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), MinLen: pick(t, "min", []uint8{0, 7, 8, 24})}}
		}
		return PutBGP{BGP: b}
	case 1:
		return DeleteBGPPeer{Address: at, Node: node}
	}
	return PutBGPPeer{Peer: BGPPeer{
		Address: at, Node: node, AS: as, Multihop: uint8(pick(t, "multihop", []int{0, 0, 0, 1, 2})), Passive: flag(t, "passive"),
		Password: pick(t, "password", []string{"", "", "secret", KeepPassword}), BFD: flag(t, "bfd"),
		Hold: pick(t, "hold", []Duration{0, 0, MinHold, 1}), Source: pick(t, "source", []netip.Addr{{}, {}, addr("192.0.2.4"), addr("2001:db8::1")}),
	}}
}

func TestBGPInvariants(t *testing.T) {
	sessions, hops, ecmp := 0, 0, 0
	look := func(t *rapid.T) {
		s := New()
		for _, c := range genLog(t) {
			before := s
			s, _ = s.Apply(s.Index()+1, c)
			for _, inst := range s.Instances() {
				hops += len(inst.NextHops)
				if inst.Kind == InstanceECMP {
					ecmp++
				}
				checkInstanceFits(t, s, inst)
			}
			sessions += checkPeersFit(t, s)
			checkSessionChanges(t, before, s)
		}
	}
	rapid.Check(t, look)
	for tries := 0; (sessions < 200 || hops < 20 || ecmp < 20) && tries < 4; tries++ {
		rapid.Check(t, look) // chance was against it: few next hops were drawn
	}
	t.Logf("%d sessions, %d next hops, %d instances of kind ecmp", sessions, hops, ecmp)
	if sessions < 200 || hops < 20 || ecmp < 20 {
		t.Error("too few to tell anything")
	}
}

// checkInstanceFits holds that the VIPs of an instance go with its settings,
// whichever of them came first.
func checkInstanceFits(t *rapid.T, s *State, inst Instance) {
	for _, v := range s.VIPs() {
		if v.Instance == inst.Name && inst.Kind == InstanceECMP && (v.Announce == AnnounceL2 || v.Kind == VIPGateway) {
			t.Fatalf("%+v in %+v", v, inst)
		}
	}
	for i, a := range inst.NextHops {
		v, ok := s.VIP(a)
		if !ok || v.Instance != inst.Name || v.Announce == AnnounceNone || inst.Kind == InstanceECMP {
			t.Fatalf("next hop %s of %+v is %+v", a, inst, v)
		}
		if !s.TakesNewFlows(a) {
			t.Fatalf("next hop %s takes no new flows", a)
		}
		if i > 0 && inst.NextHops[i-1].Is4() == a.Is4() {
			t.Fatalf("next hops of %+v", inst)
		}
	}
}

// checkPeersFit returns how many sessions there are.
func checkPeersFit(t *rapid.T, s *State) int {
	sessions := 0
	for _, p := range s.BGPPeers() {
		if _, clash := s.VIP(p.Address); clash || p.Password == KeepPassword || p.Hold < MinHold || p.Keepalive > p.Hold/3 {
			t.Fatalf("peer %+v", p)
		}
		if n, ok := s.Node(p.Node); p.Node != "" && (!ok || n.Role != RoleLB) {
			t.Fatalf("peer %+v of %+v", p, n)
		}
		if p.Passive && s.BGP().Port == 0 {
			t.Fatalf("peer %+v with %+v", p, s.BGP())
		}
	}
	for _, n := range s.Nodes() {
		as, id := s.BGPOf(n.Name)
		if as == 0 || !id.Is4() {
			t.Fatalf("node %s has AS %d, router id %s", n.Name, as, id)
		}
		for _, p := range s.BGPPeersOf(n.Name) {
			sessions++
			if p.Node != "" && p.Node != n.Name || p.Multihop != 0 && p.AS == cmp.Or(p.LocalAS, as) {
				t.Fatalf("%s of AS %d speaks with %+v", n.Name, as, p)
			}
		}
	}
	return sessions
}

// checkSessionChanges holds that the changes lead from the sessions before to
// those after.
func checkSessionChanges(t *rapid.T, before, after *State) {
	type at struct {
		node NodeID
		peer netip.Addr
	}
	have := map[at]string{}
	for _, n := range before.Nodes() {
		for _, s := range before.sessions(n.Name) {
			have[at{n.Name, s.Address}] = s.differs(session{})
		}
	}
	for _, c := range SessionChanges(before, after) {
		key := at{c.Node, c.Peer}
		if _, there := have[key]; there == (c.Verb == SessionAdded) || (c.Why != "") != (c.Verb == SessionReset) {
			t.Fatalf("%+v", c)
		}
		delete(have, key)
		if c.Verb != SessionRemoved {
			i := slices.IndexFunc(after.sessions(c.Node), func(s session) bool { return s.Address == c.Peer })
			have[key] = after.sessions(c.Node)[i].differs(session{})
		}
	}
	for _, n := range after.Nodes() {
		for _, s := range after.sessions(n.Name) {
			key := at{n.Name, s.Address}
			if have[key] != s.differs(session{}) {
				t.Fatalf("session %v is %q, want %q", key, have[key], s.differs(session{}))
			}
			delete(have, key)
		}
	}
	if len(have) > 0 {
		t.Fatalf("sessions left: %v", have)
	}
}

// A node of version 4 reads on until something of version 5 is used, and what was
// used and taken back leaves nothing behind.
func TestBGPIsWrittenAsOldAsItCanBe(t *testing.T) {
	s := threeNodes(t)
	vip := VIP{Address: addr("10.0.0.9"), Announce: AnnounceBGP}
	for name, r := range map[string]struct {
		c    Command
		undo Command
		want int // of the command and of the snapshot after it
	}{
		"priorities":  {PutInstance{Name: DefaultInstance, Priorities: map[NodeID]int{"lb2": 1}}, PutInstance{Name: DefaultInstance}, 2},
		"l2":          {PutVIP{VIP: VIP{Address: addr("10.0.0.9"), Announce: AnnounceL2}}, DeleteVIP{Address: addr("10.0.0.9")}, 2},
		"bgp vip":     {PutVIP{VIP: vip}, DeleteVIP{Address: vip.Address}, 5},
		"ecmp":        {PutInstance{Name: "b", Kind: InstanceECMP}, DeleteInstance{Name: "b"}, 5},
		"policy":      {PutInstance{Name: DefaultInstance, AnnouncePolicy: PolicyMasterOnly}, PutInstance{Name: DefaultInstance, Kind: InstanceBackup}, 5},
		"prepend":     {PutInstance{Name: DefaultInstance, ASPrepend: true}, PutInstance{Name: DefaultInstance, AnnouncePolicy: PolicyRanked}, 5},
		"communities": {PutInstance{Name: DefaultInstance, Communities: []Community{"1:2"}}, PutInstance{Name: DefaultInstance, Kind: InstanceBackup}, 5},
		"next hop":    {PutInstance{Name: DefaultInstance, NextHops: []netip.Addr{addr("10.0.0.100")}}, PutInstance{Name: DefaultInstance, Kind: InstanceBackup}, 5},
		"bgp":         {PutBGP{BGP: BGP{AS: 65001, Port: DefaultBGPPort}}, PutBGP{BGP: BGP{Port: DefaultBGPPort}}, 5},
		"peer":        {PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 65001}}, DeleteBGPPeer{Address: addr("192.0.2.254")}, 5},
		"peer of lb1": {PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 65001, Node: "lb1"}}, DeleteBGPPeer{Address: addr("192.0.2.254"), Node: "lb1"}, 5},
	} {
		b, err := Encode(r.c)
		if err != nil || peekVersion(b) != r.want {
			t.Errorf("%s: %s (%v), want version %d", name, b, err, r.want)
		}
		used := do(t, s, r.c)
		written := snap(t, used)
		if peekVersion(written) != r.want || r.want == 2 && bytes.Contains(written, []byte("bgp")) {
			t.Errorf("%s: snapshot %s, want version %d", name, written, r.want)
		}
		if got := snap(t, restored(t, used)); !bytes.Equal(got, written) {
			t.Errorf("%s: restored %s\nwas %s", name, got, written)
		}
		if back := snap(t, do(t, used, r.undo)); peekVersion(back) != 2 || bytes.Contains(back, []byte("bgp")) {
			t.Errorf("%s taken back: %s", name, back)
		}
	}
}
