package plan

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"pontoon/fsm"
)

// build applies commands one after the other from the first index on.
func build(t *testing.T, cmds ...fsm.Command) *fsm.State {
	t.Helper()
	s := fsm.New()
	for i, c := range cmds {
		next, err := s.Apply(uint64(i+1), c)
		if err != nil {
			t.Fatalf("command %d (%T): %v", i, c, err)
		}
		s = next
	}
	return s
}

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
func prefix(s string) netip.Prefix     { return netip.MustParsePrefix(s) }

// twoLeg is a node with a client side and an endpoint side.
func twoLeg(name fsm.NodeID, last string) Self {
	return Self{Node: name, Links: []Link{
		{Name: "eth1", Prefixes: []netip.Prefix{prefix("192.168.80." + last + "/24")}},
		{Name: "eth2", Prefixes: []netip.Prefix{prefix("10.2.0." + last + "/24")}},
	}}
}

// cluster is one of one ready node lb1, slot 0, without VIPs.
func cluster(extra ...fsm.Command) []fsm.Command {
	return append([]fsm.Command{
		fsm.InitCluster{
			Cluster: fsm.Cluster{ID: "0123456789abcdef", CA: []byte{1}, GossipKey: [][]byte{make([]byte, 32)}, Seed: 7},
			Node:    fsm.Node{Name: "lb1", Role: fsm.RoleLB, Address: "192.168.80.11:7400", GossipPort: 7401, Voter: true, Alive: true, Key: make([]byte, fsm.KeySize)},
		},
		fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true},
	}, extra...)
}

// base is the same with both kinds of VIP.
func base(extra ...fsm.Command) []fsm.Command {
	return append(cluster(
		fsm.PutVIP{VIP: fsm.VIP{Address: addr("192.168.80.200")}},
		fsm.PutVIP{VIP: fsm.VIP{Address: addr("10.2.0.1"), Kind: fsm.VIPGateway}},
	), extra...)
}

func service(mode fsm.Mode, endpoints ...fsm.Endpoint) fsm.Command {
	return fsm.PutService{Service: fsm.Service{
		Name: "web", VIP: addr("192.168.80.200"), Port: 80, Protocol: fsm.TCP, Mode: mode, Algorithm: fsm.RoundRobin, Endpoints: endpoints,
	}}
}

func up(a string, w uint16) fsm.Endpoint {
	return fsm.Endpoint{Address: addrPort(a), Weight: w, Admin: fsm.AdminUp}
}

func TestMasterHoldsAndAnnouncesBothSides(t *testing.T) {
	s := build(t, base()...)
	p := Compile(s, twoLeg("lb1", "11"))
	in, _ := s.Instance("default")
	want := []Address{{addr("10.2.0.1"), "eth2", in.Epoch, true}, {addr("192.168.80.200"), "eth1", in.Epoch, true}}
	if d := cmp.Diff(want, p.Addresses, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Errorf("addresses: %s", d)
	}
	for _, a := range p.Adverts {
		if a.Epoch != in.Epoch || in.Epoch == 0 {
			t.Errorf("advert %+v does not carry the epoch %d", a, in.Epoch)
		}
	}
	if len(p.Adverts) != 2 || len(p.Problems) != 0 {
		t.Errorf("adverts %v, problems %v", p.Adverts, p.Problems)
	}
}

func TestBackupForwardsButHoldsNothing(t *testing.T) {
	s := build(t, base(service(fsm.ModeFullNAT, up("10.2.0.21:8080", 1)))...)
	p := Compile(s, twoLeg("lb2", "12"))
	if len(p.Addresses) != 0 || len(p.Adverts) != 0 || len(p.Dataplane.Services) != 0 {
		t.Errorf("a node that is no member got %+v", p)
	}
	if len(p.Managed) != 2 {
		t.Errorf("it must still know all VIPs, to drop strays: %v", p.Managed)
	}
}

func TestVIPWithoutAPlaceIsAProblemInWords(t *testing.T) {
	s := build(t, base(fsm.PutVIP{VIP: fsm.VIP{Address: addr("172.16.0.1")}},
		fsm.PutVIP{VIP: fsm.VIP{Address: addr("172.16.0.2"), Interface: "eth9"}})...)
	p := Compile(s, twoLeg("lb1", "11"))
	if len(p.Problems) != 2 || len(p.Addresses) != 2 {
		t.Errorf("problems %q, addresses %v", p.Problems, p.Addresses)
	}
}

func TestVIPIsBoundToTheLeaseUnlessItIsToBeHeld(t *testing.T) {
	s := build(t, base(fsm.PutVIP{VIP: fsm.VIP{Address: addr("192.168.80.201"), OnQuorumLoss: fsm.QuorumHold}})...)
	for _, a := range Compile(s, twoLeg("lb1", "11")).Addresses {
		if want := a.Addr != addr("192.168.80.201"); a.Bound != want {
			t.Errorf("%s is bound: %t", a.Addr, a.Bound)
		}
	}
}

func TestNamedInterfaceWins(t *testing.T) {
	s := build(t, base(fsm.PutVIP{VIP: fsm.VIP{Address: addr("192.168.80.201"), Interface: "eth2", Announce: fsm.AnnounceNone}})...)
	p := Compile(s, twoLeg("lb1", "11"))
	found := false
	for _, a := range p.Addresses {
		found = found || a.Addr == addr("192.168.80.201") && a.Link == "eth2"
	}
	if !found {
		t.Errorf("addresses %v", p.Addresses)
	}
	for _, a := range p.Adverts {
		if a.Addr == addr("192.168.80.201") {
			t.Error("announced although it asked for none")
		}
	}
}
