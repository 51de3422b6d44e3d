package plan

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"pontoon/fsm"
)

const (
	client4  = "203.0.113.10" // VIPs on nobody's link
	client6  = "2001:db8:cafe::10"
	floating = "192.168.80.100" // a next hop on the link to the router
)

// threeReady brings lb2 and lb3 into the cluster; lb1, ready before them, is master.
func threeReady(extra ...fsm.Command) []fsm.Command {
	now := time.Unix(1e9, 0)
	cmds := cluster()
	for i, name := range []fsm.NodeID{"lb2", "lb3"} {
		token := fmt.Sprintf("t%d", i)
		cmds = append(cmds,
			fsm.CreateToken{Token: fsm.Token{ID: token, Hash: make([]byte, 32), Role: fsm.RoleLB, Expires: now.Add(time.Hour)}, Now: now},
			fsm.JoinNode{TokenID: token, SecretHash: make([]byte, 32), Now: now, Node: fsm.Node{
				Name: name, Role: fsm.RoleLB, Address: fmt.Sprintf("192.168.80.1%d:7400", i+2), GossipPort: 7401, Key: make([]byte, fsm.KeySize),
			}},
			fsm.NodeVerdict{Node: name, Alive: true}, ready(name))
	}
	return append(cmds, extra...)
}

func ready(name fsm.NodeID) fsm.Command {
	return fsm.NodeReport{Node: name, Ready: true, LinksUp: true, InSync: true}
}

// byBGP makes a VIP that BGP brings here, with a service that has an endpoint.
func byBGP(a string, change ...func(*fsm.VIP)) []fsm.Command {
	v := fsm.VIP{Address: addr(a), Announce: fsm.AnnounceBGP}
	for _, c := range change {
		c(&v)
	}
	out := []fsm.Command{fsm.PutVIP{VIP: v}}
	if v.Kind == "" {
		out = append(out, served(a, up("10.2.0.21:8080", 1)))
	}
	return out
}

func served(vip string, endpoints ...fsm.Endpoint) fsm.Command {
	return fsm.PutService{Service: fsm.Service{
		Name: "s-" + fmt.Sprintf("%x", addr(vip).AsSlice()), VIP: addr(vip), Port: 80, Protocol: fsm.TCP, Mode: fsm.ModeFullNAT, Algorithm: fsm.Maglev, Endpoints: endpoints,
	}}
}

func all(groups ...[]fsm.Command) []fsm.Command { return slices.Concat(groups...) }

func routesOf(s *fsm.State, node fsm.NodeID, parting ...string) Plan {
	self := twoLeg(node, "11")
	self.Parting = map[string]bool{}
	for _, p := range parting {
		self.Parting[p] = true
	}
	return Compile(s, self)
}

// route is the one to a VIP, and whether there is one.
func (p Plan) route(a string) (Route, bool) {
	i := slices.IndexFunc(p.Routes, func(r Route) bool { return r.Prefix.Addr() == addr(a) })
	if i < 0 {
		return Route{}, false
	}
	return p.Routes[i], true
}

func order(s *fsm.State) []fsm.NodeID {
	in, _ := s.Instance(fsm.DefaultInstance)
	return in.Succession
}

func TestEveryNodeOfTheSuccessionAnnouncesByItsRank(t *testing.T) {
	settings := fsm.PutInstance{Name: fsm.DefaultInstance, ASPrepend: true, Communities: []fsm.Community{"65000:100", "65000:1:2"}}
	s := build(t, all(threeReady(settings), byBGP(client4), byBGP(client6))...)
	in, _ := s.Instance(fsm.DefaultInstance)
	if len(in.Succession) != 3 {
		t.Fatalf("succession %v", in.Succession)
	}
	for rank, want := range []Route{{MED: 10, LocalPref: 200, Epoch: in.Epoch}, {MED: 20, LocalPref: 190, Prepend: 1}, {MED: 40, LocalPref: 180, Prepend: 2}} {
		want.Communities, want.LargeCommunities, want.Bound = []uint32{65000<<16 | 100}, [][3]uint32{{65000, 1, 2}}, true
		p := routesOf(s, in.Succession[rank])
		for _, vip := range []string{client4, client6} {
			want.Prefix = netip.PrefixFrom(addr(vip), addr(vip).BitLen())
			got, _ := p.route(vip)
			if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
				t.Errorf("rank %d: %s", rank, d)
			}
		}
		held := Address{Addr: addr(client4), Link: Loopback, Epoch: in.Epoch, Bound: true}
		if !slices.Contains(p.Addresses, held) || len(p.Adverts) > 0 || len(p.Problems) > 0 {
			t.Errorf("rank %d: addresses %v, adverts %v, problems %q", rank, p.Addresses, p.Adverts, p.Problems)
		}
	}
}

