package fsm

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func ranged(t testing.TB, s string) AddressRange {
	t.Helper()
	r, err := ParseAddressRange(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// pooled is threeNodes with a pool of four addresses, 10.0.1.1 to .4 but for the
// first.
func pooled(t testing.TB) *State {
	t.Helper()
	return do(t, threeNodes(t), PutPool{Pool: Pool{Name: "web", Ranges: []AddressRange{ranged(t, "10.0.1.1-10.0.1.4")}}},
		ReserveAddress{Address: addr("10.0.1.1")})
}

// auto is a service on an address of a pool.
func auto(name, pool string, change ...func(*PutService)) PutService {
	c := PutService{Service: Service{Name: name, Port: 80}, Create: true, Auto: &AutoVIP{Pool: pool}}
	for _, f := range change {
		f(&c)
	}
	return c
}

func sharing(name string, port uint16) func(*PutService) {
	return func(c *PutService) { c.Auto.Share, c.Service.Port = name, port }
}

func vipOf(t testing.TB, s *State, service string) string {
	t.Helper()
	svc, ok := s.Service(service)
	v, onVIP := s.VIP(svc.VIP)
	if !ok || !onVIP {
		t.Fatalf("service %s is on no vip: %+v", service, svc)
	}
	return v.Address.String()
}

func TestAddressRangeText(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.1-10.0.0.9": "10.0.0.1-10.0.0.9", "10.0.0.1": "10.0.0.1", "10.0.0.1-10.0.0.1": "10.0.0.1",
		"2001:db8::1-2001:db8::ff": "2001:db8::1-2001:db8::ff", " ::ffff:10.0.0.1 - 10.0.0.2": "10.0.0.1-10.0.0.2",
	} {
		r, err := ParseAddressRange(text)
		if err != nil || r.String() != want {
			t.Errorf("%q: %s (%v), want %s", text, r, err, want)
		}
		b, err := json.Marshal(r)
		var back AddressRange
		if err != nil || json.Unmarshal(b, &back) != nil || back != r {
			t.Errorf("%s: %s (%v) reads back as %s", r, b, err, back)
		}
	}
	for _, text := range []string{"", "-", "10.0.0.1-", "10.0.0.9-10.0.0.1", "10.0.0.1-::1", "10.0.0.0/24", "fe80::1%a-fe80::2%a", "10.0.0.1-2-3"} {
		if r, err := ParseAddressRange(text); err == nil {
			t.Errorf("%q reads as %s", text, r)
		}
	}
}

func TestPoolHandsOutWhatMayBeAnAddressOfAHost(t *testing.T) {
	for _, r := range []struct {
		cidr string
		all  bool
		want string
		size uint64
	}{
		{"10.0.0.0/24", false, "10.0.0.1-10.0.0.254", 254},
		{"10.0.0.0/24", true, "10.0.0.0-10.0.0.255", 256},
		{"10.0.0.0/30", false, "10.0.0.1-10.0.0.2", 2},
		{"10.0.0.0/31", false, "10.0.0.0-10.0.0.1", 2},
		{"10.0.0.7/32", false, "10.0.0.7", 1},
		{"2001:db8::/120", false, "2001:db8::1-2001:db8::ff", 255},
		{"2001:db8::/127", false, "2001:db8::-2001:db8::1", 2},
		{"2001:db8::9/128", false, "2001:db8::9", 1},
		{"2001:db8::/64", false, "2001:db8::1-2001:db8::ffff:ffff:ffff:ffff", maxRangeSize},
		{"2001:db8::/48", true, "2001:db8::-2001:db8:0:ffff:ffff:ffff:ffff:ffff", maxRangeSize},
	} {
		p := Pool{CIDRs: []netip.Prefix{prefix(r.cidr)}, AllAddresses: r.all}
		if got := p.handsOut(); len(got) != 1 || got[0].String() != r.want || p.size() != r.size {
			t.Errorf("%s (all %v) hands out %v, %d of them, want %s, %d", r.cidr, r.all, got, p.size(), r.want, r.size)
		}
	}
}

func TestServiceGetsTheLowestFreeAddress(t *testing.T) {
	s := do(t, pooled(t), auto("a", "web"), auto("b", "web"))
	if a, b := vipOf(t, s, "a"), vipOf(t, s, "b"); a != "10.0.1.2" || b != "10.0.1.3" {
		t.Fatalf("a on %s, b on %s", a, b)
	}
	v, _ := s.VIP(addr("10.0.1.2"))
	want := VIP{
		Address: addr("10.0.1.2"), Instance: DefaultInstance, Kind: VIPService, Announce: AnnounceL2,
		OnQuorumLoss: QuorumRelease, Pool: "web",
	}
	if diff := cmp.Diff(want, v, sameValues()); diff != "" {
		t.Error(diff)
	}
	// Put again, as by hand or by a whole configuration, it stays where it is.
	s = do(t, s, auto("a", "", func(c *PutService) { c.Create = false; c.Service.Port = 81 }))
	if a := vipOf(t, s, "a"); a != "10.0.1.2" {
		t.Errorf("a moved to %s", a)
	}
	// The last service that leaves an address gives it back.
	s = do(t, s, DeleteService{Name: "a"})
	if _, still := s.VIP(addr("10.0.1.2")); still {
		t.Error("the address of a service that is gone was not given back")
	}
	s = do(t, s, PutVIP{VIP: VIP{Address: addr("10.0.1.2")}}, auto("c", "web"))
	if c := vipOf(t, s, "c"); c != "10.0.1.4" {
		t.Errorf("c on %s, want the one behind what is used by hand", c)
	}
	refused(t, s, auto("d", "web"), ErrInUse, "service d: vip auto:web finds no free address: pool web hands out 4 and all")
	s = do(t, s, DeleteVIP{Address: addr("10.0.1.2")}, auto("d", "web"))
	if d := vipOf(t, s, "d"); d != "10.0.1.2" {
		t.Errorf("d on %s", d)
	}
}

func TestAnAddressIsSharedOnlyWhenAsked(t *testing.T) {
	s := do(t, pooled(t), auto("http", "web", sharing("shop", 80)), auto("https", "web", sharing("shop", 443)), auto("other", "web", sharing("mail", 80)))
	if a, b, c := vipOf(t, s, "http"), vipOf(t, s, "https"), vipOf(t, s, "other"); a != b || a == c {
		t.Errorf("http on %s, https on %s, other on %s", a, b, c)
	}
	refused(t, s, auto("again", "web", sharing("shop", 443)), ErrInUse, "is in use by service https")
	s = do(t, s, PutService{Service: Service{Name: "asked", VIP: addr("10.0.1.2"), Port: 25}}, DeleteService{Name: "http"}, DeleteService{Name: "https"})
	if at := vipOf(t, s, "asked"); at != "10.0.1.2" {
		t.Fatalf("asked on %s", at)
	}
	s = do(t, s, DeleteService{Name: "asked"})
	if _, still := s.VIP(addr("10.0.1.2")); still {
		t.Error("the address was not given back with the last of its services")
	}
	// A service that goes to another address gives its own back, too.
	s = do(t, s, PutVIP{VIP: VIP{Address: addr("10.0.0.77")}}, PutService{Service: Service{Name: "other", VIP: addr("10.0.0.77"), Port: 80}})
	if len(s.PoolUse("web").Allocations) != 0 {
		t.Errorf("handed out still: %+v", s.PoolUse("web"))
	}
}

// An address is its service's for its life, also when others are to come onto it later.
func TestAServiceKeepsItsAddressWhenItBeginsToShareIt(t *testing.T) {
	update := func(c *PutService) { c.Create = false }
	s := do(t, pooled(t), auto("a", "web"), auto("b", "web"))
	s = do(t, s, auto("a", "web", sharing("shop", 80), update))
	if v, _ := s.VIP(addr("10.0.1.2")); vipOf(t, s, "a") != "10.0.1.2" || v.Share != "shop" {
		t.Errorf("a on %s, %+v", vipOf(t, s, "a"), v)
	}
	s = do(t, s, auto("c", "web", sharing("shop", 443)))
	if at := vipOf(t, s, "c"); at != "10.0.1.2" {
		t.Errorf("c on %s, want that of the share", at)
	}
	// The name is another address's: nobody is moved by the way.
	refused(t, s, auto("b", "web", sharing("shop", 81), update), ErrInUse,
		"service b: share shop is address 10.0.1.2 of pool web, with the services a, c, and this service has 10.0.1.3", `--vip 10.0.1.2`)
	s = do(t, s, PutService{Service: Service{Name: "b", VIP: addr("10.0.1.2"), Port: 81}})
	if n := len(s.PoolUse("web").Allocations); n != 1 {
		t.Errorf("%d addresses handed out, want the one all are on", n)
	}
	// Without a share it stays in the one it is in; with another it leaves for that one.
	s = do(t, s, auto("b", "", func(c *PutService) { c.Create, c.Service.Port = false, 82 }))
	if at := vipOf(t, s, "b"); at != "10.0.1.2" {
		t.Errorf("b on %s", at)
	}
	s = do(t, s, auto("b", "web", sharing("mail", 82), update))
	if v, _ := s.VIP(addr("10.0.1.3")); vipOf(t, s, "b") != "10.0.1.3" || v.Share != "mail" {
		t.Errorf("b on %s, %+v", vipOf(t, s, "b"), v)
	}
}

// Most pools are made where services are already: those keep what they have, and nobody else gets it.
func TestAPoolIsMadeAroundServicesThatAreThere(t *testing.T) {
	at := func(name, vip string) PutService {
		return PutService{Service: Service{Name: name, VIP: addr(vip), Port: 80}}
	}
	s := do(t, threeNodes(t), PutVIP{VIP: VIP{Address: addr("10.0.7.1"), OnQuorumLoss: QuorumHold}}, PutVIP{VIP: VIP{Address: addr("10.0.7.3"), Kind: VIPGateway}},
		at("old", "10.0.7.1"), PutPool{Pool: Pool{Name: "p", Ranges: []AddressRange{ranged(t, "10.0.7.1-10.0.7.4")}}}, auto("new", "p"))
	if got := vipOf(t, s, "new"); got != "10.0.7.2" {
		t.Errorf("new on %s", got)
	}
	use := s.PoolUse("p")
	want := []Occupied{{addr("10.0.7.1"), "a virtual address made by hand", []string{"old"}}, {addr("10.0.7.3"), "a virtual address made by hand", []string{}}}
	if diff := cmp.Diff(want, use.Others, sameValues()); diff != "" || use.Used != 3 || use.Free != 1 || len(use.Allocations) != 1 {
		t.Errorf("%s %+v", diff, use)
	}
	// The pool owns nothing it did not hand out: it can be made smaller, and goes without it.
	gone := do(t, s, DeleteService{Name: "new"}, PutPool{Pool: Pool{Name: "p", Ranges: []AddressRange{ranged(t, "10.0.7.2-10.0.7.4")}}}, DeletePool{Name: "p"})
	if vipOf(t, gone, "old") != "10.0.7.1" {
		t.Error("a service lost its address with the pool")
	}
	// It is not given back with its service, which somebody made it for by hand, but when it is deleted.
	free := do(t, s, DeleteService{Name: "old"})
	if use := free.PoolUse("p"); use.Used != 3 {
		t.Errorf("%+v", use)
	}
	free = do(t, free, DeleteVIP{Address: addr("10.0.7.1")}, auto("next", "p"))
	if got := vipOf(t, free, "next"); got != "10.0.7.1" {
		t.Errorf("next on %s", got)
	}
	// A service hands its address over to the pool when it asks that for one.
	s = do(t, s, auto("old", "p", func(c *PutService) { c.Create = false }))
	v, _ := s.VIP(addr("10.0.7.1"))
	if vipOf(t, s, "old") != "10.0.7.1" || v.Pool != "p" || v.OnQuorumLoss != QuorumHold || len(s.PoolUse("p").Allocations) != 2 {
		t.Errorf("old on %s, %+v", vipOf(t, s, "old"), v)
	}
	s = do(t, s, DeleteService{Name: "old"})
	if _, still := s.VIP(addr("10.0.7.1")); still {
		t.Error("an address that was handed over was not given back")
	}
}

func TestPoolsAreCountedTogetherAsOneByOne(t *testing.T) {
	s := do(t, pooled(t), PutPool{Pool: Pool{Name: "a", CIDRs: []netip.Prefix{prefix("10.0.2.0/30"), prefix("10.0.3.0/30")}, Reservations: []Reservation{{Address: addr("10.0.3.2")}}}},
		PutPool{Pool: Pool{Name: "six", CIDRs: []netip.Prefix{prefix("2001:db8::/64")}}}, auto("x", "a"), auto("y", "web"),
		PutVIP{VIP: VIP{Address: addr("10.0.1.1").Next().Next().Next()}})
	all := s.PoolCounts()
	for i, p := range s.Pools() {
		if use := s.PoolUse(p.Name).PoolCounts; use != all[i] || use.Used != uint64(len(s.PoolUse(p.Name).Allocations)+len(s.PoolUse(p.Name).Others)) {
			t.Errorf("pool %s: %+v, counted with the others %+v", p.Name, use, all[i])
		}
	}
	if all[0] != (PoolCounts{4, 1, 1, 2}) || all[2] != (PoolCounts{4, 2, 1, 1}) {
		t.Errorf("%+v", all)
	}
}

func TestAPoolGrowsByWhatItHadNot(t *testing.T) {
	p := func(parts ...string) (p Pool) {
		for _, s := range parts {
			p.Ranges = append(p.Ranges, ranged(t, s))
		}
		return p
	}
	old := p("10.0.0.1-10.0.0.9", "10.0.0.20-10.0.0.29")
	for name, r := range map[string]struct {
		p    Pool
		want bool
	}{
		"same": {old, false}, "smaller": {p("10.0.0.2-10.0.0.3"), false}, "longer": {p("10.0.0.1-10.0.0.10"), true},
		"one more": {p("10.0.0.1-10.0.0.9", "10.0.0.11"), true}, "across": {p("10.0.0.5-10.0.0.25"), true}, "nothing": {Pool{}, false},
	} {
		if r.p.Grows(old) != r.want {
			t.Errorf("%s: %v", name, !r.want)
		}
	}
}

func TestReservations(t *testing.T) {
	s := do(t, pooled(t), ReserveAddress{Address: addr("10.0.1.3"), Service: "late"}, auto("a", "web"), auto("b", "web"))
	if a, b := vipOf(t, s, "a"), vipOf(t, s, "b"); a != "10.0.1.2" || b != "10.0.1.4" {
		t.Errorf("a on %s, b on %s", a, b)
	}
	refused(t, s, auto("c", "web"), ErrInUse, "no free address")
	refused(t, s, PutVIP{VIP: VIP{Address: addr("10.0.1.1")}}, ErrInUse, "is reserved in pool web", "pontoon pool unreserve 10.0.1.1")
	refused(t, s, PutVIP{VIP: VIP{Address: addr("10.0.1.3")}}, ErrInUse, "is reserved for service late", "--vip auto:web")
	s = do(t, s, auto("late", "web"))
	if at := vipOf(t, s, "late"); at != "10.0.1.3" {
		t.Errorf("late on %s, want what is reserved for it", at)
	}
	s = do(t, s, DeleteService{Name: "late"}, ReserveAddress{Address: addr("10.0.1.2"), Service: "a"}, DeleteService{Name: "a"})
	if use := s.PoolUse("web"); use.Size != 4 || use.Used != 1 || use.Reserved != 3 || use.Free != 0 {
		t.Errorf("%+v", use)
	}
	refused(t, s, ReserveAddress{Address: addr("10.0.9.9")}, ErrNotFound, "is none that a pool hands out")
	refused(t, s, ReserveAddress{Address: addr("10.0.1.4")}, ErrInUse, "is a VIP with the services b")
	refused(t, s, ReserveAddress{Address: addr("10.0.1.4"), Service: "x y"}, ErrInvalid, "service")
	refused(t, s, UnreserveAddress{Address: addr("10.0.1.4")}, ErrNotFound, "is not reserved")
	s = do(t, s, UnreserveAddress{Address: addr("10.0.1.1")}, auto("d", "web"))
	if at := vipOf(t, s, "d"); at != "10.0.1.1" {
		t.Errorf("d on %s", at)
	}
}

func TestAutoNeedsToKnowWhichPool(t *testing.T) {
	refused(t, threeNodes(t), auto("a", ""), ErrInvalid, "there is none", "pontoon pool create")
	s := pooled(t)
	refused(t, s, auto("a", "nix"), ErrInvalid, "vip auto:nix names no pool")
	refused(t, s, auto("a", "web", func(c *PutService) { c.Service.VIP = addr("10.0.0.100") }), ErrInvalid, "leave one out")
	one := do(t, s, auto("a", ""))
	if at := vipOf(t, one, "a"); at != "10.0.1.2" {
		t.Errorf("a on %s, want one of the only pool", at)
	}
	s = do(t, s, PutPool{Pool: Pool{Name: "six", CIDRs: []netip.Prefix{prefix("2001:db8::/64")}}})
	refused(t, s, auto("a", ""), ErrInvalid, "any of the pools six, web")
	s = do(t, s, PutPool{Pool: Pool{Name: "six", CIDRs: []netip.Prefix{prefix("2001:db8::/64")}, Default: true}}, auto("a", ""))
	if at := vipOf(t, s, "a"); at != "2001:db8::1" {
		t.Errorf("a on %s", at)
	}
	web, _ := s.Pool("web")
	web.Default = true
	s = do(t, s, PutPool{Pool: web})
	if six, _ := s.Pool("six"); six.Default {
		t.Error("two pools are the default")
	}
}

func TestAddressesOfOthersAreSteppedOver(t *testing.T) {
	s := do(t, threeNodes(t), PutPool{Pool: Pool{Name: "p", Ranges: []AddressRange{ranged(t, "10.0.1.1-10.0.1.9")}}})
	s = do(t, s, joining(Node{Name: "w", Role: RoleWitness, Address: "10.0.1.1:7400", GossipPort: 7401, Key: nodeKey("w")})...)
	s = do(t, s, PutService{Service: Service{Name: "e", VIP: addr("10.0.0.100"), Port: 1, Endpoints: []Endpoint{endpoint("10.0.1.2:1", 1)}}},
		PutBGPPeer{Peer: BGPPeer{Address: addr("10.0.1.3"), AS: 1}})
	own := auto("a", "p", func(c *PutService) { c.Service.Endpoints = []Endpoint{endpoint("10.0.1.4:1", 1)} })
	if at := vipOf(t, do(t, s, own), "a"); at != "10.0.1.5" {
		t.Errorf("a on %s", at)
	}
	if use := s.PoolUse("p"); use.Used != 3 || use.Free != 6 {
		t.Errorf("%+v", use)
	}
}

func TestPoolRefusals(t *testing.T) {
	s := do(t, pooled(t), auto("a", "web"), PutInstance{Name: "wide", Kind: InstanceECMP},
		PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 1}})
	for name, r := range map[string]struct {
		change func(*Pool)
		kind   error
		words  string
	}{
		"name":         {func(p *Pool) { p.Name = "X" }, ErrInvalid, "name X"},
		"empty":        {func(p *Pool) { p.CIDRs = nil }, ErrInvalid, "cidrs are missing"},
		"host bits":    {func(p *Pool) { p.CIDRs[0] = prefix("10.3.0.1/24") }, ErrInvalid, "give 10.3.0.0/24"},
		"no prefix":    {func(p *Pool) { p.CIDRs[0] = netip.Prefix{} }, ErrInvalid, "no prefix"},
		"no range":     {func(p *Pool) { p.Ranges = []AddressRange{{addr("10.3.1.2"), addr("10.3.1.1")}} }, ErrInvalid, "no range"},
		"half a range": {func(p *Pool) { p.Ranges = []AddressRange{{First: addr("10.3.1.2")}} }, ErrInvalid, "no range"},
		"loopback":     {func(p *Pool) { p.CIDRs[0] = prefix("127.0.0.0/24") }, ErrInvalid, "loopback"},
		"around it":    {func(p *Pool) { p.Ranges = []AddressRange{{addr("126.0.0.0"), addr("128.0.0.0")}} }, ErrInvalid, "loopback"},
		"multicast":    {func(p *Pool) { p.CIDRs[0] = prefix("ff02::/64") }, ErrInvalid, "multicast"},
		"link local":   {func(p *Pool) { p.CIDRs[0] = prefix("fe80::/64") }, ErrInvalid, "link-local"},
		"mapped":       {func(p *Pool) { p.CIDRs[0] = prefix("::ffff:10.0.0.0/120") }, ErrInvalid, "IPv4 prefix in IPv6 form"},
		"two families": {func(p *Pool) { p.CIDRs = append(p.CIDRs, prefix("2001:db8:1::/64")) }, ErrInvalid, "a pool for each family"},
		"itself":       {func(p *Pool) { p.Ranges = []AddressRange{{addr("10.3.0.5"), addr("10.3.0.5")}} }, ErrInvalid, "overlaps 10.3.0.0-10.3.0.255 in the same pool"},
		"parts":        {func(p *Pool) { p.CIDRs = make([]netip.Prefix, MaxPoolParts+1) }, ErrInvalid, "at most 64"},
		"pool":         {func(p *Pool) { p.CIDRs[0] = prefix("10.0.1.0/24") }, ErrInUse, "of pool web"},
		"node":         {func(p *Pool) { p.CIDRs[0] = prefix("192.0.2.0/25") }, ErrInUse, "192.0.2.1 is the address of node lb1"},
		"peer":         {func(p *Pool) { p.CIDRs[0] = prefix("192.0.2.128/25") }, ErrInUse, "192.0.2.254 is an end of the session with BGP peer"},
		"endpoint":     {func(p *Pool) { p.CIDRs[0] = prefix("10.1.0.0/24") }, ErrInUse, "10.1.0.1 is an endpoint of service web"},
		"instance":     {func(p *Pool) { p.Instance = "nix" }, ErrInvalid, "instance nix does not exist"},
		"announce":     {func(p *Pool) { p.Announce = "x" }, ErrInvalid, "announce x must be l2 or bgp or none"},
		"ecmp":         {func(p *Pool) { p.Instance, p.Announce = "wide", AnnounceL2 }, ErrInvalid, "instance wide"},
		"interface":    {func(p *Pool) { p.Interface = "a/b" }, ErrInvalid, "interface a/b"},
		"reservation":  {func(p *Pool) { p.Reservations = []Reservation{{Address: addr("10.3.0.255")}} }, ErrInvalid, "no address that the pool hands out"},
		"no address":   {func(p *Pool) { p.Reservations = []Reservation{{}} }, ErrInvalid, "without an address"},
		"who":          {func(p *Pool) { p.Reservations = []Reservation{{addr("10.3.0.5"), "A"}} }, ErrInvalid, "service A"},
		"twice":        {func(p *Pool) { p.Reservations = []Reservation{{addr("10.3.0.5"), ""}, {addr("10.3.0.5"), ""}} }, ErrInvalid, "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			p := Pool{Name: "new", CIDRs: []netip.Prefix{prefix("10.3.0.0/24")}}
			r.change(&p)
			refused(t, s, PutPool{Pool: p}, r.kind, r.words)
		})
	}
	if p, _ := do(t, s, PutPool{Pool: Pool{Name: "new", CIDRs: []netip.Prefix{prefix("10.3.0.0/24")}, Instance: "wide"}}).Pool("new"); p.Announce != AnnounceBGP {
		t.Errorf("announced by %s in an instance without a master", p.Announce)
	}
}

