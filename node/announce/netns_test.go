package announce

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

// newNetns is a namespace of the test's own with a veth pair ptv0-ptv1.
func newNetns(t *testing.T) netns.NsHandle {
	t.Helper()
	ns := roottest.Namespace(t)
	addVeth(t)
	return ns
}

func addVeth(t *testing.T) {
	t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = "ptv0"
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "ptv1"}))
	must(t, netlink.LinkSetUp(linkOf(t, "ptv1")))
	must(t, netlink.LinkSetUp(linkOf(t, "ptv0")))
	roottest.Eventually(t, "ptv0 running", func() bool {
		_, err := sockets{}.lookup("ptv0")
		return err == nil
	})
}

func linkOf(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// threeSteps is a schedule of three announcements. One that is late by a whole step
// takes the missed one with it, so a step is longer than a machine dawdles.
func threeSteps() []time.Duration {
	step := roottest.Patient(250 * ms)
	return []time.Duration{0, step, 2 * step}
}

// capture reads every ARP frame, or neighbour advertisement for testVIP6, that
// arrives at ptv1.
type capture struct {
	conn *packet.Conn
	done chan struct{}
	mu   sync.Mutex
	got  [][]byte
}

func newCapture(t *testing.T, on protocol) *capture {
	t.Helper()
	p, err := sockets{}.open(lane{link: "ptv1", proto: on}, linkState{index: linkOf(t, "ptv1").Attrs().Index})
	must(t, err)
	conn := p.(socket).conn
	c := &capture{conn: conn, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		buf := make([]byte, 256)
		for {
			n, _, err := conn.ReadFrom(buf)
			if errors.Is(err, unix.ENETDOWN) {
				continue
			}
			if err != nil {
				return
			}
			if on == ndp {
				// The kernel speaks too: for its own addresses, and to ask for others.
				c, err := parseNDP(buf[:n])
				if err != nil || buf[icmpAt] != typeAdvertise || c.addr != testVIP6 {
					continue
				}
			}
			c.mu.Lock()
			c.got = append(c.got, bytes.Clone(buf[:n]))
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-c.done
	})
	return c
}

// count says how many captured frames equal want, or all if want is nil.
func (c *capture) count(want []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, f := range c.got {
		if want == nil || bytes.Equal(f, want) {
			n++
		}
	}
	return n
}

func (c *capture) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = nil
}

func newSpeaker(t *testing.T, cfg L2Config) *L2 {
	t.Helper()
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	l, err := NewL2(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	return l
}

// startRun runs the speaker on a thread in ns until the test ends.
func startRun(t *testing.T, l *L2, ns netns.NsHandle) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := roottest.Go(ns, func() error { return l.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, ErrClosed) {
			t.Errorf("run: %v", err)
		}
	})
}

func hwOf(t *testing.T, name string) mac {
	t.Helper()
	return mac(linkOf(t, name).Attrs().HardwareAddr)
}

func TestBothFormsReachTheSegmentByteForByte(t *testing.T) {
	newNetns(t)
	c := newCapture(t, arp)
	l := newSpeaker(t, L2Config{})
	must(t, l.Announce(t.Context(), []Advert{{Addr: testVIP, Link: "ptv0", Epoch: 1}}))
	hw := fmt.Sprintf("%x", hwOf(t, "ptv0"))
	for _, form := range []string{requestHex, replyHex} {
		want := unhex(t, strings.ReplaceAll(form, "02000000000a", hw))
		roottest.Eventually(t, form, func() bool { return c.count(want) == 1 })
	}
	if n := c.count(nil); n != 2 {
		t.Errorf("%d frames, want 2", n)
	}
}

func TestHundredVIPsInOneBurst(t *testing.T) {
	newNetns(t)
	c := newCapture(t, arp)
	l := newSpeaker(t, L2Config{})
	var want []Advert
	for i := range 100 {
		want = append(want, Advert{Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), Link: "ptv0", Epoch: 1})
	}
	start := time.Now()
	must(t, l.Announce(t.Context(), want))
	took := time.Since(start)
	roottest.Eventually(t, "200 frames", func() bool { return c.count(nil) == 200 })
	t.Logf("100 VIPs announced in %v, on the peer after %v", took, time.Since(start))
	start = time.Now()
	must(t, l.Announce(t.Context(), want))
	t.Logf("the same set again: %v", time.Since(start))
}