// A backup may show a worse place than it has; the master never does.
func TestAWorseRankIsShownWhileItIsAskedFor(t *testing.T) {
	s := build(t, all(threeReady(), byBGP(client4))...)
	for rank, node := range order(s) {
		for shown, want := range []uint32{10 << rank, 10 << max(rank, 1), 10 << 2} {
			if rank == 0 {
				want = 10
			}
			self := twoLeg(node, "11")
			self.Rank = map[string]int{"default": shown}
			if r, _ := Compile(s, self).route(client4); r.MED != want {
				t.Errorf("rank %d that shows %d: MED %d, want %d", rank, shown, r.MED, want)
			}
		}
	}
}

func TestAMoveSwapsAttributesAndNothingElse(t *testing.T) {
	before := build(t, all(threeReady(), byBGP(client4))...)
	to := order(before)[1]
	after, err := before.Apply(before.Index()+1, fsm.MoveInstance{Name: fsm.DefaultInstance, To: to})
	if err != nil {
		t.Fatal(err)
	}
	for rank, node := range order(after) {
		was, had := routesOf(before, node).route(client4)
		is, has := routesOf(after, node).route(client4)
		if !had || !has || is.MED != 10<<rank || node == to && was.MED <= is.MED {
			t.Errorf("%s: from %+v to %+v", node, was, is)
		}
	}
}

