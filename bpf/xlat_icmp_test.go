package bpf

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"
)

// errorRow is an error as it comes and as it leaves; out.kind 0: it cannot be said.
type errorRow struct {
	in, out errorHead
}

type errorHead struct {
	kind, code uint8
	rest       uint32
}

// RFC 7915, 4.2. The links carry 1500 bytes.
var errorsToSix = []errorRow{
	{errorHead{3, 0, 0}, errorHead{1, 0, 0}},
	{errorHead{3, 1, 0}, errorHead{1, 0, 0}},
	{errorHead{3, 2, 0}, errorHead{4, 1, 6}},
	{errorHead{3, 3, 0}, errorHead{1, 4, 0}},
	{errorHead{3, 4, 1400}, errorHead{2, 0, 1420}},
	{errorHead{3, 4, 1000}, errorHead{2, 0, 1280}},
	{errorHead{3, 4, 9000}, errorHead{2, 0, 1500}},
	{errorHead{3, 4, 0}, errorHead{2, 0, 1280}},
	{errorHead{3, 5, 0}, errorHead{1, 0, 0}},
	{errorHead{3, 8, 0}, errorHead{1, 0, 0}},
	{errorHead{3, 9, 0}, errorHead{1, 1, 0}},
	{errorHead{3, 10, 0}, errorHead{1, 1, 0}},
	{errorHead{3, 11, 0}, errorHead{1, 0, 0}},
	{errorHead{3, 13, 0}, errorHead{1, 1, 0}},
	{errorHead{3, 14, 0}, errorHead{}},
	{errorHead{3, 15, 0}, errorHead{1, 1, 0}},
	{errorHead{3, 16, 0}, errorHead{}},
	{errorHead{11, 0, 0}, errorHead{3, 0, 0}},
	{errorHead{11, 1, 0}, errorHead{3, 1, 0}},
	{errorHead{12, 0, 8 << 24}, errorHead{4, 0, 7}},
	{errorHead{12, 2, 16 << 24}, errorHead{4, 0, 24}},
	{errorHead{12, 0, 4 << 24}, errorHead{}},
	{errorHead{12, 1, 0}, errorHead{}},
}

// RFC 7915, 5.2.
var errorsToFour = []errorRow{
	{errorHead{1, 0, 0}, errorHead{3, 1, 0}},
	{errorHead{1, 1, 0}, errorHead{3, 10, 0}},
	{errorHead{1, 2, 0}, errorHead{3, 1, 0}},
	{errorHead{1, 3, 0}, errorHead{3, 1, 0}},
	{errorHead{1, 4, 0}, errorHead{3, 3, 0}},
	{errorHead{1, 5, 0}, errorHead{}},
	{errorHead{2, 0, 1400}, errorHead{3, 4, 1380}},
	{errorHead{2, 0, 900}, errorHead{3, 4, 1260}},
	{errorHead{2, 0, 9000}, errorHead{3, 4, 1480}},
	{errorHead{3, 0, 0}, errorHead{11, 0, 0}},
	{errorHead{3, 1, 0}, errorHead{11, 1, 0}},
	{errorHead{4, 0, 7}, errorHead{12, 0, 8 << 24}},
	{errorHead{4, 0, 5}, errorHead{12, 0, 2 << 24}},
	{errorHead{4, 0, 24}, errorHead{12, 0, 16 << 24}},
	{errorHead{4, 0, 2}, errorHead{}},
	{errorHead{4, 0, 900}, errorHead{}},
	{errorHead{4, 1, 6}, errorHead{3, 2, 0}},
	{errorHead{4, 2, 0}, errorHead{}},
}

// A router on each side, which has sent the error.
var (
	routerFour = map[bool]netip.AddrPort{true: netip.MustParseAddrPort("10.8.0.9:0"), false: netip.MustParseAddrPort("10.9.0.9:0")}
	routerSix  = map[bool]netip.AddrPort{true: netip.MustParseAddrPort("[fd00:8::9]:0"), false: netip.MustParseAddrPort("[fd00:9::9]:0")}
)

// complaint is an error that came in on one side of a crossing, about a packet that was sent there.
type complaint struct {
	*crossing
	back           bool // it comes from the endpoint's side
	quoted, before []byte
}

