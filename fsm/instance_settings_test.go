package fsm

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func bgpVIP(at, instance string) PutVIP {
	return PutVIP{VIP: VIP{Address: addr(at), Instance: instance, Announce: AnnounceBGP}}
}

func TestDefaultsOfBGPVIP(t *testing.T) {
	s := do(t, threeNodes(t), bgpVIP("10.0.0.9", ""))
	want := VIP{Address: addr("10.0.0.9"), Instance: DefaultInstance, Kind: VIPService, Announce: AnnounceBGP, OnQuorumLoss: QuorumRelease, OnNoEndpoint: NoEndpointWithdraw}
	if got, _ := s.VIP(addr("10.0.0.9")); got != want {
		t.Errorf("%+v", got)
	}
	refused(t, s, PutVIP{VIP: VIP{Address: addr("10.0.0.9"), Announce: AnnounceBGP, OnNoEndpoint: "x"}}, ErrInvalid, "on_no_endpoint x must be withdraw or keep")
	refused(t, s, PutVIP{VIP: VIP{Address: addr("10.0.0.9"), OnNoEndpoint: NoEndpointKeep}}, ErrInvalid, "on_no_endpoint keep goes with announce bgp only")
}

func TestVIPMayNotBeAnEndOfASession(t *testing.T) {
	s := do(t, threeNodes(t), PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 1, Node: "lb1", Source: addr("192.0.2.111")}})
	refused(t, s, bgpVIP("192.0.2.254", ""), ErrInUse, "is an end of the session with BGP peer 192.0.2.254")
	refused(t, s, bgpVIP("192.0.2.111", ""), ErrInUse, "is an end of the session with BGP peer 192.0.2.254")
}

func TestInstanceSettings(t *testing.T) {
	s := do(t, threeNodes(t), PutInstance{Name: "b"}, bgpVIP("10.0.0.1", "b"), bgpVIP("2001:db8::1", "b"), PutInstance{
		Name: "b", Priorities: map[NodeID]int{"lb2": 5}, Kind: InstanceBackup, AnnouncePolicy: PolicyRanked, ASPrepend: true,
		NextHops: []netip.Addr{addr("2001:db8::1"), addr("::ffff:10.0.0.1")}, Communities: []Community{"65000:1:2", "65000:020", "65000:3"},
	})
	got, _ := s.Instance("b")
	got.Assignment = Assignment{}
	want := Instance{
		Name: "b", Priorities: map[NodeID]int{"lb2": 5}, ASPrepend: true,
		NextHops: []netip.Addr{addr("10.0.0.1"), addr("2001:db8::1")}, Communities: []Community{"65000:3", "65000:20", "65000:1:2"},
	}
	if diff := cmp.Diff(want, got, sameValues()); diff != "" {
		t.Error(diff)
	}
	// What an older program sends means what it did.
	s = do(t, s, PutInstance{Name: "b", Priorities: map[NodeID]int{"lb3": 1}})
	got, _ = s.Instance("b")
	got.Assignment = Assignment{}
	want.Priorities = map[NodeID]int{"lb3": 1}
	if diff := cmp.Diff(want, got, sameValues()); diff != "" {
		t.Errorf("priorities alone: %s", diff)
	}
	// What a reader does to his copy is his own affair.
	got.NextHops[0], got.Communities[0] = netip.Addr{}, "x"
	if again, _ := s.Instance("b"); again.NextHops[0] != want.NextHops[0] || again.Communities[0] != want.Communities[0] {
		t.Error("a reader can write to the state")
	}
	// One setting stands for all of them.
	got, _ = do(t, s, PutInstance{Name: "b", AnnouncePolicy: PolicyMasterOnly}).Instance("b")
	if !got.hasSettings() || got.AnnouncePolicy != PolicyMasterOnly || got.ASPrepend || got.NextHops != nil || got.Communities != nil {
		t.Errorf("master-only alone: %+v", got)
	}
}

