package fsm

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDefaultsOfVIP(t *testing.T) {
	s := do(t, New(), initCluster(), PutVIP{VIP: VIP{Address: addr("::ffff:10.0.0.9")}})
	want := VIP{Address: addr("10.0.0.9"), Instance: DefaultInstance, Kind: VIPService, Announce: AnnounceL2, OnQuorumLoss: QuorumRelease}
	if got, ok := s.VIP(addr("10.0.0.9")); !ok || got != want {
		t.Errorf("vip %+v", got)
	}
}

func TestVIPRefusals(t *testing.T) {
	s := threeNodes(t)
	for _, r := range []struct {
		vip   VIP
		kind  error
		words string
	}{
		{VIP{}, ErrInvalid, "missing"},
		{VIP{Address: addr("fe80::1")}, ErrInvalid, "link-local"},
		{VIP{Address: addr("2001:db8::1%eth0")}, ErrInvalid, "zone"},
		{VIP{Address: addr("ff02::5")}, ErrInvalid, "multicast"},
		{VIP{Address: addr("::1")}, ErrInvalid, "loopback"},
		{VIP{Address: addr("::")}, ErrInvalid, "unspecified"},
		{VIP{Address: addr("::ffff:127.0.0.1")}, ErrInvalid, "loopback"},
		{VIP{Address: addr("224.0.0.5")}, ErrInvalid, "multicast"},
		{VIP{Address: addr("127.0.0.1")}, ErrInvalid, "loopback"},
		{VIP{Address: addr("0.0.0.0")}, ErrInvalid, "unspecified"},
		{VIP{Address: addr("255.255.255.255")}, ErrInvalid, "broadcast"},
		{VIP{Address: addr("10.0.0.9"), Instance: "nix"}, ErrInvalid, "instance nix does not exist"},
		{VIP{Address: addr("10.0.0.9"), Kind: "x"}, ErrInvalid, "kind x must be service or gateway or snat"},
		{VIP{Address: addr("10.0.0.9"), Announce: "x"}, ErrInvalid, "announce x must be l2 or bgp or none"},
		{VIP{Address: addr("10.0.0.9"), OnQuorumLoss: "x"}, ErrInvalid, "on_quorum_loss x must be release or hold"},
		{VIP{Address: addr("10.0.0.9"), Interface: "a/b"}, ErrInvalid, "interface a/b"},
		{VIP{Address: addr("10.0.0.9"), Interface: strings.Repeat("e", 16)}, ErrInvalid, "interface"},
		{VIP{Address: addr("192.0.2.2")}, ErrInUse, "address of node lb2"},
		{VIP{Address: addr("10.1.0.2")}, ErrInUse, "endpoint of service web"},
		{VIP{Address: addr("10.0.0.100"), Kind: VIPGateway}, ErrInUse, "services web"},
		{VIP{Address: addr("10.0.0.100"), Kind: VIPSNAT}, ErrInUse, "services web"},
	} {
		refused(t, s, PutVIP{VIP: r.vip}, r.kind, r.words)
	}
	refused(t, s, PutVIP{VIP: VIP{Instance: "nix", Kind: "x", Announce: "y"}}, ErrInvalid, "address", "instance", "kind", "announce")
}

func TestDeleteVIP(t *testing.T) {
	s := do(t, threeNodes(t), PutService{Service: Service{Name: "dns", VIP: addr("10.0.0.100"), Port: 53, Protocol: UDP}})
	refused(t, s, DeleteVIP{Address: addr("10.0.0.100")}, ErrInUse, "dns, web")
	refused(t, s, DeleteVIP{Address: addr("10.0.0.101")}, ErrNotFound, "vip list")
	s = do(t, s, DeleteService{Name: "dns"}, DeleteService{Name: "web"}, DeleteVIP{Address: addr("10.0.0.100")})
	if len(s.VIPs()) != 0 {
		t.Error("vip is still there")
	}
}