func TestAPoolInUseIsNeitherDeletedNorShrunk(t *testing.T) {
	s := do(t, pooled(t), auto("a", "web"))
	refused(t, s, DeletePool{Name: "web"}, ErrInUse, "handed out 1 addresses: 10.0.1.2")
	refused(t, s, DeletePool{Name: "nix"}, ErrNotFound, "pool list")
	refused(t, s, PutPool{Pool: Pool{Name: "web", Ranges: []AddressRange{ranged(t, "10.0.1.3-10.0.1.9")}}}, ErrInUse, "leave out 1 addresses that are handed out: 10.0.1.2")
	small := Pool{Name: "web", Ranges: []AddressRange{ranged(t, "10.0.1.2-10.0.1.9")}}
	refused(t, s, PutPool{Pool: small, KeepReservations: true}, ErrInUse, "leave out 10.0.1.1, which is reserved")
	// What came to lie in the pool since it was made is no reason against it.
	s = do(t, s, PutVIP{VIP: VIP{Address: addr("10.0.1.4")}}, PutPool{Pool: small})
	refused(t, s, DeleteInstance{Name: DefaultInstance}, ErrInvalid)
	s = do(t, s, DeleteService{Name: "a"}, DeletePool{Name: "web"})
	if _, there := s.VIP(addr("10.0.1.4")); !there || len(s.Pools()) != 0 {
		t.Error("a pool takes with it what it did not hand out, or stays")
	}
}

