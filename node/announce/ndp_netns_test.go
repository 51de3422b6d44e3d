package announce

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

// neighbour is the hardware address that ptv1's kernel has for addr, and the state.
func neighbour(t *testing.T, addr netip.Addr) (net.HardwareAddr, int) {
	t.Helper()
	all, err := netlink.NeighList(linkOf(t, "ptv1").Attrs().Index, netlink.FAMILY_V6)
	must(t, err)
	for _, n := range all {
		if n.IP.Equal(addr.AsSlice()) {
			return n.HardwareAddr, n.State
		}
	}
	return nil, 0
}

// addNoDAD gives a link an address that can be used at once.
func addNoDAD(t *testing.T, name, prefix string) {
	t.Helper()
	a, err := netlink.ParseAddr(prefix)
	must(t, err)
	a.Flags = unix.IFA_F_NODAD
	must(t, netlink.AddrAdd(linkOf(t, name), a))
}

func TestAdvertisementReachesTheSegmentByteForByte(t *testing.T) {
	for name, router := range map[string]bool{"router": true, "host": false} {
		t.Run(name, func(t *testing.T) {
			newNetns(t)
			c := newCapture(t, ndp)
			l := newSpeaker(t, L2Config{Router: router})
			must(t, l.Announce(t.Context(), []Advert{{Addr: testVIP6, Link: "ptv0", Epoch: 1}}))
			want := appendAdvertisement(nil, hwOf(t, "ptv0"), testVIP6, router)
			roottest.Eventually(t, "the advertisement arrives", func() bool { return c.count(want) == 1 })
			if n := c.count(nil); n != 1 {
				t.Errorf("%d frames, want 1", n)
			}
		})
	}
}

// A host that talked to the master that died must send to the new one at once,
// whatever it believed: a fresh entry, an old one, or one it was just probing.
func TestKernelNeighbourLearnsTheNewHolderOfIPv6(t *testing.T) {
	for name, state := range map[string]int{
		"reachable": netlink.NUD_REACHABLE, "stale": netlink.NUD_STALE, "probing": netlink.NUD_PROBE,
	} {
		t.Run(name, func(t *testing.T) {
			newNetns(t)
			addNoDAD(t, "ptv1", "2001:db8::1/64")
			old := net.HardwareAddr{2, 9, 9, 9, 9, 9} // the dead master's
			must(t, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: linkOf(t, "ptv1").Attrs().Index, IP: testVIP6.AsSlice(), HardwareAddr: old, State: state,
			}))
			if hw, _ := neighbour(t, testVIP6); !bytes.Equal(hw, old) {
				t.Fatalf("the entry to begin with is %s", hw)
			}
			l := newSpeaker(t, L2Config{Router: true})
			start := time.Now()
			must(t, l.Announce(t.Context(), []Advert{{Addr: testVIP6, Link: "ptv0", Epoch: 1}}))
			hw := hwOf(t, "ptv0")
			roottest.Eventually(t, "the neighbour entry changed", func() bool {
				now, _ := neighbour(t, testVIP6)
				return bytes.Equal(now, hw[:])
			})
			t.Logf("changed after %v", time.Since(start))
		})
	}
}

func TestRepeatsAndForeignClaimOfIPv6OnTheWire(t *testing.T) {
	ns := newNetns(t)
	c := newCapture(t, ndp)
	l := newSpeaker(t, L2Config{Schedule: threeSteps(), Every: time.Hour})
	startRun(t, l, ns)
	must(t, l.Announce(t.Context(), []Advert{{Addr: testVIP6, Link: "ptv0", Epoch: 1}}))
	roottest.Eventually(t, "three announcements", func() bool { return c.count(nil) == 3 })
	must(t, l.Announce(t.Context(), []Advert{{Addr: testVIP6, Link: "ptv0", Epoch: 2}}))
	roottest.Eventually(t, "three more for the epoch", func() bool { return c.count(nil) == 6 })

	other := mac{2, 9, 9, 9, 9, 9}
	inject := func(frame []byte) {
		_, err := c.conn.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:6]})
		must(t, err)
	}
	inject(appendAdvertisement(nil, other, testVIP6, true))
	roottest.Eventually(t, "the claim is counted", func() bool { return l.Stats().ForeignClaims == 1 })
	roottest.Eventually(t, "three more for the claim", func() bool { return c.count(nil) == 9 })
	inject(solicitation(other, testVIP6, netip.MustParseAddr("2001:db8::1")))
	roottest.Eventually(t, "the claim by a question is counted", func() bool { return l.Stats().ForeignClaims == 2 })
}

// The kernel of another host that really takes the address claims it by an
// advertisement of its own form.
func TestClaimByAnotherKernelIsHeard(t *testing.T) {
	ns := newNetns(t)
	l := newSpeaker(t, L2Config{Schedule: []time.Duration{0}, Every: time.Hour})
	startRun(t, l, ns)
	setSysctl(t, "ptv1", "ndisc_notify", "1")
	must(t, l.Announce(t.Context(), []Advert{{Addr: testVIP6, Link: "ptv0", Epoch: 1}}))
	peer := linkOf(t, "ptv1")
	addNoDAD(t, "ptv1", "2001:db8::200/64")
	changed := net.HardwareAddr{2, 8, 8, 8, 8, 8}
	must(t, netlink.LinkSetHardwareAddr(peer, changed)) // the kernel tells everybody
	roottest.Eventually(t, "the claim is counted", func() bool { return l.Stats().ForeignClaims >= 1 })
}

func TestHundredIPv6VIPsInOneBurst(t *testing.T) {
	newNetns(t)
	l := newSpeaker(t, L2Config{})
	var want []Advert
	for i := range 100 {
		want = append(want, Advert{Addr: netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", 0x100+i)), Link: "ptv0", Epoch: 1})
	}
	start := time.Now()
	must(t, l.Announce(t.Context(), want))
	t.Logf("100 IPv6 VIPs announced in %v", time.Since(start))
	if s := l.Stats(); s.Sent != 100 {
		t.Errorf("stats %+v", s)
	}
}

// Each packet that the socket takes costs the daemon; bulk traffic must not.
func TestSocketIgnoresOtherIPv6Traffic(t *testing.T) {
	ns := newNetns(t)
	addNoDAD(t, "ptv0", "2001:db8::2/64")
	addNoDAD(t, "ptv1", "2001:db8::1/64")
	l := newSpeaker(t, L2Config{})
	startRun(t, l, ns)
	must(t, l.Announce(t.Context(), []Advert{{Addr: testVIP6, Link: "ptv0", Epoch: 1}}))
	c := newCapture(t, ndp)
	frame := appendAdvertisement(nil, mac{2, 9, 9, 9, 9, 9}, testVIP6, false)
	frame[nextHeaderAt] = 17
	for range 50 {
		_, err := c.conn.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:6]})
		must(t, err)
	}
	claim := appendAdvertisement(nil, mac{2, 9, 9, 9, 9, 9}, testVIP6, false)
	_, err := c.conn.WriteTo(claim, &packet.Addr{HardwareAddr: claim[:6]})
	must(t, err)
	roottest.Eventually(t, "what came behind is heard", func() bool { return l.Stats().ForeignClaims == 1 })
	if s := l.Stats(); s.Malformed != 0 {
		t.Errorf("other packets were read: %+v", s)
	}
}

func setSysctl(t *testing.T, link, key, value string) {
	t.Helper()
	must(t, os.WriteFile(strings.Join([]string{"/proc/sys/net/ipv6/conf", link, key}, "/"), []byte(value), 0))
}
