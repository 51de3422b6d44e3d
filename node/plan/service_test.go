package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"pontoon/bpf"
	"pontoon/fsm"
)

var sameAddrs = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}), cmpopts.EquateEmpty()}

// both is a node with both families on both legs.
func both() Self {
	return Self{Node: "lb1", Links: []Link{
		{Name: "eth1", Prefixes: []netip.Prefix{prefix("fe80::11/64"), prefix("192.168.80.11/24"), prefix("2001:db8:80::11/64")}},
		{Name: "eth2", Prefixes: []netip.Prefix{prefix("fe80::12/64"), prefix("10.2.0.11/24"), prefix("2001:db8:2::11/64")}},
	}}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

func vip(a string, kind fsm.VIPKind) fsm.Command {
	return fsm.PutVIP{VIP: fsm.VIP{Address: addr(a), Kind: kind}}
}

// accepted holds that the data plane takes what was planned.
func accepted(t *testing.T, p Plan) {
	t.Helper()
	if err := p.Dataplane.Validate(); err != nil {
		t.Errorf("the data plane refuses it: %v", err)
	}
}

func TestSourcesOfEachMode(t *testing.T) {
	const (
		vip4, vip6 = "192.168.80.200", "2001:db8:80::200"
		near4      = "10.2.0.21:8080"
		near6      = "[2001:db8:2::21]:8080"
		far4, far6 = "10.77.0.21:8080", "[2001:db8:77::21]:8080"
	)
	gateway4, gateway6 := vip("10.2.0.1", fsm.VIPGateway), vip("2001:db8:2::1", fsm.VIPGateway)
	pool4, pool4b, pool6 := vip("10.2.0.101", fsm.VIPSNAT), vip("10.2.0.102", fsm.VIPSNAT), vip("2001:db8:2::101", fsm.VIPSNAT)
	for _, tc := range []struct {
		name          string
		mode          fsm.Mode
		vip, endpoint string
		extra         []fsm.Command
		want          []netip.Addr
	}{
		{"fullnat uses the vip", fsm.ModeFullNAT, vip4, near4, nil, addrs(vip4)},
		{"also in IPv6", fsm.ModeFullNAT, vip6, near6, nil, addrs(vip6)},
		{"fullnat prefers the pool of the family", fsm.ModeFullNAT, vip4, near4, []fsm.Command{pool4b, pool4, pool6}, addrs("10.2.0.101", "10.2.0.102")},
		{"a pool of the other family is none", fsm.ModeFullNAT, vip4, near4, []fsm.Command{pool6}, addrs(vip4)},
		{"nat64 uses the pool of the endpoint's family", fsm.ModeFullNAT, vip6, near4, []fsm.Command{pool4, gateway4}, addrs("10.2.0.101")},
		{"nat64 else uses the gateway vip", fsm.ModeFullNAT, vip6, near4, []fsm.Command{gateway4, gateway6}, addrs("10.2.0.1")},
		{"nat46 too", fsm.ModeFullNAT, vip4, near6, []fsm.Command{gateway4, gateway6}, addrs("2001:db8:2::1")},
		{"nat64 else uses an own address", fsm.ModeFullNAT, vip6, near4, nil, addrs("10.2.0.11")},
		{"dnat keeps the client", fsm.ModeDNAT, vip4, near4, []fsm.Command{gateway4, pool4}, nil},
		{"onearm prefers the gateway vip, which moves", fsm.ModeOneArm, vip4, near4, []fsm.Command{gateway4, pool4}, addrs("10.2.0.1")},
		{"in IPv6 as well", fsm.ModeOneArm, vip6, near6, []fsm.Command{gateway4, gateway6}, addrs("2001:db8:2::1")},
		{"onearm without a gateway uses its own address", fsm.ModeOneArm, vip4, near4, nil, addrs("10.2.0.11")},
		{"never a link-local one", fsm.ModeOneArm, vip6, near6, nil, addrs("2001:db8:2::11")},
		{"a gateway on another link is not meant", fsm.ModeOneArm, vip4, near4, []fsm.Command{vip("192.168.80.1", fsm.VIPGateway)}, addrs("10.2.0.11")},
		{"behind a router, the side away from the clients", fsm.ModeOneArm, vip4, far4, []fsm.Command{gateway4}, addrs("10.2.0.11")},
		{"behind a router in IPv6", fsm.ModeOneArm, vip6, far6, nil, addrs("2001:db8:2::11")},
		{"a tunnel begins at an own address", fsm.ModeDSR, vip4, "10.77.0.21:80", []fsm.Command{gateway4}, addrs("10.2.0.11")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmds := cluster(vip(vip4, fsm.VIPService), vip(vip6, fsm.VIPService))
			s := fsm.Service{Name: "web", VIP: addr(tc.vip), Port: 80, Mode: tc.mode, Endpoints: []fsm.Endpoint{up(tc.endpoint, 1)}}
			if tc.mode == fsm.ModeDSR {
				s.Tunnel = fsm.TunnelIPIP
			}
			p := Compile(build(t, append(append(cmds, tc.extra...), fsm.PutService{Service: s})...), both())
			accepted(t, p)
			e := p.Dataplane.Services[0].Endpoints[0]
			if !slices.Equal(e.Sources, tc.want) || e.State != bpf.EndpointUp || len(p.Problems) > 0 {
				t.Errorf("endpoint %+v, want sources %v; problems %q", e, tc.want, p.Problems)
			}
		})
	}
}