func TestInstanceOfAPool(t *testing.T) {
	s := do(t, threeNodes(t), PutInstance{Name: "blue"}, PutPool{Pool: Pool{Name: "p", CIDRs: []netip.Prefix{prefix("10.3.0.0/24")}, Instance: "blue"}})
	refused(t, s, DeleteInstance{Name: "blue"}, ErrInUse, "gets the addresses of pools p")
	refused(t, s, PutInstance{Name: "blue", Kind: InstanceECMP}, ErrInUse, "addresses of pools p")
	s = do(t, s, auto("a", "p"))
	if v, _ := s.VIP(addr("10.3.0.1")); v.Instance != "blue" {
		t.Errorf("%+v", v)
	}
	// A next hop stays as long as it is one.
	s = do(t, s, PutInstance{Name: "blue", NextHops: []netip.Addr{addr("10.3.0.1")}}, DeleteService{Name: "a"})
	if _, there := s.VIP(addr("10.3.0.1")); !there {
		t.Fatal("the next hop of an instance is gone")
	}
	s = do(t, s, PutInstance{Name: "blue", Kind: InstanceBackup})
	if _, there := s.VIP(addr("10.3.0.1")); there {
		t.Error("an address nobody needs was not given back")
	}
	s = do(t, s, auto("a", "p"), PutVIP{VIP: VIP{Address: addr("10.3.0.1"), Announce: AnnounceNone}})
	if v, _ := s.VIP(addr("10.3.0.1")); v.Pool != "p" || v.Announce != AnnounceNone {
		t.Errorf("an address that is changed by hand is the pool's still: %+v", v)
	}
}