func TestKernelNeighbourLearnsTheNewHolder(t *testing.T) {
	newNetns(t)
	peer := linkOf(t, "ptv1")
	a, err := netlink.ParseAddr("192.0.2.1/24")
	must(t, err)
	must(t, netlink.AddrAdd(peer, a))
	old := net.HardwareAddr{2, 9, 9, 9, 9, 9} // the dead master's
	must(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: peer.Attrs().Index, IP: testVIP.AsSlice(), HardwareAddr: old, State: netlink.NUD_STALE,
	}))
	l := newSpeaker(t, L2Config{})
	must(t, l.Announce(t.Context(), []Advert{{Addr: testVIP, Link: "ptv0", Epoch: 1}}))
	hw := hwOf(t, "ptv0")
	roottest.Eventually(t, "the neighbour entry changed", func() bool {
		all, err := netlink.NeighList(peer.Attrs().Index, netlink.FAMILY_V4)
		must(t, err)
		for _, n := range all {
			if n.IP.Equal(testVIP.AsSlice()) {
				return bytes.Equal(n.HardwareAddr, hw[:])
			}
		}
		return false
	})
}

func TestRepeatsNewEpochAndForeignClaimOnTheWire(t *testing.T) {
	ns := newNetns(t)
	c := newCapture(t, arp)
	l := newSpeaker(t, L2Config{Schedule: threeSteps(), Every: time.Hour})
	startRun(t, l, ns)
	must(t, l.Announce(t.Context(), []Advert{{Addr: testVIP, Link: "ptv0", Epoch: 1}}))
	roottest.Eventually(t, "three announcements", func() bool { return c.count(nil) == 6 })
	must(t, l.Announce(t.Context(), []Advert{{Addr: testVIP, Link: "ptv0", Epoch: 2}}))
	roottest.Eventually(t, "three more for the epoch", func() bool { return c.count(nil) == 12 })

	claim := gratuitous(mac{2, 9, 9, 9, 9, 9}, testVIP)[1].append(nil)
	_, err := c.conn.WriteTo(claim, &packet.Addr{HardwareAddr: broadcast[:]})
	must(t, err)
	roottest.Eventually(t, "the claim is counted", func() bool { return l.Stats().ForeignClaims == 1 })
	roottest.Eventually(t, "three more for the claim", func() bool { return c.count(nil) == 18 })
}

func TestLinkDownUpAndReplacedOnTheWire(t *testing.T) {
	ns := newNetns(t)
	c := newCapture(t, arp)
	l := newSpeaker(t, L2Config{Schedule: []time.Duration{0}, Every: time.Hour})
	startRun(t, l, ns)
	want := []Advert{{Addr: testVIP, Link: "ptv0", Epoch: 1}}
	must(t, l.Announce(t.Context(), want))
	roottest.Eventually(t, "first announcement", func() bool { return c.count(nil) == 2 })

	must(t, netlink.LinkSetDown(linkOf(t, "ptv1"))) // ptv0 loses its carrier
	roottest.Eventually(t, "the loss is noticed", func() bool { return l.linkFailing("ptv0") })
	must(t, netlink.LinkSetUp(linkOf(t, "ptv1")))
	roottest.Eventually(t, "announced after the carrier came back", func() bool { return c.count(nil) >= 4 })

	c.clear()
	must(t, netlink.LinkSetDown(linkOf(t, "ptv0"))) // too short to be seen by looking
	must(t, netlink.LinkSetUp(linkOf(t, "ptv0")))
	roottest.Eventually(t, "announced after a flap", func() bool { return c.count(nil) >= 2 })

	must(t, netlink.LinkDel(linkOf(t, "ptv0")))
	roottest.Eventually(t, "the removal is noticed", func() bool { return l.linkFailing("ptv0") })
	if err := l.Announce(t.Context(), []Advert{{Addr: testVIP, Link: "ptv0", Epoch: 2}}); err == nil {
		t.Error("announced on a link that is not there")
	}
	addVeth(t)
	c = newCapture(t, arp)
	roottest.Eventually(t, "announced on the new link", func() bool { return c.count(nil) >= 2 })
}

// linkFailing reports whether the speaker knows that the link cannot be used.
func (l *L2) linkFailing(name string) bool {
	l.io.Lock()
	defer l.io.Unlock()
	k, ok := l.lanes[lane{link: name}]
	return ok && k.port == nil
}

func TestLinkWithoutEthernetIsRefused(t *testing.T) {
	newNetns(t)
	must(t, netlink.LinkSetUp(linkOf(t, "lo")))
	l := newSpeaker(t, L2Config{})
	if err := l.Announce(t.Context(), []Advert{{Addr: testVIP, Link: "lo", Epoch: 1}}); !errors.Is(err, errNoMAC) {
		t.Errorf("got %v", err)
	}
}