func TestPoolsAndGatewaysAreThoseOfTheInstance(t *testing.T) {
	other := func(a string, kind fsm.VIPKind) fsm.Command {
		return fsm.PutVIP{VIP: fsm.VIP{Address: addr(a), Kind: kind, Instance: "blue"}}
	}
	cmds := cluster(fsm.PutInstance{Name: "blue"}, vip("192.168.80.200", fsm.VIPService),
		other("10.2.0.1", fsm.VIPGateway), other("10.2.0.101", fsm.VIPSNAT), other("192.168.80.201", fsm.VIPService))
	for i, mode := range []fsm.Mode{fsm.ModeFullNAT, fsm.ModeOneArm} {
		for j, at := range []string{"192.168.80.200", "192.168.80.201"} {
			cmds = append(cmds, fsm.PutService{Service: fsm.Service{
				Name: string(mode) + string(rune('a'+j)), VIP: addr(at), Port: uint16(80 + i), Mode: mode, Endpoints: []fsm.Endpoint{up("10.2.0.21:80", 1)},
			}})
		}
	}
	var got []netip.Addr
	for _, s := range Compile(build(t, cmds...), both()).Dataplane.Services {
		got = append(got, s.Endpoints[0].Sources...)
	}
	if want := addrs("192.168.80.200", "10.2.0.101", "10.2.0.11", "10.2.0.1"); !slices.Equal(got, want) {
		t.Errorf("sources %v, want %v", got, want)
	}
}

