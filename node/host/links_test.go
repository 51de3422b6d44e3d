package host

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

func TestSubnetLinkTakesTheLongestPrefix(t *testing.T) {
	p := netip.MustParsePrefix
	links := []Link{
		{Name: "wide", Prefixes: []netip.Prefix{p("10.0.0.1/8"), p("2001:db8::1/32")}},
		{Name: "narrow", Prefixes: []netip.Prefix{p("192.0.2.1/24"), p("10.1.0.1/16")}},
		{Name: "same", Prefixes: []netip.Prefix{p("10.1.0.2/16")}},
		{Name: "bare"},
	}
	for addr, want := range map[string]string{
		"10.2.0.1": "wide", "10.1.7.7": "narrow", "192.0.2.9": "narrow", "::ffff:10.1.7.7": "narrow",
		"2001:db8::7": "wide", "198.51.100.1": "", "2001:db9::1": "",
	} {
		got, ok := new(Host).SubnetLink(links, netip.MustParseAddr(addr))
		if got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v; want %q", addr, got, ok, want)
		}
	}
	if got, ok := new(Host).SubnetLink(links, netip.Addr{}); ok {
		t.Errorf("no address lies in %q", got)
	}
}

func TestRunningNeedsWishAndCarrier(t *testing.T) {
	for flags, want := range map[uint32]bool{
		unix.IFF_UP | unix.IFF_RUNNING | unix.IFF_LOWER_UP: true,
		unix.IFF_UP | unix.IFF_LOWER_UP:                    false, // dormant
		unix.IFF_UP:                                        false, // no carrier
		unix.IFF_RUNNING | unix.IFF_LOWER_UP:               false,
	} {
		if got := running(flags); got != want {
			t.Errorf("flags %#x: %v", flags, got)
		}
	}
}

func TestLinksFollowTheVeth(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	operatorAdds(t, "ptv0", "10.0.0.1/24")
	operatorAdds(t, "ptv0", "2001:db8::1/64")
	h := newHost(t)
	syncTo(t, h, on("ptv0", "10.0.0.9", "2001:db8::9"), nil, 2, 0)

	links, err := h.Links([]string{"ptv1", "ptv0"})
	must(t, err)
	if links[0].Name != "ptv1" || links[1].Name != "ptv0" {
		t.Fatalf("not in the order asked for: %+v", links)
	}
	l := links[1]
	if !l.Up || l.MTU != 1500 || l.Index != link(t, "ptv0").Attrs().Index || len(l.HardwareAddr) != 6 {
		t.Errorf("got %+v", l)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("2001:db8::1/64")}
	if diff := cmp.Diff(want, l.Prefixes, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if name, _ := h.SubnetLink(links, netip.MustParseAddr("10.0.0.9")); name != "ptv0" {
		t.Errorf("10.0.0.9 belongs to %q", name)
	}

	isUp := func() bool {
		links, err := h.Links([]string{"ptv0"})
		must(t, err)
		return links[0].Up
	}
	setUp(t, "ptv1", false) // the peer: ptv0 loses its carrier
	roottest.Eventually(t, "down without carrier", func() bool { return !isUp() })
	setUp(t, "ptv1", true)
	roottest.Eventually(t, "up again", isUp)
	setUp(t, "ptv0", false)
	roottest.Eventually(t, "down by the operator", func() bool { return !isUp() })
}

func TestMissingLinkIsNamed(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	_, err := newHost(t).Links([]string{"ptv0", "eth7"})
	if !errors.Is(err, ErrNoLink) || !strings.Contains(err.Error(), `interface "eth7": no such interface (there are: lo, ptv0, ptv1)`) {
		t.Errorf("got %v", err)
	}
}