func TestPoolsAreWrittenAsVersionSixOnly(t *testing.T) {
	s := do(t, pooled(t), auto("a", "web", sharing("shop", 80)))
	if b := snap(t, s); peekVersion(b) != poolVersion {
		t.Errorf("version %d", peekVersion(b))
	}
	back := restored(t, s)
	if diff := cmp.Diff(s.PoolUse("web"), back.PoolUse("web"), sameValues()); diff != "" {
		t.Error(diff)
	}
	if at := vipOf(t, do(t, back, auto("b", "")), "b"); at != "10.0.1.3" {
		t.Errorf("b on %s after a restore", at)
	}
	old := do(t, s, DeleteService{Name: "a"}, DeletePool{Name: "web"})
	if b := snap(t, old); peekVersion(b) != baseVersion {
		t.Errorf("without a pool version %d, want what all can read", peekVersion(b))
	}
	for _, b := range []string{
		`{"v":6,"index":1,"next_service":1,"next_endpoint":1,"instances":[{"name":"default","succession":[]}],"pools":[{"name":"a","instance":"x"}]}`,
		`{"v":6,"index":1,"next_service":1,"next_endpoint":1,"instances":[{"name":"default","succession":[]}],"vips":[{"address":"10.0.0.1","instance":"default","pool":"x"}]}`,
	} {
		if _, err := Restore([]byte(b)); err == nil {
			t.Errorf("%s was restored", b)
		}
	}
}

