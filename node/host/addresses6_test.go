package host

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

// ifaddrOf finds an address as the kernel has it now.
func ifaddrOf(t *testing.T, h *Host, addr string) (ifaddr, bool) {
	t.Helper()
	names, err := h.linkNames()
	must(t, err)
	all, err := h.dumpAddresses(names)
	must(t, err)
	for _, a := range all {
		if a.addr == netip.MustParseAddr(addr) {
			return a, true
		}
	}
	return ifaddr{}, false
}

// inPeer moves ptv1 into a second namespace, made by the calling thread, and runs
// fn there. The namespace lives as long as the test: with it ptv1 would go, and
// with that ptv0.
func inPeer(t *testing.T, home netns.NsHandle, fn func()) {
	t.Helper()
	peer, err := netns.New()
	must(t, err)
	t.Cleanup(func() { peer.Close() })
	must(t, netns.Set(home))
	must(t, netlink.LinkSetNsFd(link(t, "ptv1"), int(peer)))
	must(t, netns.Set(peer))
	fn()
	must(t, netns.Set(home))
}

// A VIP must serve the moment it is taken: no duplicate detection, although the
// old master still holds it, answers for it, and would be found.
func TestTakeoverOfIPv6IsImmediate(t *testing.T) {
	ns := roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	h := newHost(t)
	const vip = "2001:db8::9"
	inPeer(t, ns, func() {
		setUp(t, "ptv1", true)
		old, err := netlink.ParseAddr(vip + "/128")
		must(t, err)
		old.Flags = unix.IFA_F_NODAD
		must(t, netlink.AddrAdd(link(t, "ptv1"), old))
	})
	roottest.Eventually(t, "the carrier is there", func() bool {
		links, err := h.Links([]string{"ptv0"})
		must(t, err)
		return links[0].Up
	})
	usable := func(when string) {
		t.Helper()
		a, ok := ifaddrOf(t, h, vip)
		if !ok || a.flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			t.Fatalf("%s: there %v, flags %#x", when, ok, a.flags)
		}
		// A tentative address cannot be bound.
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		must(t, unix.Bind(fd, &unix.SockaddrInet6{Addr: netip.MustParseAddr(vip).As16(), Port: 9}))
	}
	start := time.Now()
	syncTo(t, h, on("ptv0", vip), nil, 1, 0)
	usable("at once")
	t.Logf("held and usable after %v", time.Since(start))
	// The kernel looks for duplicates again when a link was down and came up, and
	// then not for this address.
	setUp(t, "ptv0", false)
	setUp(t, "ptv0", true)
	syncTo(t, h, on("ptv0", vip), nil, 1, 0)
	usable("after the link was down")
	syncTo(t, h, on("ptv0", vip), nil, 0, 0)
}

// The interface going down takes IPv6 addresses with it, unlike IPv4 ones.
func TestIPv6AddressComesBackAfterTheLinkWasSetDown(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	h := newHost(t)
	want := on("ptv0", "10.0.0.9", "2001:db8::9")
	syncTo(t, h, want, nil, 2, 0)
	setUp(t, "ptv0", false)
	setUp(t, "ptv0", true)
	syncTo(t, h, want, nil, 1, 0)
	if a, _ := ifaddrOf(t, h, "2001:db8::9"); a.flags&unix.IFA_F_TENTATIVE != 0 {
		t.Errorf("flags %#x", a.flags)
	}
}

func TestOwnConnectionsDoNotBeginAtTheVIP(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	a, err := netlink.ParseAddr("2001:db8::11/64")
	must(t, err)
	a.Flags = unix.IFA_F_NODAD
	must(t, netlink.AddrAdd(link(t, "ptv0"), a))
	h := newHost(t)
	syncTo(t, h, on("ptv0", "2001:db8::200"), nil, 1, 0)
	// ::201 has 127 bits in common with the VIP, and 118 with the own address.
	routes, err := netlink.RouteGet(netip.MustParseAddr("2001:db8::201").AsSlice())
	must(t, err)
	if got := routes[0].Src.String(); got != "2001:db8::11" {
		t.Errorf("a connection to a neighbour would begin at %s", got)
	}
}

func TestRefusalSaysThatIPv6IsOff(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/ptv0/disable_ipv6", []byte("1"), 0))
	h := newHost(t)
	added, _, err := h.SyncAddresses(on("ptv0", "10.0.0.9", "2001:db8::9"), nil)
	if len(added) != 1 || err == nil || !strings.Contains(err.Error(), "set net.ipv6.conf.ptv0.disable_ipv6=0") {
		t.Errorf("added %v: %v", added, err)
	}
	must(t, h.PrepareIPv6([]string{"ptv0"}))
}

func TestPrefixesToBuildOnComeFirst(t *testing.T) {
	addrs := []ifaddr{
		{addr: netip.MustParseAddr("2001:db8:1::1"), bits: 64, index: 2, flags: unix.IFA_F_DEPRECATED},
		{addr: netip.MustParseAddr("2001:db8:2::1"), bits: 64, index: 2, flags: unix.IFA_F_TENTATIVE},
		{addr: netip.MustParseAddr("2001:db8:3::1"), bits: 64, index: 2, flags: unix.IFA_F_TEMPORARY},
		{addr: netip.MustParseAddr("2001:db8:4::1"), bits: 64, index: 2, flags: unix.IFA_F_DADFAILED},
		{addr: netip.MustParseAddr("2001:db8:5::1"), bits: 64, index: 2, flags: unix.IFA_F_PERMANENT},
		{addr: netip.MustParseAddr("fe80::1"), bits: 64, index: 2, scope: unix.RT_SCOPE_LINK},
		{addr: netip.MustParseAddr("2001:db8:6::1"), bits: 64, index: 3},
		{addr: netip.MustParseAddr("10.0.0.2"), bits: 24, index: 2, flags: unix.IFA_F_SECONDARY},
		{addr: netip.MustParseAddr("2001:db8:5::9"), bits: 128, index: 2, proto: addrProto},
	}
	var got []string
	for _, p := range subnets(addrs, 2, nil) {
		got = append(got, p.String())
	}
	want := []string{"2001:db8:5::1/64", "10.0.0.2/24", "2001:db8:1::1/64", "2001:db8:2::1/64"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWatchTellsOfIPv6(t *testing.T) {
	ns := roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	roottest.Eventually(t, "link-local addresses are settled", func() bool {
		settled := 0
		all, err := netlink.AddrList(nil, netlink.FAMILY_V6)
		must(t, err)
		for _, a := range all {
			if a.Flags&unix.IFA_F_TENTATIVE == 0 {
				settled++
			}
		}
		return settled >= 2 && settled == len(all)
	})
	h := newHost(t)
	changes := startWatch(t, h, ns)
	awaitChange(t, changes, "everything at the start", func(c Change) bool { return c == everything })
	must(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: link(t, "ptv0").Attrs().Index, IP: netip.MustParseAddr("2001:db8::7").AsSlice(),
		State: netlink.NUD_PERMANENT, HardwareAddr: []byte{2, 0, 0, 0, 0, 2},
	}))
	awaitChange(t, changes, "neighbour", func(c Change) bool { return c.Neighbours && !c.Addresses })
	operatorAdds(t, "ptv0", "2001:db8::1/64")
	awaitChange(t, changes, "address", func(c Change) bool { return c.Addresses })
	start := time.Now()
	syncTo(t, h, on("ptv0", "2001:db8::9"), nil, 1, 0)
	awaitChange(t, changes, "the VIP", func(c Change) bool { return c.Addresses })
	t.Logf("seen after %v", time.Since(start))
}