func TestInstances(t *testing.T) {
	s := threeNodes(t)
	refused(t, s, PutInstance{Name: "Blue!"}, ErrInvalid, "name")
	refused(t, s, PutInstance{Name: "blue", Priorities: map[NodeID]int{"lb1": 1001, "nix": 1}}, ErrInvalid, "priorities.lb1 1001", "priorities.nix")
	w := do(t, s, joining(Node{Name: "w1", Role: RoleWitness, Address: "192.0.2.9:7400", GossipPort: 7401, Key: nodeKey("w1")})...)
	refused(t, w, PutInstance{Name: "blue", Priorities: map[NodeID]int{"w1": 1}}, ErrInvalid, "witness")
	s = do(t, s, PutInstance{Name: "blue", Priorities: map[NodeID]int{"lb1": 0, "lb3": 10}})
	inst, _ := s.Instance("blue")
	if diff := cmp.Diff(map[NodeID]int{"lb3": 10}, inst.Priorities); diff != "" || inst.Master != "lb3" || inst.Epoch != s.Index() {
		t.Errorf("%s %+v", diff, inst)
	}
	s = do(t, s, PutVIP{VIP: VIP{Address: addr("10.0.0.7"), Instance: "blue"}})
	refused(t, s, DeleteInstance{Name: "blue"}, ErrInUse, "10.0.0.7")
	refused(t, s, DeleteInstance{Name: DefaultInstance}, ErrInvalid, "always")
	refused(t, s, DeleteInstance{Name: "nix"}, ErrNotFound)
	s = do(t, s, PutVIP{VIP: VIP{Address: addr("10.0.0.7")}}, DeleteInstance{Name: "blue"})
	if _, ok := s.Instance("blue"); ok || len(s.Instances()) != 1 {
		t.Error("blue is still there")
	}
}

func TestDefaultsOfService(t *testing.T) {
	s := do(t, threeNodes(t),
		PutService{Service: Service{Name: "a", VIP: addr("10.0.0.100"), Port: 1}},
		PutService{Service: Service{Name: "u", VIP: addr("10.0.0.100"), Port: 1, Protocol: UDP}})
	a, _ := s.Service("a")
	want := Service{
		Name: "a", ID: 2, VIP: addr("10.0.0.100"), Port: 1, Protocol: TCP, Mode: ModeFullNAT, Algorithm: RoundRobin,
		Affinity: AffinityNone, IdleTimeout: DefaultIdleTimeout, OnRemove: RemoveReset, OnFull: FullDrop, NewFlowRate: 50000,
		Replicate: ReplicateEstablished, Probe: Probe{Type: ProbeNone}, OnDown: DownKeep, AllDown: AllDownOpen, Endpoints: []Endpoint{},
	}
	if diff := cmp.Diff(want, a, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); diff != "" {
		t.Error(diff)
	}
	if u, _ := s.Service("u"); u.IdleTimeout != DefaultIdleTimeoutUDP {
		t.Errorf("udp idle timeout %s", u.IdleTimeout)
	}
	web, _ := s.Service("web")
	if e := web.Endpoints; e[0].Address != addrPort("10.1.0.1:8080") || e[0].Admin != AdminUp || e[0].Weight != 2 {
		t.Errorf("endpoints %v, want sorted and up", e)
	}
}