func TestChangesOfPoolsAreTold(t *testing.T) {
	s := pooled(t)
	next := do(t, s, PutPool{Pool: Pool{Name: "new", CIDRs: []netip.Prefix{prefix("10.3.0.0/24")}}}, UnreserveAddress{Address: addr("10.0.1.1")}, auto("a", "new"))
	want := []Change{{"service", "a", Created}, {"vip", "10.3.0.1", Created}, {"pool", "new", Created}, {"pool", "web", Changed}}
	if diff := cmp.Diff(want, ConfigChanges(s, next)); diff != "" {
		t.Error(diff)
	}
	if got := ConfigChanges(next, restored(t, next)); len(got) != 0 {
		t.Errorf("restored: %v", got)
	}
}

func TestManyAddresses(t *testing.T) {
	s := do(t, threeNodes(t), PutPool{Pool: Pool{Name: "p", CIDRs: []netip.Prefix{prefix("10.8.0.0/16")}}})
	var cmds []Command
	for i := range 1000 {
		cmds = append(cmds, auto(fmt.Sprintf("s%d", i), "p"))
	}
	s = do(t, s, Batch{Commands: cmds})
	if at := vipOf(t, s, "s999"); at != "10.8.3.232" {
		t.Errorf("the thousandth is on %s", at)
	}
	use := s.PoolUse("p")
	if use.Used != 1000 || use.Free != 65534-1000 || len(use.Allocations) != 1000 {
		t.Errorf("used %d, free %d", use.Used, use.Free)
	}
	if !slices.Equal(use.Allocations[255].Services, []string{"s255"}) {
		t.Errorf("%+v", use.Allocations[255])
	}
}

func BenchmarkHandOutBesideTenThousand(b *testing.B) {
	s := do(b, threeNodes(b), PutPool{Pool: Pool{Name: "p", CIDRs: []netip.Prefix{prefix("10.8.0.0/16")}}})
	var cmds []Command
	for i := range 10000 {
		cmds = append(cmds, auto(fmt.Sprintf("s%d", i), "p"))
	}
	s = do(b, s, Batch{Commands: cmds})
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Check(auto("one", "p")); err != nil {
			b.Fatal(err)
		}
	}
}
