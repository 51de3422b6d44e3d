package fsm

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// fullPeer has every setting.
func fullPeer() BGPPeer {
	return BGPPeer{
		Address: addr("192.0.2.254"), Node: "lb1", AS: 65001, LocalAS: 65002, Port: 1790, Password: "secret", TTLSecurity: true, Passive: true,
		Hold: MinHold, Keepalive: MinKeepalive, Source: addr("192.0.2.1"), Family: FamilyIPv4, NoGracefulRestart: true, MaxPrefixes: 5,
		BFD: true, BFDInterval: MinBFDInterval, BFDMultiplier: 255,
	}
}

func TestDefaultsOfBGP(t *testing.T) {
	want := BGP{AS: 64512, Port: 179, RestartTime: Duration(2 * time.Minute), Nodes: []BGPNode{}, Import: []ImportRule{}, MaxImport: 1000}
	s := threeNodes(t)
	if diff := cmp.Diff(want, s.BGP(), sameValues()); diff != "" {
		t.Errorf("of a cluster that was told nothing: %s", diff)
	}
	var in BGP
	if err := json.Unmarshal([]byte(`{"as":65001}`), &in); err != nil {
		t.Fatal(err)
	}
	want.AS = 65001
	if diff := cmp.Diff(want, do(t, s, PutBGP{BGP: in}).BGP(), sameValues()); diff != "" {
		t.Errorf("of one that was told an AS: %s", diff)
	}
	if err := json.Unmarshal([]byte(`{"port":0}`), &in); err != nil || in.Port != 0 {
		t.Errorf("port %d (%v), want none", in.Port, err)
	}
	if err := json.Unmarshal([]byte(`{"sa":1}`), &in); err == nil {
		t.Error("an unknown key is read")
	}
}

func TestDefaultsOfBGPPeer(t *testing.T) {
	s := do(t, threeNodes(t),
		PutBGPPeer{Peer: BGPPeer{Address: addr("::ffff:192.0.2.254"), AS: 65001, Multihop: 1}},
		PutBGPPeer{Peer: BGPPeer{Address: addr("2001:db8::f"), AS: 65001, BFD: true, Hold: Duration(10 * time.Second)}})
	want := []BGPPeer{
		{Address: addr("192.0.2.254"), AS: 65001, Port: 179, Hold: Duration(9 * time.Second), Keepalive: Duration(3 * time.Second), Family: FamilyBoth, MaxPrefixes: 10000},
		{
			Address: addr("2001:db8::f"), AS: 65001, Port: 179, Hold: Duration(10 * time.Second), Keepalive: Duration(3 * time.Second),
			Family: FamilyBoth, MaxPrefixes: 10000, BFD: true, BFDInterval: Duration(50 * time.Millisecond), BFDMultiplier: 3,
		},
	}
	if diff := cmp.Diff(want, s.BGPPeers(), sameValues()); diff != "" {
		t.Error(diff)
	}
	if err := s.Check(PutBGPPeer{Peer: fullPeer()}); err != nil {
		t.Errorf("a peer with all settings: %v", err)
	}
	if p, ok := s.BGPPeer(addr("::ffff:192.0.2.254"), ""); !ok || p.AS != 65001 {
		t.Errorf("peer %+v", p)
	}
}