// quote sets what is quoted: d as it was sent to whom complains, and as its sender sent it. Of
// its L4, keep bytes are quoted and kept bytes passed on; 0: all.
func (c *complaint) quote(t *testing.T, d bpftest.Datagram, keep, kept int) {
	t.Helper()
	cut := func(d bpftest.Datagram, keep int) []byte {
		b, whole := d.Bytes(t)[14:], len(d.Transport(t))
		if d.Length > 0 {
			whole = d.Length
		}
		if keep > 0 {
			b = b[:len(b)-whole+keep]
		}
		return b
	}
	sent, original := c.toEndpoint(d), c.fromClient(d)
	if !c.back {
		sent, original = c.toClient(d), c.fromEndpoint(d)
	}
	c.quoted, c.before = cut(sent, keep), cut(original, kept)
}

// eachComplaint runs f for errors from both sides of a crossing of each kind.
func eachComplaint(t *testing.T, protocol uint8, f func(t *testing.T, c *complaint, toSix bool)) {
	t.Helper()
	eachFamily(t, protocol, func(t *testing.T, c *crossing, six bool) {
		for _, back := range []bool{true, false} {
			t.Run(fmt.Sprintf("from the endpoint's side=%v", back), func(t *testing.T) {
				f(t, &complaint{crossing: c, back: back}, six == back)
			})
		}
	})
}

func TestErrorsAreTranslatedBetweenFamilies(t *testing.T) {
	for _, protocol := range []uint8{bpftest.ProtocolTCP, bpftest.ProtocolUDP} {
		eachComplaint(t, protocol, func(t *testing.T, c *complaint, toSix bool) {
			rows := errorsToFour
			if toSix {
				rows = errorsToSix
			}
			for _, row := range rows {
				t.Run(fmt.Sprintf("%d,%d,%d", row.in.kind, row.in.code, row.in.rest), func(t *testing.T) {
					d := bpftest.Datagram{Flags: bpftest.ACK, Payload: bytes.Repeat([]byte("pontoon"), 60), TrafficClass: 0x28}
					for _, keep := range []int{0, 8, 16, 18, 64} { // the TCP checksum lies at 16
						c.quote(t, d, keep, keep)
						c.expect(t, row)
					}
				})
			}
			if flows := c.flows(); len(flows) != 1 {
				t.Errorf("flows: %+v", flows)
			}
		})
	}
}

func TestErrorAboutFragmentIsTranslated(t *testing.T) {
	eachComplaint(t, bpftest.ProtocolUDP, func(t *testing.T, c *complaint, toSix bool) {
		row := errorRow{errorHead{3, 3, 0}, errorHead{1, 4, 0}}
		if !toSix {
			row.in, row.out = row.out, row.in
		}
		c.quote(t, bpftest.Datagram{Payload: make([]byte, 400), ID: 0x1357, FragmentHeader: true, MoreFragments: true, Length: 200}, 0, 0)
		c.expect(t, row)
	})
}

// What a quoted packet of IPv6 has before its upper layer, the same packet of IPv4 does not have.
func TestErrorAboutPacketWithExtensionsIsTranslated(t *testing.T) {
	eachComplaint(t, bpftest.ProtocolTCP, func(t *testing.T, c *complaint, toSix bool) {
		if toSix {
			return
		}
		d := bpftest.Datagram{Flags: bpftest.ACK, Payload: make([]byte, 100)}
		c.quote(t, d, 0, 0)
		before := c.before
		d.FirstExtension, d.Extensions = 0, append(bpftest.Extension(60, 16), bpftest.Extension(0, 8)...)
		c.quote(t, d, 0, 0)
		c.before = before
		c.expect(t, errorRow{errorHead{1, 4, 0}, errorHead{3, 3, 0}})
	})
}

