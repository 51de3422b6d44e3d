package bpf

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// Selection as packets see it: what select_test.go holds of tables, through the program.

// many are n endpoints with the weights in turn, and a way to them.
func (b *bench) many(n int, weights ...uint16) []Endpoint {
	b.tb.Helper()
	b.out.Address("10.8.255.1/16")
	out := make([]Endpoint, n)
	for i := range out {
		a := netip.AddrFrom4([4]byte{10, 8, byte(1 + i/200), byte(1 + i%200)})
		out[i] = Endpoint{Addr: netip.AddrPortFrom(a, 8080), Weight: weights[i%len(weights)], Sources: []netip.Addr{vip}}
	}
	return out
}

// choose sends a SYN and returns where it went; it fails when it went nowhere.
func (b *bench) choose(c, v netip.AddrPort) (snat, endpoint netip.AddrPort) {
	b.tb.Helper()
	action, out := b.fromClient(bpftest.Packet{Src: c, Dst: v, Flags: bpftest.SYN})
	if action != actRedirect {
		b.tb.Fatalf("SYN of %s to %s: action %d, drops %v", c, v, action, b.Stats().Drops)
	}
	return tuple(out)
}

func TestRoundRobinOf256EndpointsIsExact(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT)
	s.Endpoints = b.many(256, 1, 2, 5)
	b.sync(s)
	cycle := 0
	for _, e := range s.Endpoints {
		cycle += int(e.Weight)
	}
	seen := map[netip.AddrPort]int{}
	for i := range 3 * cycle {
		_, endpoint := b.choose(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
		seen[endpoint]++
	}
	for _, e := range s.Endpoints {
		if seen[e.Addr] != 3*int(e.Weight) {
			t.Errorf("%s of weight %d got %d in 3 cycles", e.Addr, e.Weight, seen[e.Addr])
		}
	}
}

// Whatever opens and closes, a new connection goes where the fewest are for the weight.
func TestLeastConnectionsCountsExactly(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT)
	s.Algorithm, s.Endpoints = AlgorithmLC, b.many(5, 1, 1, 3)
	b.sync(s)
	weight := map[netip.AddrPort]int{}
	for _, e := range s.Endpoints {
		weight[e.Addr] = int(e.Weight)
	}
	random := rand.New(rand.NewPCG(1, 2))
	active := map[netip.AddrPort]int{}
	type open struct{ client, endpoint netip.AddrPort }
	var live []open
	for i := range 400 {
		if len(live) > 0 && random.IntN(5) < 2 {
			at := random.IntN(len(live))
			b.fromClient(bpftest.Packet{Src: live[at].client, Dst: vipPort, Flags: bpftest.RST})
			active[live[at].endpoint]--
			live[at] = live[len(live)-1]
			live = live[:len(live)-1]
			continue
		}
		c := netip.AddrPortFrom(client, uint16(2000+i))
		_, chosen := b.talk(c, vipPort)
		for e, w := range weight {
			if active[e]*weight[chosen] < active[chosen]*w {
				t.Fatalf("connection %d went to %s with %d of weight %d, %s has %d of weight %d", i, chosen, active[chosen], weight[chosen], e, active[e], w)
			}
		}
		active[chosen]++
		live = append(live, open{c, chosen})
	}
}

func TestLeastConnectionsOfEqualsTakeTurns(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT)
	s.Algorithm, s.Endpoints = AlgorithmLC, b.many(7, 1)
	b.sync(s)
	seen := map[netip.AddrPort]int{}
	for i := range 70 { // none is ever established, so all stay equal
		_, endpoint := b.choose(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
		seen[endpoint]++
	}
	for e, n := range seen {
		if n != 10 {
			t.Errorf("%s got %d of 70", e, n)
		}
	}
}