func TestWhoAnnouncesWhat(t *testing.T) {
	const none = uint32(0)
	drained := fsm.PutService{Service: fsm.Service{
		Name: "s-" + fmt.Sprintf("%x", addr(client4).AsSlice()), VIP: addr(client4), Port: 80, Protocol: fsm.TCP, Mode: fsm.ModeFullNAT, Algorithm: fsm.Maglev,
		Endpoints: []fsm.Endpoint{{Address: addrPort("10.2.0.21:8080"), Weight: 1, Admin: fsm.AdminDrain}},
	}}
	keep := func(v *fsm.VIP) { v.OnNoEndpoint = fsm.NoEndpointKeep }
	for name, tc := range map[string]struct {
		cmds         []fsm.Command
		lb1, lb2     uint32   // MED
		parting      []string // of lb1
		held, absent bool     // by lb1: the address; a route for want of endpoints
	}{
		"ranked":                           {byBGP(client4), 10, 20, nil, true, false},
		"the master alone":                 {all(byBGP(client4), []fsm.Command{fsm.PutInstance{Name: "default", AnnouncePolicy: fsm.PolicyMasterOnly}}), 10, none, nil, true, false},
		"no service":                       {byBGP(client4)[:1], none, none, nil, true, true},
		"only drained endpoints":           {append(byBGP(client4), drained), none, none, nil, true, true},
		"only drained, but to be kept":     {append(byBGP(client4, keep), drained), 10, 20, nil, true, false},
		"no service, but to be kept":       {byBGP(client4, keep)[:1], 10, 20, nil, true, false},
		"a gateway leads to no endpoint":   {byBGP("10.2.0.1", func(v *fsm.VIP) { v.Kind = fsm.VIPGateway }), 10, 20, nil, true, false},
		"a snat address neither":           {byBGP("10.2.0.1", func(v *fsm.VIP) { v.Kind = fsm.VIPSNAT }), 10, 20, nil, true, false},
		"one that is announced otherwise":  {[]fsm.Command{vip("192.168.80.200", fsm.VIPService)}, none, none, nil, false, false},
		"not ready":                        {append(byBGP(client4), fsm.NodeReport{Node: "lb1", LinksUp: true, InSync: true}), none, 9, nil, false, false},
		"a link down":                      {append(byBGP(client4), fsm.NodeReport{Node: "lb1", Ready: true, InSync: true}), none, 9, []string{"default"}, false, false},
		"not in sync":                      {append(byBGP(client4), fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true}), none, 9, []string{"default"}, false, false},
		"declared dead":                    {append(byBGP(client4), fsm.NodeVerdict{Node: "lb1"}), none, 9, []string{"default"}, false, false},
		"draining":                         {append(byBGP(client4), fsm.DrainNode{Node: "lb1", Draining: true}), none, 9, nil, false, false},
		"draining, with a link down":       {append(byBGP(client4), fsm.DrainNode{Node: "lb1", Draining: true}, fsm.NodeReport{Node: "lb1", Ready: true, InSync: true}), none, 9, []string{"default"}, false, false},
		"draining, and parting":            {append(byBGP(client4), fsm.DrainNode{Node: "lb1", Draining: true}), math.MaxUint32, 9, []string{"default"}, true, false},
		"parting from another instance":    {append(byBGP(client4), fsm.DrainNode{Node: "lb1", Draining: true}), none, 9, []string{"other"}, false, false},
		"draining although nobody follows": {append(byBGP(client4), fsm.NodeVerdict{Node: "lb2"}, fsm.NodeVerdict{Node: "lb3"}, fsm.DrainNode{Node: "lb1", Draining: true}), math.MaxUint32, none, nil, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			prefer := fsm.PutInstance{Name: "default", Priorities: map[fsm.NodeID]int{"lb1": 3, "lb2": 2, "lb3": 1}}
			s := build(t, all(threeReady(prefer), tc.cmds)...)
			one, two := routesOf(s, "lb1", tc.parting...), routesOf(s, "lb2")
			med := func(p Plan) uint32 {
				if len(p.Routes) == 0 {
					return none
				}
				return p.Routes[0].MED
			}
			if med(one) != tc.lb1 || med(two) != tc.lb2 {
				t.Errorf("lb1 %+v, lb2 %+v", one.Routes, two.Routes)
			}
			onLo := slices.ContainsFunc(one.Addresses, func(a Address) bool { return a.Link == Loopback })
			if onLo != tc.held || len(one.Withheld) > 0 != tc.absent {
				t.Errorf("addresses %v, withheld %v", one.Addresses, one.Withheld)
			}
			for _, r := range one.Routes {
				parts := tc.lb1 == math.MaxUint32
				if parts != slices.Equal(r.Communities, []uint32{0xffff0000}) || parts != (r.LocalPref == 0) {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

// Nobody is better than another where all serve, and what goes parts as everywhere.
func TestAllAnnounceAlikeWhereThereIsNoMaster(t *testing.T) {
	active := fsm.PutInstance{Name: "active", Kind: fsm.InstanceECMP, Communities: []fsm.Community{"65000:7"}}
	in := func(v *fsm.VIP) { v.Instance = "active" }
	s := build(t, all(threeReady(active), byBGP(client4, in))...)
	for _, node := range []fsm.NodeID{"lb1", "lb2", "lb3"} {
		p := routesOf(s, node)
		r, ok := p.route(client4)
		if !ok || r.MED != 10 || r.LocalPref != 200 || r.Prepend != 0 || r.Epoch != 0 || !slices.Equal(r.Communities, []uint32{65000<<16 | 7}) {
			t.Errorf("%s: %+v, %t", node, r, ok)
		}
		if len(p.Addresses) != 1 || p.Addresses[0].Link != Loopback {
			t.Errorf("%s holds %v", node, p.Addresses)
		}
	}
	s, err := s.Apply(s.Index()+1, fsm.DrainNode{Node: "lb2", Draining: true})
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := routesOf(s, "lb2", "active").route(client4); !ok || r.LocalPref != 0 || r.Communities[0] != 0xffff0000 || len(r.Communities) != 2 {
		t.Errorf("parting: %+v, %t", r, ok)
	}
	if p := routesOf(s, "lb2"); len(p.Routes)+len(p.Addresses) > 0 {
		t.Errorf("drained: %+v", p.Routes)
	}
}

// After a move with policy master-only the old master goes on as the last choice.
func TestTheMasterBeforePartsFromItsRoutes(t *testing.T) {
	s := build(t, all(threeReady(fsm.PutInstance{Name: "default", AnnouncePolicy: fsm.PolicyMasterOnly}), byBGP(client4))...)
	from, to := order(s)[0], order(s)[1]
	s, err := s.Apply(s.Index()+1, fsm.MoveInstance{Name: "default", To: to})
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := routesOf(s, from, "default").route(client4); !ok || r.MED != math.MaxUint32 || r.LocalPref != 0 || r.Epoch != 0 {
		t.Errorf("%+v, %t", r, ok)
	}
	if _, ok := routesOf(s, from).route(client4); ok {
		t.Error("it goes on for ever")
	}
	if r, ok := routesOf(s, to).route(client4); !ok || r.MED != 10 {
		t.Errorf("%+v, %t", r, ok)
	}
	if Announcing(s, from)["default"] || !Announcing(s, to)["default"] || len(Announcing(s, "")) > 0 {
		t.Error("who is said to announce is another than who does")
	}
}

func TestFloatingNextHopIsTheSameOnAllRanks(t *testing.T) {
	hop := func(mode fsm.AnnounceMode) []fsm.Command {
		return []fsm.Command{
			fsm.PutVIP{VIP: fsm.VIP{Address: addr(floating), Announce: mode}},
			fsm.PutInstance{Name: "default", ASPrepend: true, NextHops: []netip.Addr{addr(floating)}},
		}
	}
	s := build(t, all(threeReady(), byBGP(client4), byBGP(client6), hop(fsm.AnnounceBGP))...)
	for rank, node := range order(s) {
		p := routesOf(s, node)
		four, _ := p.route(client4)
		six, _ := p.route(client6)
		own, ok := p.route(floating)
		if four.NextHop != addr(floating) || four.MED != 10 || four.LocalPref != 200 || four.Prepend != 0 {
			t.Errorf("rank %d: %+v: it would change at a failover", rank, four)
		}
		if six.NextHop.IsValid() || six.MED != 10<<rank {
			t.Errorf("rank %d: %+v: there is no next hop of its family", rank, six)
		}
		if !ok || own.NextHop.IsValid() || own.MED != 10<<rank || int(own.Prepend) != rank {
			t.Errorf("rank %d: the next hop itself: %+v", rank, own)
		}
	}
	drained, err := s.Apply(s.Index()+1, fsm.DrainNode{Node: "lb1", Draining: true})
	if err != nil {
		t.Fatal(err)
	}
	if r, _ := routesOf(drained, "lb1", "default").route(client4); r.MED != math.MaxUint32 || r.NextHop != addr(floating) {
		t.Errorf("of a node that parts: %+v", r)
	}
	// One that ARP claims is held on its link by the master, and is no route.
	s = build(t, all(threeReady(), byBGP(client4), hop(fsm.AnnounceL2))...)
	p := routesOf(s, order(s)[0])
	if _, ok := p.route(floating); ok || len(p.Adverts) != 1 || p.Adverts[0].Link != "eth1" {
		t.Errorf("routes %v, adverts %v", p.Routes, p.Adverts)
	}
}

func TestWhatIsToBeHeldWithoutQuorumIsNotBound(t *testing.T) {
	s := build(t, all(threeReady(), byBGP(client4, func(v *fsm.VIP) { v.OnQuorumLoss = fsm.QuorumHold }), byBGP(client6))...)
	p := routesOf(s, order(s)[0])
	four, _ := p.route(client4)
	six, _ := p.route(client6)
	if four.Bound || !six.Bound {
		t.Errorf("%+v, %+v", four, six)
	}
}

// At any state: nobody announces but load balancers of the succession; no two of
// them say the same of a VIP of an instance with a master; and every VIP that is
// announced is also held, on the loopback.
func TestRoutesAgreeOnEveryState(t *testing.T) {
	base := build(t, all(threeReady(), byBGP(client4), byBGP(client6))...)
	rapid.Check(t, func(t *rapid.T) {
		s := base
		nodes := []fsm.NodeID{"lb1", "lb2", "lb3"}
		for range rapid.IntRange(0, 12).Draw(t, "steps") {
			node := rapid.SampledFrom(nodes).Draw(t, "node")
			yes := func(what string) bool { return rapid.Bool().Draw(t, what) }
			c := rapid.SampledFrom([]fsm.Command{
				fsm.NodeVerdict{Node: node, Alive: yes("alive")},
				fsm.NodeReport{Node: node, Ready: yes("ready"), LinksUp: yes("links"), InSync: yes("sync")},
				fsm.DrainNode{Node: node, Draining: yes("drain")},
				fsm.MoveInstance{Name: "default", To: node},
				fsm.PutInstance{Name: "default", Kind: fsm.InstanceBackup},
				fsm.PutInstance{Name: "default", AnnouncePolicy: fsm.PolicyMasterOnly},
			}).Draw(t, "command")
			s, _ = s.Apply(s.Index()+1, c) // refusals belong to it
		}
		in, _ := s.Instance("default")
		seen := map[uint32]fsm.NodeID{}
		for _, node := range nodes {
			p := routesOf(s, node)
			if (len(p.Routes) > 0) != Announcing(s, node)["default"] {
				t.Fatalf("%s announces %v", node, p.Routes)
			}
			for _, r := range p.Routes {
				if !slices.Contains(in.Succession, node) {
					t.Fatalf("%s announces without a place in %v", node, in.Succession)
				}
				if other, twice := seen[r.MED]; twice && other != node {
					t.Fatalf("%s and %s announce the same", node, other)
				}
				seen[r.MED] = node
				if (r.Epoch != 0) != (in.Master == node) {
					t.Fatalf("%s of %s has epoch %d", r.Prefix, node, r.Epoch)
				}
				if !slices.ContainsFunc(p.Addresses, func(a Address) bool { return a.Addr == r.Prefix.Addr() && a.Link == Loopback }) {
					t.Fatalf("%s announces %s and does not hold it", node, r.Prefix)
				}
			}
			if in.Master == node && len(p.Routes) == 0 {
				t.Fatalf("the master %s announces nothing", node)
			}
		}
	})
}