func TestBGPPeerRefusals(t *testing.T) {
	s := do(t, threeNodes(t), PutVIP{VIP: VIP{Address: addr("2001:db8::100")}})
	s = do(t, s, joining(Node{Name: "w1", Role: RoleWitness, Address: "192.0.2.9:7400", GossipPort: 7401, Key: nodeKey("w1")})...)
	s = do(t, s, PutBGP{BGP: BGP{Nodes: []BGPNode{{Node: "lb2", AS: 65002}}}}) // nobody listens
	for _, r := range []struct {
		name   string
		change func(*BGPPeer)
		kind   error
		words  string
	}{
		{"no address", func(p *BGPPeer) { p.Address = netip.Addr{} }, ErrInvalid, "address is missing"},
		{"unspecified", func(p *BGPPeer) { p.Address = addr("0.0.0.0") }, ErrInvalid, "unspecified"},
		{"multicast", func(p *BGPPeer) { p.Address = addr("ff02::5") }, ErrInvalid, "multicast"},
		{"link-local", func(p *BGPPeer) { p.Address = addr("fe80::1") }, ErrInvalid, "means something on one link only"},
		{"zone", func(p *BGPPeer) { p.Address = addr("2001:db8::1%eth0") }, ErrInvalid, "zone"},
		{"a vip", func(p *BGPPeer) { p.Address = addr("10.0.0.100") }, ErrInUse, "is a VIP of this cluster: give the address of the router"},
		{"a node", func(p *BGPPeer) { p.Address = addr("192.0.2.2") }, ErrInUse, "is the address of node lb2"},
		{"unknown node", func(p *BGPPeer) { p.Node = "lb9" }, ErrInvalid, `node lb9 is not a member: see "pontoon node list"`},
		{"witness", func(p *BGPPeer) { p.Node = "w1" }, ErrInvalid, "is a witness"},
		{"no as", func(p *BGPPeer) { p.AS = 0 }, ErrInvalid, "as is missing"},
		{"as trans", func(p *BGPPeer) { p.AS = 23456 }, ErrInvalid, "as 23456 is reserved"},
		{"last as", func(p *BGPPeer) { p.AS = 4294967295 }, ErrInvalid, "as 4294967295 is reserved"},
		{"local as", func(p *BGPPeer) { p.LocalAS = 23456 }, ErrInvalid, "local_as 23456 is reserved"},
		{"long password", func(p *BGPPeer) { p.Password = strings.Repeat("x", 81) }, ErrInvalid, "password has 81 characters: at most 80"},
		{"odd password", func(p *BGPPeer) { p.Password = "a\tb" }, ErrInvalid, "password must be printable ASCII"},
		{"no password to keep", func(p *BGPPeer) { p.Password = KeepPassword }, ErrInvalid, "there is none"},
		{"multihop within an AS", func(p *BGPPeer) { p.Multihop, p.AS = 2, 64512 }, ErrInvalid, "64512 is that of node lb1"},
		{"multihop within the AS of one", func(p *BGPPeer) { p.Multihop, p.AS = 2, 65002 }, ErrInvalid, "65002 is that of node lb2"},
		{"multihop within a local AS", func(p *BGPPeer) { p.Multihop, p.LocalAS = 2, p.AS }, ErrInvalid, "multihop 2 is for peers of another AS"},
		{"multihop with ttl security", func(p *BGPPeer) { p.Multihop, p.TTLSecurity = 2, true }, ErrInvalid, "ttl_security is for peers on a link"},
		{"multihop with bfd", func(p *BGPPeer) { p.Multihop, p.BFD = 2, true }, ErrInvalid, "bfd watches peers on a link"},
		{"bfd interval alone", func(p *BGPPeer) { p.BFDInterval = MinBFDInterval }, ErrInvalid, "bfd_interval 10ms goes with bfd only"},
		{"bfd multiplier alone", func(p *BGPPeer) { p.BFDMultiplier = 3 }, ErrInvalid, "bfd_multiplier 3 goes with bfd only"},
		{"bfd too fast", func(p *BGPPeer) { p.BFD, p.BFDInterval = true, MinBFDInterval-1 }, ErrInvalid, "bfd_interval"},
		{"bfd too slow", func(p *BGPPeer) { p.BFD, p.BFDInterval = true, MaxBFDInterval+1 }, ErrInvalid, "bfd_interval"},
		{"bfd without patience", func(p *BGPPeer) { p.BFD, p.BFDMultiplier = true, 1 }, ErrInvalid, "bfd_multiplier 1 must be 2 to 255"},
		{"passive and nobody listens", func(p *BGPPeer) { p.Passive = true }, ErrInvalid, "the nodes listen nowhere"},
		{"hold short", func(p *BGPPeer) { p.Hold = Duration(2 * time.Second) }, ErrInvalid, "hold 2s must be 3s to"},
		{"hold negative", func(p *BGPPeer) { p.Hold = -Duration(time.Second) }, ErrInvalid, "hold -1s"},
		{"hold long", func(p *BGPPeer) { p.Hold = MaxHold + Duration(time.Second) }, ErrInvalid, "hold"},
		{"hold in parts", func(p *BGPPeer) { p.Hold = Duration(3500 * time.Millisecond) }, ErrInvalid, "hold 3.5s must be whole seconds"},
		{"keepalive long", func(p *BGPPeer) { p.Keepalive = Duration(4 * time.Second) }, ErrInvalid, "keepalive 4s must be whole seconds, from 1s to a third of hold, which is 9s"},
		{"keepalive short", func(p *BGPPeer) { p.Keepalive = 1 }, ErrInvalid, "keepalive 1ns"},
		{"source of the other family", func(p *BGPPeer) { p.Source, p.Node = addr("2001:db8::1"), "lb1" }, ErrInvalid, "source 2001:db8::1 is IPv6 and the peer's address is IPv4"},
		{"source of all nodes", func(p *BGPPeer) { p.Source = addr("192.0.2.1") }, ErrInvalid, "is an address of one node: name that node"},
		{"source is a vip", func(p *BGPPeer) { p.Source, p.Node = addr("10.0.0.100"), "lb1" }, ErrInUse, "is a VIP of this cluster, which moves"},
		{"source is the peer", func(p *BGPPeer) { p.Source, p.Node = p.Address, "lb1" }, ErrInvalid, "is the peer's own address"},
		{"source unspecified", func(p *BGPPeer) { p.Source, p.Node = addr("0.0.0.0"), "lb1" }, ErrInvalid, "source 0.0.0.0"},
		{"family", func(p *BGPPeer) { p.Family = "x" }, ErrInvalid, "family x must be ipv4 or ipv6 or both"},
		{"max prefixes", func(p *BGPPeer) { p.MaxPrefixes = maxPrefixesBound + 1 }, ErrInvalid, "max_prefixes"},
	} {
		t.Run(r.name, func(t *testing.T) {
			p := BGPPeer{Address: addr("192.0.2.254"), AS: 65001}
			if err := s.Check(PutBGPPeer{Peer: p}); err != nil {
				t.Fatal(err)
			}
			r.change(&p)
			refused(t, s, PutBGPPeer{Peer: p}, r.kind, r.words)
		})
	}
	refused(t, s, PutBGPPeer{Peer: BGPPeer{Address: addr("fe80::1"), Password: "ä", Family: "x", Hold: 1}}, ErrInvalid, "address", "as", "password", "family", "hold")
	refused(t, s, DeleteBGPPeer{Address: addr("192.0.2.254"), Node: "lb1"}, ErrNotFound, `"192.0.2.254 on lb1" does not exist`, "bgp peer list")
}