// An endpoint that this node cannot reach must not look deleted: its flows,
// which another node may forward, would be reset.
func TestUnreachableEndpointIsDrainedAndSaidSo(t *testing.T) {
	for name, tc := range map[string]struct {
		service fsm.Service
		links   []Link
		want    string
	}{
		"no address": {
			fsm.Service{Mode: fsm.ModeOneArm, Endpoints: []fsm.Endpoint{up("10.2.0.21:80", 1)}},
			[]Link{{Name: "eth1"}},
			"service web: endpoint 10.2.0.21:80 gets no new flows from here: no address here",
		},
		"no address of the family": {
			fsm.Service{Mode: fsm.ModeFullNAT, Endpoints: []fsm.Endpoint{up("[2001:db8:2::21]:80", 1)}},
			[]Link{{Name: "eth1", Prefixes: []netip.Prefix{prefix("192.168.80.11/24"), prefix("fe80::1/64")}}},
			"endpoint [2001:db8:2::21]:80 gets no new flows",
		},
		"no neighbour": {
			fsm.Service{Mode: fsm.ModeDSR, Endpoints: []fsm.Endpoint{up("10.77.0.21:80", 1)}},
			both().Links, "--tunnel ipip",
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.service.Name, tc.service.VIP, tc.service.Port = "web", addr("192.168.80.200"), 80
			s := build(t, cluster(fsm.PutVIP{VIP: fsm.VIP{Address: tc.service.VIP, Interface: "eth1"}}, fsm.PutService{Service: tc.service})...)
			p := Compile(s, Self{Node: "lb1", Links: tc.links})
			accepted(t, p)
			e := p.Dataplane.Services[0].Endpoints
			if len(e) != 1 || e[0].State != bpf.EndpointDrain || len(e[0].Sources) > 0 {
				t.Errorf("endpoints %+v", e)
			}
			if len(p.Problems) != 1 || !strings.Contains(p.Problems[0], tc.want) {
				t.Errorf("problems %q, want %q", p.Problems, tc.want)
			}
		})
	}
}

func TestDSRToANeighbourNeedsNoSource(t *testing.T) {
	s := fsm.Service{Name: "web", VIP: addr("192.168.80.200"), Port: 80, Mode: fsm.ModeDSR, Endpoints: []fsm.Endpoint{up("10.2.0.21:80", 1)}}
	p := Compile(build(t, cluster(vip("192.168.80.200", fsm.VIPService), fsm.PutService{Service: s})...), both())
	want := []bpf.Endpoint{{ID: 1, Addr: addrPort("10.2.0.21:80"), Weight: 1}}
	if d := cmp.Diff(want, p.Dataplane.Services[0].Endpoints, sameAddrs); d != "" || len(p.Problems) > 0 {
		t.Errorf("%s; problems %q", d, p.Problems)
	}
}

func TestEveryEndpointIsInThePlanWithItsState(t *testing.T) {
	until := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	drain := fsm.Endpoint{Address: addrPort("10.2.0.22:8080"), Weight: 1, Admin: fsm.AdminDrain, DrainUntil: until}
	down := fsm.Endpoint{Address: addrPort("10.2.0.24:8080"), Weight: 1, Admin: fsm.AdminDown}
	p := Compile(build(t, base(service(fsm.ModeFullNAT, up("10.2.0.21:8080", 3), drain, up("10.2.0.23:8080", 0), down))...), twoLeg("lb1", "11"))
	src := addrs("192.168.80.200")
	want := []bpf.Endpoint{
		{ID: 1, Addr: addrPort("10.2.0.21:8080"), Weight: 3, Sources: src},
		{ID: 2, Addr: addrPort("10.2.0.22:8080"), Weight: 1, State: bpf.EndpointDrain, DrainUntil: until, Sources: src},
		{ID: 3, Addr: addrPort("10.2.0.23:8080"), Sources: src},
		{ID: 4, Addr: addrPort("10.2.0.24:8080"), Weight: 1, State: bpf.EndpointDown, Sources: src},
	}
	if d := cmp.Diff(want, p.Dataplane.Services[0].Endpoints, sameAddrs); d != "" {
		t.Error(d)
	}
}