func TestServiceRefusals(t *testing.T) {
	s := do(t, threeNodes(t), PutVIP{VIP: VIP{Address: addr("10.0.0.1"), Kind: VIPGateway}})
	for _, r := range []struct {
		name   string
		change func(*Service)
		kind   error
		words  string
	}{
		{"name", func(c *Service) { c.Name = "" }, ErrInvalid, `name ""`},
		{"no vip", func(c *Service) { c.VIP = netip.Addr{} }, ErrInvalid, "vip is missing"},
		{"unknown vip", func(c *Service) { c.VIP = addr("10.0.0.3") }, ErrInvalid, "pontoon vip create 10.0.0.3"},
		{"gateway vip", func(c *Service) { c.VIP = addr("10.0.0.1") }, ErrInvalid, "kind gateway"},
		{"port", func(c *Service) { c.Port = 0 }, ErrInvalid, "port 0 must be 1 to 65535"},
		{"protocol", func(c *Service) { c.Protocol = "icmp" }, ErrInvalid, "protocol icmp must be tcp or udp or sctp"},
		{"mode", func(c *Service) { c.Mode = "x" }, ErrInvalid, "mode x must be dnat or onearm or fullnat or dsr"},
		{"algorithm", func(c *Service) { c.Algorithm = "wrr" }, ErrInvalid, "algorithm wrr must be rr or maglev or lc"},
		{"idle short", func(c *Service) { c.IdleTimeout = MinIdleTimeout - 1 }, ErrInvalid, "idle_timeout"},
		{"idle long", func(c *Service) { c.IdleTimeout = MaxIdleTimeout + 1 }, ErrInvalid, "idle_timeout"},
		{"idle negative", func(c *Service) { c.IdleTimeout = -1 }, ErrInvalid, "idle_timeout"},
		{"frontend taken", func(*Service) {}, ErrInUse, "port 80 with tcp on 10.0.0.100 is in use by service web"},
		{"twice", func(c *Service) { c.Endpoints[0] = c.Endpoints[1] }, ErrInvalid, "10.1.0.1:8080 is there twice"},
		{"weight", func(c *Service) { c.Endpoints[0].Weight = 101 }, ErrInvalid, "endpoints[10.1.0.2:8080].weight 101 must be 0 to 100"},
		{"admin", func(c *Service) { c.Endpoints[0].Admin = "off" }, ErrInvalid, "admin off must be up or drain or down"},
		{"endpoint port", func(c *Service) { c.Endpoints[0].Address = addrPort("10.1.0.2:0") }, ErrInvalid, ".port 0"},
		{"endpoint zero", func(c *Service) { c.Endpoints[0] = Endpoint{} }, ErrInvalid, "without an address"},
		{"endpoint is vip", func(c *Service) { c.Endpoints[0].Address = addrPort("10.0.0.1:80") }, ErrInvalid, "is a VIP"},
		{"too many", func(c *Service) { c.Endpoints = manyEndpoints(MaxEndpoints + 1) }, ErrInvalid, "at most 256"},
	} {
		t.Run(r.name, func(t *testing.T) {
			svc := webService()
			svc.Name = "web2"
			if r.kind == ErrInvalid {
				svc.Port = 81
			}
			r.change(&svc)
			refused(t, s, PutService{Service: svc}, r.kind, r.words)
		})
	}
	bad := Service{Name: "x y", Port: 0, Protocol: "a", Mode: "b", Algorithm: "c", IdleTimeout: 1, Endpoints: []Endpoint{{}}}
	var v *ValidationError
	if err := s.Check(PutService{Service: bad}); !errors.As(err, &v) || len(v.Problems) != 8 {
		t.Errorf("problems %v, want 8 of them", v)
	}
	do(t, s, PutService{Service: func() Service { c := webService(); c.Endpoints = manyEndpoints(MaxEndpoints); return c }()})
}

func manyEndpoints(n int) []Endpoint {
	out := make([]Endpoint, n)
	for i := range out {
		out[i] = Endpoint{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 80), Weight: 1}
	}
	return out
}

func TestServiceIDsAreKeptAndNeverReused(t *testing.T) {
	s := threeNodes(t)
	refused(t, s, PutService{Service: webService(), Create: true}, ErrExists, "web exists already", "service update")
	moved := webService()
	moved.ID, moved.Port = 77, 8080
	s = do(t, s, PutService{Service: moved})
	if svc, _ := s.Service("web"); svc.ID != 1 || svc.Port != 8080 {
		t.Errorf("replaced service %+v", svc)
	}
	// The old frontend is free again, the new one is not.
	other := webService()
	other.Name = "other"
	s = do(t, s, PutService{Service: other, Create: true})
	other.Name, other.Port = "third", 8080
	refused(t, s, PutService{Service: other}, ErrInUse, "web")
	s = do(t, s, DeleteService{Name: "web"}, PutService{Service: moved, Create: true})
	if svc, _ := s.Service("web"); svc.ID != 3 {
		t.Errorf("id %d of a service made anew, want 3", svc.ID)
	}
	refused(t, s, DeleteService{Name: "nix"}, ErrNotFound, "service list")
}