func TestNoRefusalSaysAPassword(t *testing.T) {
	s := threeNodes(t)
	for _, secret := range []string{"hush\x01hush", strings.Repeat("hush", 30)} {
		if err := s.Check(PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), Password: secret}}); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("error %v", err)
		}
	}
	if p := (BGPPeer{Password: "hush"}).Shown(); p.Password != KeepPassword || (BGPPeer{}).Shown().Password != "" {
		t.Errorf("shown %+v", p)
	}
}

func TestKeepPasswordKeepsIt(t *testing.T) {
	p := BGPPeer{Address: addr("192.0.2.254"), AS: 65001, Password: "secret"}
	s := do(t, threeNodes(t), PutBGPPeer{Peer: p})
	shown := s.BGPPeers()[0].Shown()
	shown.AS = 65002
	s = do(t, s, PutBGPPeer{Peer: shown})
	if got := s.BGPPeers()[0]; got.Password != "secret" || got.AS != 65002 {
		t.Errorf("%+v", got)
	}
	p.Password = ""
	if got := do(t, s, PutBGPPeer{Peer: p}).BGPPeers()[0]; got.Password != "" {
		t.Errorf("%+v", got)
	}
}

// What is refused for good reasons elsewhere has to go where those are not given.
func TestBGPSettingsThatFit(t *testing.T) {
	local := lbNode("local", 1)
	local.Address, local.Key = "127.0.0.1:7400", nodeKey("local")
	witness := Node{Name: "w1", Role: RoleWitness, Address: "192.0.2.9:7400", GossipPort: 7401, Key: nodeKey("w1")}
	s := do(t, threeNodes(t), append(joining(local), joining(witness)...)...)
	s = do(t, s, PutBGP{BGP: BGP{Port: 179, Nodes: []BGPNode{{Node: "lb1", AS: 65001}, {Node: "lb2"}}}})
	if nodes := s.BGP().Nodes; len(nodes) != 1 {
		t.Errorf("nodes %+v: lb2 has nothing of its own", nodes)
	}
	if _, id := s.BGPOf("local"); id.IsLoopback() {
		t.Errorf("router id %s, which every machine has", id)
	}
	for name, c := range map[string]Command{
		"a router on the node":             PutBGPPeer{Peer: BGPPeer{Address: addr("127.0.0.1"), AS: 65002, Node: "local", Source: addr("127.0.0.2")}},
		"a source all nodes have":          PutBGPPeer{Peer: BGPPeer{Address: addr("127.0.0.3"), AS: 65002, Source: addr("127.0.0.2")}},
		"the router id a witness has not":  PutBGP{BGP: BGP{Nodes: []BGPNode{{Node: "lb1", RouterID: addr("192.0.2.9")}}}},
		"the node's own derived router id": PutBGP{BGP: BGP{Nodes: []BGPNode{{Node: "lb1", RouterID: addr("192.0.2.1")}}}},
		"iBGP":                             PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 65001, Node: "lb1"}},
		"the longest password":             PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 1, Password: strings.Repeat("~", 80)}},
		"multihop of all but the one of that AS, which has its own": Batch{Commands: []Command{
			PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 65001, Node: "lb1"}},
			PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 65001, Multihop: 255}},
		}},
	} {
		if err := s.Check(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestThereMayNotBeTooManyPeers(t *testing.T) {
	var cmds []Command
	for i := range MaxBGPPeers {
		cmds = append(cmds, PutBGPPeer{Peer: BGPPeer{Address: netip.AddrFrom4([4]byte{10, 200, 0, byte(i)}), AS: 1}})
	}
	s := do(t, threeNodes(t), Batch{Commands: cmds})
	refused(t, s, PutBGPPeer{Peer: BGPPeer{Address: addr("10.200.1.1"), AS: 1}}, ErrInUse, "would be peer 257: there may be 256")
	do(t, s, cmds[0])
}

func TestBGPRefusals(t *testing.T) {
	s := do(t, threeNodes(t),
		PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.253"), AS: 65001, Passive: true}},
		PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 65001, Multihop: 2}})
	s = do(t, s, joining(Node{Name: "w1", Role: RoleWitness, Address: "192.0.2.9:7400", GossipPort: 7401, Key: nodeKey("w1")})...)
	for _, r := range []struct {
		name   string
		change func(*BGP)
		kind   error
		words  string
	}{
		{"as trans", func(b *BGP) { b.AS = 23456 }, ErrInvalid, "as 23456 is reserved"},
		{"restart too long", func(b *BGP) { b.RestartTime = MaxRestartTime + Duration(time.Second) }, ErrInvalid, "restart_time"},
		{"restart in parts", func(b *BGP) { b.RestartTime++ }, ErrInvalid, "restart_time 2m0.000000001s must be whole seconds"},
		{"max import", func(b *BGP) { b.MaxImport = MaxImportBound + 1 }, ErrInvalid, "max_import 100001 must be 1 to 100000"},
		{"passive peer", func(b *BGP) { b.Port = 0 }, ErrInUse, "peer 192.0.2.253 is passive"},
		{"multihop peer", func(b *BGP) { b.AS = 65001 }, ErrInUse, "as of node lb1 would be that of peer 192.0.2.254"},
		{"unknown node", func(b *BGP) { b.Nodes = []BGPNode{{Node: "x", AS: 1}} }, ErrInvalid, "nodes.x names no member"},
		{"witness", func(b *BGP) { b.Nodes = []BGPNode{{Node: "w1", AS: 1}} }, ErrInvalid, "nodes.w1 names a witness"},
		{"twice", func(b *BGP) { b.Nodes = []BGPNode{{Node: "lb1", AS: 1}, {Node: "lb1", AS: 2}} }, ErrInvalid, "nodes.lb1 is there twice"},
		{"as of a node", func(b *BGP) { b.Nodes = []BGPNode{{Node: "lb1", AS: 23456}} }, ErrInvalid, "nodes.lb1.as 23456"},
		{"router id of 6", func(b *BGP) { b.Nodes = []BGPNode{{Node: "lb1", RouterID: addr("2001:db8::1")}} }, ErrInvalid, "router_id 2001:db8::1 must be an IPv4 address"},
		{"router id 0", func(b *BGP) { b.Nodes = []BGPNode{{Node: "lb1", RouterID: addr("0.0.0.0")}} }, ErrInvalid, "router_id 0.0.0.0"},
		{"router id of another", func(b *BGP) { b.Nodes = []BGPNode{{Node: "lb1", RouterID: addr("192.0.2.2")}} }, ErrInvalid, "is the router id of node lb2"},
		{"no prefix", func(b *BGP) { b.Import = []ImportRule{{}} }, ErrInvalid, "import has a rule without a prefix"},
		{"host bits", func(b *BGP) { b.Import = []ImportRule{{Prefix: prefix("10.0.0.1/8")}} }, ErrInvalid, "10.0.0.0/8 is meant"},
		{"too short", func(b *BGP) { b.Import = []ImportRule{{Prefix: prefix("10.0.0.0/8"), MinLen: 7}} }, ErrInvalid, "lets lengths 7 to 32 in: they must be between 8 and 32"},
		{"too long", func(b *BGP) { b.Import = []ImportRule{{Prefix: prefix("10.0.0.0/8"), MaxLen: 33}} }, ErrInvalid, "lengths 8 to 33"},
		{"turned round", func(b *BGP) { b.Import = []ImportRule{{Prefix: prefix("10.0.0.0/8"), MinLen: 24, MaxLen: 16}} }, ErrInvalid, "the shorter one first"},
		{"same rule", func(b *BGP) {
			b.Import = []ImportRule{{Prefix: prefix("10.0.0.0/8")}, {Prefix: prefix("10.0.0.0/8"), MinLen: 8, MaxLen: 8}}
		}, ErrInvalid, "import.10.0.0.0/8 is there twice"},
		{"too many", func(b *BGP) { b.Import = make([]ImportRule, MaxImportRules+1) }, ErrInvalid, "at most 64"},
	} {
		t.Run(r.name, func(t *testing.T) {
			b := BGP{Port: 179, RestartTime: DefaultRestartTime}
			if err := s.Check(PutBGP{BGP: b}); err != nil {
				t.Fatal(err)
			}
			r.change(&b)
			refused(t, s, PutBGP{BGP: b}, r.kind, r.words)
		})
	}
}

