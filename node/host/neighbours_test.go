package host

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"pontoon/internal/roottest"
)

func TestNeighbourIsWhatTheKernelKnows(t *testing.T) {
	roottest.Namespace(t)
	l := addVeth(t, "ptv0", "ptv1")
	operatorAdds(t, "ptv0", "10.0.0.1/24")
	h := newHost(t)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	for _, ip := range []string{"10.0.0.9", "2001:db8::9"} {
		at := netip.MustParseAddr(ip)
		if _, err := h.Neighbour(l.Attrs().Index, at); !errors.Is(err, ErrNoNeighbour) {
			t.Fatalf("%s: %v", ip, err)
		}
		must(t, netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, IP: at.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
		}))
		if got, err := h.Neighbour(l.Attrs().Index, at); err != nil || got.String() != mac.String() {
			t.Errorf("%s: %s, %v", ip, got, err)
		}
	}
	must(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, IP: net.IPv4(10, 0, 0, 9), HardwareAddr: mac, State: netlink.NUD_FAILED,
	}))
	if got, err := h.Neighbour(l.Attrs().Index, netip.MustParseAddr("10.0.0.9")); !errors.Is(err, ErrNoNeighbour) {
		t.Errorf("one that does not answer: %s, %v", got, err)
	}
}