// expect sends an error that quotes c.quoted and demands one that quotes c.before.
func (c *complaint) expect(t *testing.T, row errorRow) {
	t.Helper()
	in, from, answer := c.fromEndpoint(bpftest.Datagram{}), c.out, c.toClient(bpftest.Datagram{HopLimit: 63})
	if !c.back {
		in, from, answer = c.fromClient(bpftest.Datagram{}), c.in, c.toEndpoint(bpftest.Datagram{HopLimit: 63})
	}
	in.Src = routerFour[c.back]
	if in.Dst.Addr().Is6() {
		in.Src = routerSix[c.back]
	}
	action, got := c.run(from, in.Error(t, row.in.kind, row.in.code, row.in.rest, c.quoted))
	if row.out.kind == 0 {
		if action != actDrop || c.drops("translate") == 0 {
			t.Errorf("action %d, drops %v", action, c.Stats().Drops)
		}
		return
	}
	want := answer.Error(t, row.out.kind, row.out.code, row.out.rest, c.before)
	copy(want[:12], got) // errors leave by the kernel's neighbour table, which writes the addresses
	expectFrame(t, action, want, got)
}

// TestErrorIsNoLongerThanItsFamilyAllows also holds that the sum of what was cut off is taken out.
func TestErrorIsNoLongerThanItsFamilyAllows(t *testing.T) {
	d := bpftest.Datagram{Flags: bpftest.ACK, Payload: bytes.Repeat([]byte("pontoon!"), 160), DontFragment: true}
	eachComplaint(t, bpftest.ProtocolTCP, func(t *testing.T, c *complaint, toSix bool) {
		row, keep, kept := errorRow{errorHead{1, 4, 0}, errorHead{3, 3, 0}}, 1280-88, 576-48
		if toSix {
			row, keep, kept = errorRow{row.out, row.in}, 1291, 1280-96
		}
		c.quote(t, d, keep, kept)
		c.expect(t, row)
	})
}

// RFC 4884: how long the quoted packet is stands in the head; extensions follow it.
func TestErrorGoesWithoutExtensions(t *testing.T) {
	d := bpftest.Datagram{Flags: bpftest.ACK, Payload: bytes.Repeat([]byte("pontoon!"), 30)}
	extension := []byte{0x20, 0, 0xdf, 0xff, 0, 8, 1, 1, 0, 1, 2, 3}
	eachComplaint(t, bpftest.ProtocolTCP, func(t *testing.T, c *complaint, toSix bool) {
		row := errorRow{errorHead{3, 0, 16 << 24}, errorHead{11, 0, 0}}
		c.quote(t, d, 128-40, 128-40)
		if toSix {
			row = errorRow{errorHead{11, 0, 32 << 16}, errorHead{3, 0, 0}}
			c.quote(t, d, 128-20, 128-20)
		}
		c.quoted = append(c.quoted, extension...)
		c.expect(t, row)
	})
}

func TestDamagedErrorStaysDamaged(t *testing.T) {
	eachComplaint(t, bpftest.ProtocolTCP, func(t *testing.T, c *complaint, toSix bool) {
		in, from := c.fromEndpoint(bpftest.Datagram{}), c.out
		if !c.back {
			in, from = c.fromClient(bpftest.Datagram{}), c.in
		}
		c.quote(t, bpftest.Datagram{Flags: bpftest.ACK, Payload: make([]byte, 100)}, 0, 0)
		kind := map[bool]uint8{true: 11, false: 3}[toSix]
		frame := in.Error(t, kind, 0, 0, c.quoted)
		frame[len(frame)-1] ^= 0x10
		if action, got := c.run(from, frame); action == actRedirect && bpftest.VerifyDatagram(got) == nil {
			t.Error("a damaged error has a right checksum now")
		}
	})
}

func TestErrorAboutUnknownConnectionIsDropped(t *testing.T) {
	c := newCrossing(t, true, bpftest.ProtocolTCP)
	other := c.toEndpoint(bpftest.Datagram{Flags: bpftest.ACK})
	other.Dst = netip.AddrPortFrom(other.Dst.Addr(), 9)
	in := c.fromEndpoint(bpftest.Datagram{})
	in.Dst = vipPort // so that the error is ours to judge
	other.Src = netip.AddrPortFrom(vip, c.snat.Port())
	if action, _ := c.run(c.out, in.Error(t, 3, 3, 0, other.Bytes(t)[14:])); action != actDrop || c.drops("icmp_unknown") != 1 {
		t.Errorf("action %d, drops %v", action, c.Stats().Drops)
	}
}
