package lab

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

// needIPv6 skips a test that a kernel without IPv6 cannot run.
func needIPv6(t *testing.T) {
	t.Helper()
	roottest.Need(t)
	if !haveIPv6() {
		if os.Getenv("PONTOON_REQUIRE_PRIV") == "1" {
			t.Fatal("the kernel was started without IPv6, and PONTOON_REQUIRE_PRIV=1 forbids to skip")
		}
		t.Skip("the kernel was started without IPv6")
	}
}

func TestLayoutGivesBothFamiliesTheSameDigits(t *testing.T) {
	lay := planLayout(Config{Topology: TwoLeg, Nodes: 1, Clients: MaxClients, Endpoints: MaxEndpoints}, [2]byte{1, 2})
	seen := map[netip.Addr]bool{ServiceVIP6(): true, GatewayVIP6(): true}
	for _, h := range lay.hosts {
		for _, p := range h.ports {
			digits := p.address.Addr().String()
			digits = digits[strings.LastIndex(digits, ".")+1:]
			prefix := map[string]string{segClients: "fd00:80::", segEndpoints: "fd00:2::"}[p.segment]
			if want := prefix + digits + "/64"; p.address6.String() != want {
				t.Errorf("%s has %s beside %s, want %s", h.name, p.address6, p.address, want)
			}
			if seen[p.address6.Addr()] {
				t.Errorf("%s is there twice", p.address6)
			}
			seen[p.address6.Addr()] = true
		}
	}
	if ServiceVIP6().String() != "fd00:80::200" || GatewayVIP6().String() != "fd00:2::1" {
		t.Errorf("VIPs %s, %s", ServiceVIP6(), GatewayVIP6())
	}
}

func TestTwoLegConnectsNodesWithBothSidesOverIPv6(t *testing.T) {
	needIPv6(t)
	l := newLab(t, Config{Nodes: 2, Clients: 1, Endpoints: 1})
	lb2, client, ep := l.Node("lb2"), l.Clients()[0], l.Endpoints()[0]
	if got := lb2.Addrs6(); got[0].String() != "fd00:80::12/64" || got[1].String() != "fd00:2::12/64" {
		t.Fatalf("lb2 has %v", got)
	}
	if err := exchange(t, client, lb2.Host, lb2.Addr6()); err != nil {
		t.Error(err)
	}
	if err := exchange(t, lb2.Host, ep, ep.Addr6()); err != nil {
		t.Error(err)
	}
	if c, err := client.Dial(deadline(t, time.Second), netip.AddrPortFrom(ep.Addr6(), 8080)); err == nil {
		c.Close()
		t.Error("a client reached an endpoint past the load balancers")
	}
	nl, err := nlHandle(ep.Namespace())
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	for family, want := range map[int]netip.Addr{netlink.FAMILY_V4: GatewayVIP(), netlink.FAMILY_V6: GatewayVIP6()} {
		routes, err := nl.RouteList(nil, family)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, r := range routes {
			found = found || r.Gw.Equal(want.AsSlice())
		}
		if !found {
			t.Errorf("no default route by %s in %v", want, routes)
		}
	}
}

// A node that forwards IPv6 carries an endpoint's packets to a client, which is
// what dnat and the endpoints' own connections need.
func TestEndpointReachesClientThroughItsGatewayOverIPv6(t *testing.T) {
	needIPv6(t)
	l := newLab(t, Config{Nodes: 1, Clients: 1, Endpoints: 1})
	node, client, ep := l.Node("lb1"), l.Clients()[0], l.Endpoints()[0]
	err := node.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := addAddress(node.Namespace(), "eth2", netip.PrefixFrom(GatewayVIP6(), 128)); err != nil {
		t.Fatal(err)
	}
	// The client sends its answers by the node; a lab's client has no router.
	if err := addRoute(client.Namespace(), netip.PrefixFrom(ep.Addr6(), 128), node.Addr6()); err != nil {
		t.Fatal(err)
	}
	if err := exchange(t, ep, client, client.Addr6()); err != nil {
		t.Error(err)
	}
}

func TestFamiliesNameDistinctAddresses(t *testing.T) {
	for _, topology := range []Topology{TwoLeg, OneLeg} {
		l := &Lab{cfg: Config{Topology: topology}}
		seen := map[netip.Addr]string{}
		add := func(what string, a netip.Addr, f Family) {
			if seen[a] != "" {
				t.Errorf("%s: %s is %s and %s", topology, a, what, seen[a])
			}
			if a.Is6() != (f == IPv6) {
				t.Errorf("%s: %s of %s is %s", topology, what, f, a)
			}
			seen[a] = what
		}
		for _, h := range planLayout(Config{Topology: topology, Nodes: MaxNodes, Clients: MaxClients, Endpoints: MaxEndpoints}, [2]byte{1, 2}).hosts {
			for _, p := range h.ports {
				add(h.name, p.address.Addr(), IPv4)
				add(h.name, p.address6.Addr(), IPv6)
			}
		}
		for _, f := range Families() {
			add("service VIP", f.ServiceVIP(), f)
			add("gateway VIP", f.GatewayVIP(), f)
			for n := range 10 {
				add("SNAT address", l.SNATAddr(f, n), f)
			}
		}
	}
}