func TestInstanceSettingsRefusals(t *testing.T) {
	s := do(t, threeNodes(t), PutInstance{Name: "b"}, bgpVIP("10.0.0.1", "b"), bgpVIP("10.0.0.2", "b"), bgpVIP("10.0.0.3", ""),
		PutVIP{VIP: VIP{Address: addr("10.0.0.4"), Instance: "b", Announce: AnnounceNone}})
	hops := func(at ...string) (out []netip.Addr) {
		for _, a := range at {
			out = append(out, addr(a))
		}
		return out
	}
	for name, r := range map[string]struct {
		c     PutInstance
		words string
	}{
		"kind":                  {PutInstance{Kind: "x"}, "kind x must be backup or ecmp"},
		"policy":                {PutInstance{AnnouncePolicy: "x"}, "announce_policy x must be ranked or master-only"},
		"policy of ecmp":        {PutInstance{Kind: InstanceECMP, AnnouncePolicy: PolicyMasterOnly}, "announce_policy master-only goes with kind backup only"},
		"next hop of ecmp":      {PutInstance{Kind: InstanceECMP, NextHops: hops("10.0.0.1")}, "next_hops 10.0.0.1 goes with kind backup only"},
		"prepend of ecmp":       {PutInstance{Kind: InstanceECMP, ASPrepend: true}, "as_prepend goes with kind backup only"},
		"prepend for nobody":    {PutInstance{AnnouncePolicy: PolicyMasterOnly, ASPrepend: true}, "as_prepend is about the routes of backups"},
		"next hop elsewhere":    {PutInstance{NextHops: hops("10.0.0.3")}, `next_hops 10.0.0.3 is no VIP of this instance: create it with "pontoon vip create 10.0.0.3 --instance b"`},
		"next hop is no vip":    {PutInstance{NextHops: hops("10.0.0.77")}, "is no VIP of this instance"},
		"next hop of no family": {PutInstance{NextHops: []netip.Addr{{}}}, "is no address"},
		"next hop unannounced":  {PutInstance{NextHops: hops("10.0.0.4")}, "is announced by nobody"},
		"two next hops":         {PutInstance{NextHops: hops("10.0.0.1", "10.0.0.2")}, "next_hops 10.0.0.2 is a second one of IPv4"},
		"community":             {PutInstance{Communities: []Community{"65536:1"}}, "communities 65536:1 has a part that is no number of 0 to 65535"},
		"community twice":       {PutInstance{Communities: []Community{"1:2", "1:02"}}, "communities 1:2 is there twice"},
		"graceful shutdown":     {PutInstance{Communities: []Community{"65535:0"}}, "is what a draining node adds"},
		"many communities":      {PutInstance{Communities: make([]Community, MaxCommunities+1)}, "at most 32"},
	} {
		r.c.Name = "b"
		t.Run(name, func(t *testing.T) { refused(t, s, r.c, ErrInvalid, r.words) })
	}
	refused(t, s, PutInstance{Name: "b", Kind: "x", AnnouncePolicy: "y", Communities: []Community{"z"}}, ErrInvalid, "kind", "announce_policy", "communities")
}

// An address two machines answer ARP for is no active-active, whichever comes first.
func TestECMPTakesNoVIPThatNeedsOneHolder(t *testing.T) {
	s := do(t, threeNodes(t), PutInstance{Name: "b"}, PutVIP{VIP: VIP{Address: addr("10.0.0.1"), Instance: "b"}},
		PutVIP{VIP: VIP{Address: addr("10.0.0.2"), Instance: "b", Kind: VIPGateway, Announce: AnnounceBGP}})
	refused(t, s, PutInstance{Name: "b", Kind: InstanceECMP}, ErrInUse,
		"kind ecmp would let every node answer for VIPs 10.0.0.1", "leaves no one node to hold the gateways 10.0.0.2")
	s = do(t, s, bgpVIP("10.0.0.1", "b"), DeleteVIP{Address: addr("10.0.0.2")}, PutInstance{Name: "b", Kind: InstanceECMP})
	refused(t, s, PutVIP{VIP: VIP{Address: addr("10.0.0.1"), Instance: "b"}}, ErrInvalid, "announce l2 would let every node of instance b answer for it")
	refused(t, s, PutVIP{VIP: VIP{Address: addr("10.0.0.2"), Instance: "b", Kind: VIPGateway, Announce: AnnounceNone}}, ErrInvalid, "kind gateway needs one node that holds it")
	do(t, s, bgpVIP("10.0.0.3", "b"), PutVIP{VIP: VIP{Address: addr("10.0.0.4"), Instance: "b", Kind: VIPSNAT, Announce: AnnounceNone}},
		PutInstance{Name: "b", Kind: InstanceBackup}, PutVIP{VIP: VIP{Address: addr("10.0.0.1"), Instance: "b"}})
}

func TestNextHopStaysWhatItIs(t *testing.T) {
	s := do(t, threeNodes(t), PutInstance{Name: "b"}, PutVIP{VIP: VIP{Address: addr("10.0.0.1"), Instance: "b"}},
		PutInstance{Name: "b", NextHops: []netip.Addr{addr("10.0.0.1")}})
	refused(t, s, DeleteVIP{Address: addr("10.0.0.1")}, ErrInUse, "is a next hop of instance b")
	refused(t, s, PutVIP{VIP: VIP{Address: addr("10.0.0.1")}}, ErrInUse, "instance default is not b, whose next hop this VIP is")
	refused(t, s, PutVIP{VIP: VIP{Address: addr("10.0.0.1"), Instance: "b", Announce: AnnounceNone}}, ErrInUse, "announce none would leave routers without the next hop of instance b")
	s = do(t, s, bgpVIP("10.0.0.1", "b"), PutInstance{Name: "b", Kind: InstanceBackup}, DeleteVIP{Address: addr("10.0.0.1")})
	if inst, _ := s.Instance("b"); len(inst.NextHops) != 0 {
		t.Errorf("%+v", inst)
	}
}

func TestCommunities(t *testing.T) {
	for in, want := range map[Community][]uint32{
		"65000:100": {65000, 100}, "0:0": {0, 0}, "65535:65535": {65535, 65535}, "4294967295:0:1": {4294967295, 0, 1},
	} {
		got, err := in.Parts()
		if diff := cmp.Diff(want, got); diff != "" || err != nil || in.Validate() != nil {
			t.Errorf("%s: %v %s", in, err, diff)
		}
	}
	for _, bad := range []Community{"", "1", "1:2:3:4", "65536:0", "0:65536", "4294967296:0:0", "a:b", "1:", ":1", "-1:2", "+1:2", "1: 2", "no-export"} {
		if bad.Validate() == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