func TestEverySettingReachesTheDataPlane(t *testing.T) {
	full := fsm.Service{
		Name: "a", VIP: addr("2001:db8:80::200"), Port: 8000, PortEnd: 8100, Protocol: fsm.SCTP, Mode: fsm.ModeDSR, Tunnel: fsm.TunnelIPIP,
		Algorithm: fsm.LeastConnections, Affinity: fsm.AffinityClientIP, AffinityTimeout: fsm.Duration(time.Minute), IdleTimeout: fsm.Duration(time.Second),
		IdleReset: true, OnRemove: fsm.RemoveKeep, OnFull: fsm.FullReset, NewFlowRate: 7,
		Replicate: fsm.ReplicateEstablished, ReplicateMinAge: fsm.Duration(3 * time.Second),
		OnDown: fsm.DownReset, AllDown: fsm.AllDownClosed,
	}
	defaults := fsm.Service{Name: "b", VIP: addr("192.168.80.200"), Port: 53, Protocol: fsm.UDP, Replicate: fsm.ReplicateAll}
	drop := fsm.Service{Name: "c", VIP: addr("192.168.80.200"), Port: 53, OnRemove: fsm.RemoveDrop, Replicate: fsm.ReplicateNone, Algorithm: fsm.Maglev, Mode: fsm.ModeDNAT}
	s := build(t, cluster(vip("192.168.80.200", fsm.VIPService), vip("2001:db8:80::200", fsm.VIPService),
		fsm.PutService{Service: full}, fsm.PutService{Service: defaults}, fsm.PutService{Service: drop})...)
	want := []bpf.Service{
		{
			ID: 1, VIP: addrPort("[2001:db8:80::200]:8000"), PortEnd: 8100, Protocol: 132, Mode: bpf.ModeDSR, Tunnel: bpf.TunnelIPIP,
			Algorithm: bpf.AlgorithmLC, Affinity: time.Minute, IdleTimeout: time.Second, IdleReset: true,
			OnRemove: bpf.PolicyKeep, OnDead: bpf.PolicyReset, Closed: true, OnFull: bpf.PolicyReset, NewFlowRate: 7, Seed: 7 ^ 1, ReplicateMinAge: 3 * time.Second, Epoch: 2,
		},
		{
			ID: 2, VIP: addrPort("192.168.80.200:53"), Protocol: 17, Mode: bpf.ModeFullNAT, Algorithm: bpf.AlgorithmRR, IdleTimeout: 2 * time.Minute,
			OnRemove: bpf.PolicyReset, OnDead: bpf.PolicyKeep, OnFull: bpf.PolicyDrop, NewFlowRate: 50000, Seed: 7 ^ 2, Replicate: bpf.ReplicateAll, Epoch: 2,
		},
		{
			ID: 3, VIP: addrPort("192.168.80.200:53"), Protocol: 6, Mode: bpf.ModeDNAT, Algorithm: bpf.AlgorithmMaglev, IdleTimeout: time.Hour,
			OnRemove: bpf.PolicyDrop, OnDead: bpf.PolicyKeep, OnFull: bpf.PolicyDrop, NewFlowRate: 50000, Seed: 7 ^ 3, Replicate: bpf.ReplicateNone, Epoch: 2,
		},
	}
	p := Compile(s, both())
	if d := cmp.Diff(want, p.Dataplane.Services, sameAddrs); d != "" {
		t.Error(d)
	}
	accepted(t, p)
}

func TestIPv6VIPIsHeldOnTheLinkOfItsSubnet(t *testing.T) {
	s := build(t, cluster(vip("2001:db8:2::200", fsm.VIPService), vip("10.2.0.101", fsm.VIPSNAT))...)
	p := Compile(s, both())
	in, _ := s.Instance("default")
	want := []Address{{addr("10.2.0.101"), "eth2", in.Epoch, true}, {addr("2001:db8:2::200"), "eth2", in.Epoch, true}}
	if d := cmp.Diff(want, p.Addresses, sameAddrs); d != "" || len(p.Adverts) != 2 || len(p.Dataplane.VIPs) != 2 {
		t.Errorf("%s; adverts %v, data plane %v, problems %q", d, p.Adverts, p.Dataplane.VIPs, p.Problems)
	}
}