func TestOneLegConnectsEverybodyOverIPv6(t *testing.T) {
	needIPv6(t)
	l := newLab(t, Config{Topology: OneLeg, Nodes: 1, Clients: 1, Endpoints: 1})
	if err := exchange(t, l.Clients()[0], l.Endpoints()[0], netip.MustParseAddr("fd00:80::21")); err != nil {
		t.Error(err)
	}
	if err := exchange(t, l.Clients()[0], l.Host("lb1"), netip.MustParseAddr("fd00:80::11")); err != nil {
		t.Error(err)
	}
}

func TestUDPOverIPv6CrossesASegment(t *testing.T) {
	needIPv6(t)
	l := newLab(t, Config{Topology: OneLeg, Clients: 2})
	a, b := l.Clients()[0], l.Clients()[1]
	ca, err := a.ListenUDP(netip.AddrPortFrom(a.Addr6(), 5000))
	if err != nil {
		t.Fatal(err)
	}
	defer ca.Close()
	cb, err := b.ListenUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), 5000))
	if err != nil {
		t.Fatal(err)
	}
	defer cb.Close()
	c4, err := b.ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), 5000))
	if err != nil {
		t.Fatalf("the other family's port is taken too: %v", err)
	}
	defer c4.Close()
	if _, err := ca.WriteToUDPAddrPort([]byte("ping"), netip.AddrPortFrom(b.Addr6(), 5000)); err != nil {
		t.Fatal(err)
	}
	if err := cb.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, from, err := cb.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "ping" || from.Addr() != a.Addr6() {
		t.Errorf("got %q from %s: %v", buf[:n], from, err)
	}
}

func TestTrafficRunsOverIPv6(t *testing.T) {
	needIPv6(t)
	l := newLab(t, Config{Topology: OneLeg, Clients: 2})
	c := overWireTo(t, l, l.Clients()[1].Addr6(), 50)
	w := c.Window()
	if err := w.Wait(deadline(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if r := w.Result(); r.Survived != 50 || r.Corrupted != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestPowerLossKeepsIPv6Addresses(t *testing.T) {
	needIPv6(t)
	l := newLab(t, Config{Topology: OneLeg, Nodes: 1, Clients: 1})
	n, client := l.Node("lb1"), l.Clients()[0]
	if err := exchange(t, client, n.Host, n.Addr6()); err != nil {
		t.Fatal(err)
	}
	if err := n.PowerOff(deadline(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := n.build(); err != nil { // what PowerOn does before it starts a daemon
		t.Fatal(err)
	}
	if err := exchange(t, client, n.Host, n.Addr6()); err != nil {
		t.Error(err)
	}
}

func TestSegmentsHaveNoIPv6OfTheirOwn(t *testing.T) {
	needIPv6(t)
	l := newLab(t, Config{Topology: OneLeg, Clients: 1})
	nl, err := nlHandle(l.segments[segClients].ns)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	if addrs, err := nl.AddrList(nil, netlink.FAMILY_V6); err != nil || len(addrs) > 0 {
		t.Errorf("%v, %v", addrs, err)
	}
}

func TestClusterAddressFollowsTheConfiguration(t *testing.T) {
	l := newLab(t, Config{Topology: OneLeg, Nodes: 1, ClusterIPv6: true, BPFFS: t.TempDir()})
	n := l.Node("lb1")
	if got := n.ClusterAddress().String(); got != "[fd00:80::11]:7400" {
		t.Errorf("cluster address %s", got)
	}
	if !strings.Contains(strings.Join(n.RunArgs(), " "), "--address [fd00:80::11]:7400") {
		t.Errorf("arguments %v", n.RunArgs())
	}
}

func TestDialNeedsAnAddressThatNeedsNoInterface(t *testing.T) {
	for _, bad := range []string{"[fe80::1]:80", "[fe80::1%eth1]:80"} {
		if _, _, err := sockaddr(netip.MustParseAddrPort(bad)); err == nil {
			t.Errorf("%s accepted", bad)
		}
	}
	if _, _, err := sockaddr(netip.AddrPort{}); err == nil {
		t.Error("no address accepted")
	}
	for good, family := range map[string]int{
		"[fd00:80::1]:80": unix.AF_INET6, "10.0.0.1:80": unix.AF_INET, "[::ffff:10.0.0.1]:80": unix.AF_INET,
	} {
		if got, _, err := sockaddr(netip.MustParseAddrPort(good)); err != nil || got != family {
			t.Errorf("%s: family %d, %v", good, got, err)
		}
	}
}
