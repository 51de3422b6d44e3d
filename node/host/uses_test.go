package host

import (
	"net"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

func TestUsesAreWhatOthersHaveSet(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	operatorAdds(t, "ptv0", "192.0.2.7/24")
	operatorAdds(t, "ptv0", "2001:db8::7/64")
	h := newHost(t)
	syncTo(t, h, on("ptv0", "192.0.2.100"), nil, 1, 0)
	for _, r := range []netlink.Route{
		{Dst: ipNet("10.1.0.0/16"), Gw: net.IPv4(192, 0, 2, 99), Protocol: unix.RTPROT_STATIC},
		{Dst: ipNet("0.0.0.0/0"), Gw: net.IPv4(192, 0, 2, 99)},
	} {
		must(t, netlink.RouteAdd(&r))
	}
	if _, _, err := h.SyncRoutes([]Route{to("10.2.0.0/16", "192.0.2.98")}, false); err != nil {
		t.Fatal(err)
	}
	uses, err := h.Uses()
	must(t, err)
	var got []string
	for _, u := range uses {
		got = append(got, u.Prefix.String()+" "+u.What)
	}
	slices.Sort(got)
	want := []string{"10.1.0.0/16 routed to 192.0.2.99", "192.0.2.7/32 an address of ptv0", "2001:db8::7/128 an address of ptv0"}
	if !slices.Equal(got, want) {
		t.Errorf("uses %q, want %q", got, want)
	}
}