// The epoch says under which mastership this node forwards; it changes without
// the rest of the plan.
func TestServicesHaveTheEpochOfTheirInstancesMastership(t *testing.T) {
	s := build(t, cluster(vip("192.168.80.200", fsm.VIPService), fsm.PutService{Service: fsm.Service{Name: "a", VIP: addr("192.168.80.200"), Port: 80}})...)
	in, _ := s.Instance(fsm.DefaultInstance)
	self := both()
	compiled := CompileServices(s, self)
	for node, want := range map[fsm.NodeID]uint32{in.Master: uint32(in.Epoch), "another": 0} {
		self.Node = node
		if got := compiled.withParts(Parts(s, node))[0].Epoch; got != want {
			t.Errorf("on %s the epoch is %d, want %d", node, got, want)
		}
	}
	if compiled.dataplane.Services[0].Epoch != 0 {
		t.Error("what plans share was written to")
	}
}

// Routers may turn to the next node before the cluster does. So that one and the master bring each other what they
// do not know, of VIPs that routers learn, and nobody else's.
func TestStraysAreSoughtAtTheMasterAndByItAtTheNext(t *testing.T) {
	at := func(a string) fsm.Command {
		return fsm.PutService{Service: fsm.Service{Name: "s-" + strings.ReplaceAll(a, ".", "-"), VIP: addr(a), Port: 80, Endpoints: []fsm.Endpoint{up("10.2.0.2:80", 1)}}}
	}
	s := build(t, threeReady(
		fsm.PutInstance{Name: "all", Kind: fsm.InstanceECMP},
		fsm.PutVIP{VIP: fsm.VIP{Address: addr("192.168.80.200")}}, at("192.168.80.200"),
		fsm.PutVIP{VIP: fsm.VIP{Address: addr("203.0.113.1"), Announce: fsm.AnnounceBGP}}, at("203.0.113.1"),
		fsm.PutVIP{VIP: fsm.VIP{Address: addr("203.0.113.2"), Announce: fsm.AnnounceBGP, Instance: "all"}}, at("203.0.113.2"),
	)...)
	in, _ := s.Instance(fsm.DefaultInstance)
	if len(in.Succession) != 3 {
		t.Fatal(in.Succession)
	}
	slot := func(i int) uint8 {
		n, _ := s.Node(in.Succession[i])
		return 1 << n.Slot
	}
	for i, node := range in.Succession {
		want := bpf.Strays{Clients: slot(0), Answers: slot(0)}
		if i == 0 {
			want = bpf.Strays{Answers: slot(1)}
		}
		for _, svc := range Compile(s, twoLeg(node, "11")).Dataplane.Services {
			if svc.VIP.Addr() != addr("203.0.113.1") {
				want := bpf.Strays{}
				if svc.Strays != want {
					t.Errorf("%s: %s is sought at %+v", node, svc.VIP, svc.Strays)
				}
			} else if svc.Strays != want {
				t.Errorf("%s: sought at %+v, want %+v", node, svc.Strays, want)
			}
		}
	}
}

func TestServicesOfAnInstanceWithoutAMasterAreShared(t *testing.T) {
	s := build(t, base(
		fsm.PutInstance{Name: "all", Kind: fsm.InstanceECMP},
		fsm.PutVIP{VIP: fsm.VIP{Address: addr("192.168.80.201"), Instance: "all", Announce: fsm.AnnounceBGP}},
		fsm.PutService{Service: fsm.Service{Name: "shared", VIP: addr("192.168.80.201"), Port: 80, Endpoints: []fsm.Endpoint{up("10.2.0.2:80", 1)}}},
		service(fsm.ModeFullNAT, up("10.2.0.2:8080", 1)),
	)...)
	for _, node := range []fsm.NodeID{"lb1", "lb2"} {
		for _, svc := range Compile(s, twoLeg(node, "11")).Dataplane.Services {
			all := svc.VIP.Addr() == addr("192.168.80.201")
			if svc.Shared != all {
				t.Errorf("%s: shared %v", svc.VIP, svc.Shared)
			}
			if all && svc.Epoch != 0 {
				t.Errorf("%s: epoch %d, and nobody is its master", svc.VIP, svc.Epoch)
			}
		}
	}
}