func TestPortRangeLeadsToTheSamePortsOfTheEndpoint(t *testing.T) {
	b := newBench(t, nil)
	ranged := service(ModeFullNAT, endpoint1)
	ranged.VIP, ranged.PortEnd = netip.AddrPortFrom(vip, 1000), 1999
	within := service(ModeFullNAT, endpoint2)
	within.ID, within.VIP = 8, netip.AddrPortFrom(vip, 1500)
	b.sync(ranged, within)
	for port, want := range map[uint16]netip.AddrPort{
		1000: endpoint1,
		1001: netip.AddrPortFrom(endpoint1.Addr(), 8081),
		1499: netip.AddrPortFrom(endpoint1.Addr(), 8579),
		1500: endpoint2, // a service of one port stands before a range around it
		1999: netip.AddrPortFrom(endpoint1.Addr(), 9079),
	} {
		if _, endpoint := b.talk(netip.AddrPortFrom(client, 2000+port), netip.AddrPortFrom(vip, port)); endpoint != want {
			t.Errorf("port %d leads to %s, want %s", port, endpoint, want)
		}
	}
	for _, port := range []uint16{1, 999, 2000, 65535} {
		b.fromClient(bpftest.Packet{Src: clientPort, Dst: netip.AddrPortFrom(vip, port), Flags: bpftest.SYN})
	}
	if n := b.Stats().Counters["refused"]; n != 4 {
		t.Errorf("%d refused outside of the range, want 4", n)
	}
}

func TestClientStaysWithItsEndpointOverAPortRange(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT)
	s.VIP, s.PortEnd, s.Affinity = netip.AddrPortFrom(vip, 1000), 1099, time.Hour
	s.Endpoints = b.many(8, 1)
	b.sync(s)
	hosts := map[netip.Addr]int{}
	for c := range 20 {
		source := netip.AddrFrom4([4]byte{10, 9, 0, byte(20 + c)})
		_, first := b.choose(netip.AddrPortFrom(source, 3000), s.VIP)
		hosts[first.Addr()]++
		for i := range uint16(30) {
			_, endpoint := b.choose(netip.AddrPortFrom(source, 3001+i), netip.AddrPortFrom(vip, 1000+3*i))
			if endpoint.Addr() != first.Addr() || endpoint.Port() != first.Port()+3*i {
				t.Fatalf("%s went to %s first, then on port %d to %s", source, first, 1000+3*i, endpoint)
			}
		}
	}
	if len(hosts) != 8 {
		t.Errorf("20 clients went to %d of 8 endpoints", len(hosts))
	}
}

// With several SNAT addresses connections are spread over them, and whatever comes and goes no two
// that live look the same to the endpoint.
func TestSourcesAreSpreadAndTuplesUnique(t *testing.T) {
	b := newBench(t, func(o *Options) { o.MaxFlows, o.MaxHalfOpen = 1<<14, 1<<15 })
	s := service(ModeFullNAT, endpoint1, endpoint2)
	var sources []netip.Addr
	for i := range byte(4) {
		sources = append(sources, netip.AddrFrom4([4]byte{10, 9, 0, 101 + i}))
	}
	s.Endpoints[0].Sources, s.Endpoints[1].Sources = sources, sources
	b.sync(s)
	type reply struct{ snat, endpoint netip.AddrPort }
	held, owner := map[reply]netip.AddrPort{}, map[netip.AddrPort]reply{}
	used, random := map[netip.Addr]int{}, rand.New(rand.NewPCG(3, 4))
	for i := range 4000 {
		c := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(20 + random.IntN(50))}), uint16(2000+i))
		snat, endpoint := b.talk(c, vipPort)
		r := reply{snat, endpoint}
		if other, ok := held[r]; ok {
			t.Fatalf("%s and %s are both %s at %s", c, other, snat, endpoint)
		}
		held[r], owner[c] = c, r
		used[snat.Addr()]++
		if random.IntN(3) == 0 {
			b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.RST})
			delete(held, owner[c]) // a closed one's tuple may be given away
		}
	}
	for _, a := range sources {
		if used[a] < 900 || used[a] > 1100 {
			t.Errorf("%s was used %d times in 4000, want about 1000", a, used[a])
		}
	}
}