func TestImportRulesGetExplicitLengths(t *testing.T) {
	s := do(t, threeNodes(t), PutBGP{BGP: BGP{Import: []ImportRule{
		{Prefix: prefix("::/0"), MinLen: 1}, {Prefix: prefix("10.0.0.0/8"), MaxLen: 24}, {Prefix: prefix("10.0.0.0/8")}, {Prefix: prefix("0.0.0.0/0")},
	}}})
	want := []ImportRule{
		{prefix("0.0.0.0/0"), 0, 0}, {prefix("10.0.0.0/8"), 8, 8}, {prefix("10.0.0.0/8"), 8, 24}, {prefix("::/0"), 1, 128},
	}
	if diff := cmp.Diff(want, s.BGP().Import, sameValues()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(s.BGP(), do(t, s, PutBGP{BGP: s.BGP()}).BGP(), sameValues()); diff != "" {
		t.Errorf("putting what is there changed it: %s", diff)
	}
}

func TestRouterIDs(t *testing.T) {
	s := do(t, threeNodes(t), joining(Node{Name: "six", Role: RoleLB, Address: "[2001:db8::6]:7400", GossipPort: 7401, Key: nodeKey("six")})...)
	s = do(t, s, PutBGP{BGP: BGP{Nodes: []BGPNode{{Node: "lb2", AS: 65002}, {Node: "lb1", RouterID: addr("192.0.2.77")}}}})
	for node, want := range map[NodeID]struct {
		as uint32
		id string
	}{
		"lb1": {64512, "192.0.2.77"},
		"lb2": {65002, "192.0.2.2"},
		"lb3": {64512, "192.0.2.3"},
		"six": {64512, "77.48.7.171"}, // the hash is part of what two versions have to agree on
	} {
		if as, id := s.BGPOf(node); as != want.as || id.String() != want.id {
			t.Errorf("%s: AS %d, router id %s, want %+v", node, as, id, want)
		}
	}
}

func TestAnEntryForTheNodeBeatsOneForAll(t *testing.T) {
	s := do(t, threeNodes(t),
		PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 1, Node: "lb2"}},
		PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 2}},
		PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.253"), AS: 3, Node: "lb2"}})
	s = do(t, s, joining(Node{Name: "w1", Role: RoleWitness, Address: "192.0.2.9:7400", GossipPort: 7401, Key: nodeKey("w1")})...)
	for node, want := range map[NodeID][]uint32{"lb1": {2}, "lb2": {3, 1}, "w1": nil, "x": nil} {
		var got []uint32
		for _, p := range s.BGPPeersOf(node) {
			got = append(got, p.AS)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", node, diff)
		}
	}
}