func TestSetEndpointAdmin(t *testing.T) {
	s := threeNodes(t)
	at := addrPort("10.1.0.1:8080")
	refused(t, s, SetEndpointAdmin{Service: "nix", Endpoint: at, Admin: AdminDrain}, ErrNotFound)
	refused(t, s, SetEndpointAdmin{Service: "web", Endpoint: addrPort("10.1.0.9:1"), Admin: AdminDrain}, ErrNotFound, "10.1.0.9:1")
	refused(t, s, SetEndpointAdmin{Service: "web", Endpoint: at, Admin: "x"}, ErrInvalid, "admin x")
	next := do(t, s, SetEndpointAdmin{Service: "web", Endpoint: at, Admin: AdminDrain})
	old, _ := s.Service("web")
	now, _ := next.Service("web")
	if now.Endpoints[0].Admin != AdminDrain || now.Endpoints[1].Admin != AdminUp || old.Endpoints[0].Admin != AdminUp {
		t.Errorf("before %v, after %v", old.Endpoints, now.Endpoints)
	}
}

func TestBatchIsAllOrNothing(t *testing.T) {
	s := threeNodes(t)
	ok := []Command{
		PutInstance{Name: "blue"},
		PutVIP{VIP: VIP{Address: addr("10.0.0.7"), Instance: "blue"}},
		PutService{Service: Service{Name: "b", VIP: addr("10.0.0.7"), Port: 1}},
	}
	next := do(t, s, Batch{Commands: ok})
	if svc, found := next.Service("b"); !found || svc.ID != 2 || master(next, "blue") == "" {
		t.Errorf("service %+v, instance without master", svc)
	}
	bad := append(append([]Command{}, ok...), DeleteService{Name: "nix"}, nil, DeleteVIP{Address: addr("10.0.0.7")})
	refused(t, s, Batch{Commands: bad}, ErrNotFound, "command 4 (delete_service): service nix", "command 6 (delete_vip)")
	refused(t, s, Batch{Commands: bad}, ErrInUse)
	refused(t, s, Batch{Commands: []Command{Batch{}}}, ErrInvalid, "inside a batch")
}

func TestBatchElectsOnce(t *testing.T) {
	s := threeNodes(t)
	before, _ := s.Instance(DefaultInstance)
	away := MoveInstance{Name: DefaultInstance, To: "lb2"}
	back := MoveInstance{Name: DefaultInstance, To: before.Master}
	after, _ := do(t, s, Batch{Commands: []Command{away, back}}).Instance(DefaultInstance)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Error(diff)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "a-b.c_d": true, "1": true, strings.Repeat("a", 63): true,
		"": false, "A": false, "-a": false, "a-": false, ".a": false, "a b": false, "ä": false, strings.Repeat("a", 64): false, "a\n": false,
	} {
		if got := validName(name, false); got != want {
			t.Errorf("validName(%q) = %v", name, got)
		}
	}
	if !validName("LB-1", true) {
		t.Error("nodes may have upper case names")
	}
}

func TestErrorsStayOneLineForHostileInput(t *testing.T) {
	s := threeNodes(t)
	long := "x\n\x1b[31m" + strings.Repeat("y", 1000)
	refused(t, s, DeleteService{Name: long}, ErrNotFound, `x\n`)
	if err := s.Check(DeleteService{Name: long}); len(err.Error()) > 300 {
		t.Errorf("error has %d bytes", len(err.Error()))
	}
	if got := few(strings.Split(strings.Repeat("a ", 50), " ")); len(got) > 40 {
		t.Errorf("few gives %s", fmt.Sprint(got))
	}
}
