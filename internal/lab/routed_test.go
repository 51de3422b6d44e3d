package lab

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// dials says whether a TCP connection from one host to an address of another comes about.
func dials(t *testing.T, from *Host, to netip.AddrPort) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, to)
	if err != nil {
		return err
	}
	return c.Close()
}

func TestRoutersForwardBetweenClientsAndNodes(t *testing.T) {
	l := newLab(t, Config{Topology: Routed, Nodes: 2, Clients: 2, Endpoints: 1, Routers: 2})
	for _, f := range Families() {
		at := netip.AddrPortFrom(f.Unspecified(), 4000)
		for _, n := range l.Nodes() {
			ln, err := n.Listen(at)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			for _, c := range l.Clients() {
				if err := dials(t, c, netip.AddrPortFrom(n.AddrIn(f), 4000)); err != nil {
					t.Error(err)
				}
			}
		}
	}
	r1 := l.Routers()[0]
	if got := r1.CoreAddr(IPv4); got != netip.MustParseAddr("192.168.90.1") || r1.CoreInterface() != "eth2" {
		t.Errorf("r1 is %s on %s", got, r1.CoreInterface())
	}
	// The second client has a router of its own; the first one goes dark with its own.
	if err := r1.PowerOff(deadline(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(l.Nodes()[0].Addr(), 4000)
	if err := dials(t, l.Clients()[0], to); err == nil {
		t.Error("a router without power forwards")
	}
	if err := r1.PowerOn(); err != nil {
		t.Fatal(err)
	}
	if err := dials(t, l.Clients()[0], to); err != nil {
		t.Error(err)
	}
}

func TestNodesThatLearnHaveNoDefaultRoute(t *testing.T) {
	l := newLab(t, Config{Topology: Routed, Nodes: 1, LearnRoutes: true})
	table, err := l.Nodes()[0].RouteTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	for _, f := range Families() {
		if got, err := table.NextHops(f); err != nil || len(got) > 0 {
			t.Errorf("%s: %v, %v", f, got, err)
		}
	}
}

func TestRouteTableKnowsEveryNextHop(t *testing.T) {
	l := newLab(t, Config{Topology: Routed, Nodes: 3})
	r := l.Routers()[0]
	table, err := r.RouteTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	nl, err := nlHandle(r.Namespace())
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	for _, f := range Families() {
		vip := f.RoutedVIP(7)
		var hops []*netlink.NexthopInfo
		var want []netip.Addr
		for _, n := range l.Nodes() {
			hops, want = append(hops, &netlink.NexthopInfo{Gw: n.AddrIn(f).AsSlice()}), append(want, n.AddrIn(f))
		}
		if err := nl.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(vip, vip.BitLen())), MultiPath: hops}); err != nil {
			t.Fatal(err)
		}
		if got, err := table.To(vip); err != nil || !slices.Equal(got, want) {
			t.Errorf("to %s: %v, %v", vip, got, err)
		}
		if got, err := table.To(f.RoutedVIP(8)); err != nil || len(got) > 0 {
			t.Errorf("to nowhere: %v, %v", got, err)
		}
	}
}

func TestRoutedVIPsAreAllDifferent(t *testing.T) {
	for _, f := range Families() {
		seen := map[netip.Addr]bool{}
		for i := range 10000 {
			seen[f.RoutedVIP(i)] = true
		}
		if len(seen) != 10000 {
			t.Errorf("%s: %d of 10000", f, len(seen))
		}
	}
	for a, p := range map[netip.Addr]string{RoutedVIP(9999): "198.18.0.0/15", RoutedVIP6(9999): "fd00:100::/64"} {
		if !netip.MustParsePrefix(p).Contains(a) {
			t.Errorf("%s is not in %s", a, p)
		}
	}
}