// A node that joins may have the AS of a peer that others reach over hops.
func TestMultihopIsWithoutEffectWithinAnAS(t *testing.T) {
	s := do(t, threeNodes(t), PutBGP{BGP: BGP{Nodes: []BGPNode{{Node: "lb1", AS: 65001}, {Node: "lb2", AS: 65002}, {Node: "lb3", AS: 65003}}}},
		PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: DefaultAS, Multihop: 3}})
	s = do(t, s, joining(lbNode("lb4", 4))...)
	for node, want := range map[NodeID]uint8{"lb1": 3, "lb4": 0} {
		if got := s.BGPPeersOf(node)[0].Multihop; got != want {
			t.Errorf("%s: multihop %d, want %d", node, got, want)
		}
	}
	if s.BGPPeers()[0].Multihop != 3 {
		t.Error("the setting is gone")
	}
}

func TestARemovedNodeTakesItsBGPSettingsAlong(t *testing.T) {
	s := do(t, threeNodes(t),
		PutBGP{BGP: BGP{Port: DefaultBGPPort, Nodes: []BGPNode{{Node: "lb2", AS: 65002}}}},
		PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 1, Node: "lb2"}},
		PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 2}})
	before := s
	s = do(t, s, RemoveNode{Node: "lb2"})
	if len(s.BGP().Nodes) != 0 || s.bgp != nil || len(s.BGPPeers()) != 1 || len(before.BGP().Nodes) != 1 {
		t.Errorf("%+v, peers %+v", s.BGP(), s.BGPPeers())
	}
	want := []SessionChange{{Peer: addr("192.0.2.254"), Node: "lb2", Verb: SessionRemoved}}
	if diff := cmp.Diff(want, SessionChanges(before, s), sameValues()); diff != "" {
		t.Error(diff)
	}
}

