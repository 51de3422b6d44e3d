package host

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

func to(prefix string, hops ...string) Route {
	return Route{Prefix: netip.MustParsePrefix(prefix), NextHops: addrs(hops...)}
}

var sameRoute = cmp.Options{sameAddr, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}

func TestPlanRoutes(t *testing.T) {
	one, two := to("10.1.0.0/16", "192.0.2.1"), to("10.2.0.0/16", "192.0.2.1", "192.0.2.2")
	for name, tc := range map[string]struct {
		have, want          []Route
		remove, add, change []Route
	}{
		"new":                    {nil, []Route{two, one}, nil, []Route{one, two}, nil},
		"there":                  {[]Route{one, two}, []Route{one, two}, nil, nil, nil},
		"in another order":       {[]Route{two}, []Route{to("10.2.0.0/16", "192.0.2.2", "192.0.2.1", "192.0.2.1")}, nil, nil, nil},
		"not wanted any more":    {[]Route{two, one}, nil, []Route{one, two}, nil, nil},
		"another next hop":       {[]Route{one}, []Route{to("10.1.0.0/16", "192.0.2.9")}, nil, nil, []Route{to("10.1.0.0/16", "192.0.2.9")}},
		"one of two is gone":     {[]Route{two}, []Route{to("10.2.0.0/16", "192.0.2.2")}, nil, nil, []Route{to("10.2.0.0/16", "192.0.2.2")}},
		"bits beyond the length": {[]Route{one}, []Route{to("10.1.2.3/16", "192.0.2.1")}, nil, nil, nil},
		"twice: the first":       {nil, []Route{one, to("10.1.0.0/16", "192.0.2.9")}, nil, []Route{one}, nil},
		"without a next hop":     {[]Route{one}, []Route{to("10.1.0.0/16")}, []Route{one}, nil, nil},
	} {
		remove, add, change := planRoutes(tc.have, tc.want)
		if d := cmp.Diff([][]Route{tc.remove, tc.add, tc.change}, [][]Route{remove, add, change}, sameRoute); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// mainTable lists what stands in the main table of the test's namespace, as text.
func mainTable(t *testing.T, family int) []string {
	t.Helper()
	list, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	must(t, err)
	var out []string
	for i := range list {
		r := &list[i]
		hops := 0
		if r.Gw != nil || r.Via != nil {
			hops = 1
		}
		hops += len(r.MultiPath)
		if r.Protocol == routeProtocol {
			out = append(out, r.Dst.String()+" "+string(rune('0'+hops)))
		}
	}
	slices.Sort(out)
	return out
}

func TestSyncRoutesMakesTheKernelHoldExactlyWhatIsWanted(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	operatorAdds(t, "ptv0", "192.0.2.11/24")
	operatorAdds(t, "ptv0", "2001:db8:2::11/64")
	h := newHost(t)
	sync := func(want []Route, four, six []string) {
		t.Helper()
		if _, _, err := h.SyncRoutes(want, false); err != nil {
			t.Fatal(err)
		}
		if got := mainTable(t, unix.AF_INET); !slices.Equal(got, four) {
			t.Errorf("IPv4: %q, want %q", got, four)
		}
		if got := mainTable(t, unix.AF_INET6); !slices.Equal(got, six) {
			t.Errorf("IPv6: %q, want %q", got, six)
		}
	}
	want := []Route{
		to("0.0.0.0/0", "192.0.2.1"), to("10.1.0.0/16", "192.0.2.1", "192.0.2.2"),
		to("::/0", "2001:db8:2::1", "2001:db8:2::2"), to("2001:db8:77::/48", "2001:db8:2::1"), to("10.9.0.0/16", "2001:db8:2::1"),
	}
	four, six := []string{"0.0.0.0/0 1", "10.1.0.0/16 2", "10.9.0.0/16 1"}, []string{"2001:db8:77::/48 1", "::/0 2"}
	sync(want, four, six)
	sync(want, four, six)
	if added, removed, err := h.SyncRoutes(want, false); len(added)+len(removed) > 0 || err != nil {
		t.Errorf("again: %v, %v, %v", added, removed, err)
	}
	// Others share it, or fewer; and one is put back that somebody took away.
	must(t, netlink.RouteDel(&netlink.Route{Dst: ipNet("10.9.0.0/16"), Priority: routeMetric, Protocol: routeProtocol}))
	want[0] = to("0.0.0.0/0", "192.0.2.1", "192.0.2.2", "192.0.2.3")
	want[1] = to("10.1.0.0/16", "192.0.2.2")
	want[2] = to("::/0", "2001:db8:2::2")
	want[3] = to("2001:db8:77::/48", "2001:db8:2::1", "2001:db8:2::9")
	sync(want, []string{"0.0.0.0/0 3", "10.1.0.0/16 1", "10.9.0.0/16 1"}, []string{"2001:db8:77::/48 2", "::/0 1"})
	// A later process knows them, and leaves them until it knows what is wanted.
	h = newHost(t)
	if _, removed, err := h.SyncRoutes(nil, true); err != nil || len(removed) > 0 {
		t.Errorf("removed %v, %v", removed, err)
	}
	sync(want[:1], []string{"0.0.0.0/0 3"}, nil)
	sync(nil, nil, nil)
}

func ipNet(s string) *net.IPNet {
	_, n, _ := net.ParseCIDR(s)
	return n
}

func TestSyncRoutesLeavesAloneWhatOthersSet(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	operatorAdds(t, "ptv0", "192.0.2.11/24")
	h := newHost(t)
	foreign := []netlink.Route{
		{Dst: ipNet("10.1.0.0/16"), Gw: net.IPv4(192, 0, 2, 99), Priority: routeMetric, Protocol: unix.RTPROT_STATIC},
		{Dst: ipNet("10.2.0.0/16"), Gw: net.IPv4(192, 0, 2, 99), Protocol: unix.RTPROT_STATIC},
		{Dst: ipNet("10.3.0.0/16"), Gw: net.IPv4(192, 0, 2, 99), Priority: 7, Protocol: routeProtocol}, // with our number, but not by us
	}
	for i := range foreign {
		must(t, netlink.RouteAdd(&foreign[i]))
	}
	added, _, err := h.SyncRoutes([]Route{to("10.1.0.0/16", "192.0.2.1"), to("10.2.0.0/16", "192.0.2.1"), to("10.77.0.0/16", "198.51.100.1")}, false)
	if !errors.Is(err, ErrForeignRoute) || !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("error %v", err)
	}
	if len(added) != 1 || added[0] != netip.MustParsePrefix("10.2.0.0/16") {
		t.Errorf("added %v", added)
	}
	if _, removed, err := h.SyncRoutes(nil, false); err != nil || len(removed) != 1 {
		t.Errorf("removed %v, %v", removed, err)
	}
	list, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Gw: net.IPv4(192, 0, 2, 99)}, netlink.RT_FILTER_GW)
	must(t, err)
	if len(list) != len(foreign) {
		t.Errorf("of others' routes are left: %v", list)
	}
}