func TestSessionChangesSayWhatIsResetAndWhy(t *testing.T) {
	at := addr("192.0.2.254")
	peer := BGPPeer{Address: at, AS: 65001}
	s := do(t, threeNodes(t), PutBGPPeer{Peer: peer})
	everywhere := func(v SessionVerb, why string) (out []SessionChange) {
		for _, n := range []NodeID{"lb1", "lb2", "lb3"} {
			out = append(out, SessionChange{Peer: at, Node: n, Verb: v, Why: why})
		}
		return out
	}
	quietly := func(why string) []SessionChange {
		out := everywhere(SessionReset, why)
		for i := range out {
			out[i].RoutesKept = true
		}
		return out
	}
	put := func(change func(*BGPPeer)) Command {
		p := peer
		change(&p)
		return PutBGPPeer{Peer: p}
	}
	bgp := func(change func(*BGP)) Command {
		b := defaultBGP()
		change(&b)
		return PutBGP{BGP: b}
	}
	for name, r := range map[string]struct {
		c    Command
		want []SessionChange
	}{
		"vip":              {PutVIP{VIP: VIP{Address: addr("10.0.0.9"), Announce: AnnounceBGP}}, nil},
		"move":             {MoveInstance{Name: DefaultInstance, To: "lb2"}, nil},
		"policy":           {PutInstance{Name: DefaultInstance, AnnouncePolicy: PolicyMasterOnly}, nil},
		"the same":         {put(func(*BGPPeer) {}), nil},
		"bfd and limit":    {put(func(p *BGPPeer) { p.BFD, p.MaxPrefixes = true, 1 }), nil},
		"import":           {bgp(func(b *BGP) { b.Import, b.MaxImport = []ImportRule{{Prefix: prefix("::/0")}}, 1 }), nil},
		"hold":             {put(func(p *BGPPeer) { p.Hold = Duration(30 * time.Second) }), quietly("hold time 9s -> 30s, keepalive 3s -> 10s")},
		"as":               {put(func(p *BGPPeer) { p.AS = 1 }), everywhere(SessionReset, "AS 65001 -> 1")},
		"local as":         {put(func(p *BGPPeer) { p.LocalAS = 1 }), everywhere(SessionReset, "own AS 64512 -> 1")},
		"local as as is":   {put(func(p *BGPPeer) { p.LocalAS = 64512 }), nil},
		"password":         {put(func(p *BGPPeer) { p.Password = "x" }), quietly("another password")},
		"port":             {put(func(p *BGPPeer) { p.Port = 1 }), quietly("port 179 -> 1")},
		"multihop":         {put(func(p *BGPPeer) { p.Multihop = 2 }), quietly("multihop 0 -> 2")},
		"ttl":              {put(func(p *BGPPeer) { p.TTLSecurity = true }), quietly("TTL security off -> on")},
		"passive":          {put(func(p *BGPPeer) { p.Passive = true }), quietly("passive off -> on")},
		"family":           {put(func(p *BGPPeer) { p.Family = FamilyIPv6 }), everywhere(SessionReset, "family both -> ipv6")},
		"graceful restart": {put(func(p *BGPPeer) { p.NoGracefulRestart = true }), everywhere(SessionReset, "graceful restart 2m -> off")},
		"restart time":     {bgp(func(b *BGP) { b.RestartTime = Duration(time.Minute) }), quietly("graceful restart 2m -> 1m")},
		"listen port":      {bgp(func(b *BGP) { b.Port = 0 }), nil},
		"own as":           {bgp(func(b *BGP) { b.Nodes = []BGPNode{{Node: "lb2", AS: 5}} }), everywhere(SessionReset, "own AS 64512 -> 5")[1:2]},
		"router id":        {bgp(func(b *BGP) { b.Nodes = []BGPNode{{Node: "lb1", RouterID: addr("1.1.1.1")}} }), everywhere(SessionReset, "router id 192.0.2.1 -> 1.1.1.1")[:1]},
		"one node's": {
			PutBGPPeer{Peer: BGPPeer{Address: at, AS: 65001, Node: "lb3", Source: addr("192.0.2.3")}},
			everywhere(SessionReset, "source any -> 192.0.2.3")[2:],
		},
		"own AS behind a local one": {
			Batch{Commands: []Command{put(func(p *BGPPeer) { p.LocalAS = 64512 }), bgp(func(b *BGP) { b.AS = 7 })}},
			everywhere(SessionReset, "the node's AS 64512 -> 7"),
		},
		"removed": {DeleteBGPPeer{Address: at}, everywhere(SessionRemoved, "")},
		"another": {PutBGPPeer{Peer: BGPPeer{Address: addr("2001:db8::f"), AS: 1, Node: "lb1"}}, []SessionChange{{Peer: addr("2001:db8::f"), Node: "lb1", Verb: SessionAdded}}},
	} {
		got := SessionChanges(s, do(t, s, r.c))
		if diff := cmp.Diff(append([]SessionChange{}, r.want...), got, sameValues()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestTakesNewFlows(t *testing.T) {
	s := do(t, threeNodes(t), PutVIP{VIP: VIP{Address: addr("10.0.0.101")}}, PutVIP{VIP: VIP{Address: addr("10.0.0.102"), Kind: VIPGateway}},
		PutVIP{VIP: VIP{Address: addr("10.0.0.103"), Kind: VIPSNAT}}, PutVIP{VIP: VIP{Address: addr("10.0.0.104")}},
		PutInstance{Name: DefaultInstance, NextHops: []netip.Addr{addr("10.0.0.104")}})
	web := func(change func([]Endpoint)) *State {
		svc := webService()
		change(svc.Endpoints)
		return do(t, s, PutService{Service: svc})
	}
	down := web(func(e []Endpoint) { e[0].Admin, e[1].Weight = AdminDrain, 0 })
	second := do(t, down, PutService{Service: Service{Name: "b", VIP: addr("10.0.0.100"), Port: 81, Endpoints: []Endpoint{endpoint("10.1.0.3:80", 1)}}})
	for name, r := range map[string]struct {
		s    *State
		vip  string
		want bool
	}{
		"two endpoints":         {s, "10.0.0.100", true},
		"as IPv4 in IPv6":       {s, "::ffff:10.0.0.100", true},
		"one is left":           {web(func(e []Endpoint) { e[0].Admin = AdminDown }), "10.0.0.100", true},
		"none is left":          {down, "10.0.0.100", false},
		"of the second service": {second, "10.0.0.100", true},
		"no service":            {s, "10.0.0.101", false},
		"gateway":               {s, "10.0.0.102", true},
		"snat":                  {s, "10.0.0.103", true},
		"next hop":              {s, "10.0.0.104", true},
		"no vip":                {s, "10.0.0.200", false},
	} {
		if got := r.s.TakesNewFlows(addr(r.vip)); got != r.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
