package bpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"
)

// Addresses of the bench's IPv6 side.
var (
	vipSix      = netip.MustParseAddr("fd00:9::100")
	clientSix   = netip.MustParseAddr("fd00:9::5")
	endpointSix = netip.MustParseAddrPort("[fd00:8::21]:8080")
	outerSix    = netip.MustParseAddr("fd00:8::1")
)

// newDualBench is newBench with both families.
func newDualBench(tb testing.TB) *bench {
	tb.Helper()
	b := newBench(tb, whole)
	b.ns.EnableSix()
	b.in.AddressSix("fd00:9::1/64")
	b.in.AddressSix(vipSix.String() + "/128")
	b.out.AddressSix(outerSix.String() + "/64")
	b.in.Neighbour(clientSix.String(), b.far.MAC)
	b.out.Neighbour(endpointSix.Addr().String(), b.end.MAC)
	return b
}

func (b *bench) syncDual(services ...Service) {
	b.tb.Helper()
	want := Desired{VIPs: []netip.Addr{vip, vipSix}, Services: numbered(services...)}
	if err := b.Sync(context.Background(), want); err != nil {
		b.tb.Fatal(err)
	}
}

// crossing is a service whose VIP and endpoint are of different families, seen from both sides.
type crossing struct {
	*bench
	client, vip, endpoint, snat netip.AddrPort
	protocol                    uint8
}

// newCrossing opens a connection through a service between the families. six: the client's side
// is IPv6.
func newCrossing(t *testing.T, six bool, protocol uint8) *crossing {
	t.Helper()
	c := &crossing{bench: newDualBench(t), protocol: protocol}
	source := vipSix
	if six {
		c.client, c.vip, c.endpoint = netip.AddrPortFrom(clientSix, 40000), netip.AddrPortFrom(vipSix, 80), endpoint1
		source = lbAddress
	} else {
		c.client, c.vip, c.endpoint = clientPort, vipPort, endpointSix
	}
	c.syncDual(Service{
		ID: 7, VIP: c.vip, Protocol: protocol, Mode: ModeFullNAT, Algorithm: AlgorithmRR,
		Endpoints: []Endpoint{{Addr: c.endpoint, Weight: 1, Sources: []netip.Addr{source}}},
	})
	_, out := c.forward(bpftest.Datagram{Flags: bpftest.SYN})
	c.snat = netip.AddrPortFrom(source, portAt(out))
	c.reply(bpftest.Datagram{Flags: bpftest.SYN | bpftest.ACK})
	c.forward(bpftest.Datagram{Flags: bpftest.ACK})
	if flows := c.flows(); len(flows) != 1 || flows[0].HalfOpen {
		t.Fatalf("no connection: %+v, drops %v", flows, c.Stats().Drops)
	}
	return c
}

// portAt reads the source port of a frame without options or extension headers.
func portAt(frame []byte) uint16 {
	if frame[12] == 0x86 {
		return binary.BigEndian.Uint16(frame[54:])
	}
	return binary.BigEndian.Uint16(frame[34:])
}

func (c *crossing) forward(d bpftest.Datagram) (uint32, []byte) {
	c.tb.Helper()
	return c.run(c.in, c.fromClient(d).Bytes(c.tb))
}

func (c *crossing) reply(d bpftest.Datagram) (uint32, []byte) {
	c.tb.Helper()
	return c.run(c.out, c.fromEndpoint(d).Bytes(c.tb))
}

func (c *crossing) fromClient(d bpftest.Datagram) bpftest.Datagram {
	d.Src, d.Dst, d.SrcMAC, d.DstMAC, d.Protocol = c.client, c.vip, c.far.MAC, c.in.MAC, c.protocol
	return d
}

func (c *crossing) toEndpoint(d bpftest.Datagram) bpftest.Datagram {
	d.Src, d.Dst, d.SrcMAC, d.DstMAC, d.Protocol = c.snat, c.endpoint, c.out.MAC, c.end.MAC, c.protocol
	return d
}

func (c *crossing) fromEndpoint(d bpftest.Datagram) bpftest.Datagram {
	d.Src, d.Dst, d.SrcMAC, d.DstMAC, d.Protocol = c.endpoint, c.snat, c.end.MAC, c.out.MAC, c.protocol
	return d
}

func (c *crossing) toClient(d bpftest.Datagram) bpftest.Datagram {
	d.Src, d.Dst, d.SrcMAC, d.DstMAC, d.Protocol = c.vip, c.client, c.in.MAC, c.far.MAC, c.protocol
	return d
}

// takeID copies what a translator makes up: the identification of an IPv4 packet that is no
// fragment, and the header checksum with it.
func takeID(want, got []byte) {
	if len(want) != len(got) || want[12] != 0x08 || want[20]&0x3f != 0 || want[21] != 0 {
		return
	}
	copy(want[18:20], got[18:20])
	want[24], want[25] = 0, 0
	binary.BigEndian.PutUint16(want[24:], headerSum(want[14:34]))
}

func expectFrame(t *testing.T, action uint32, want, got []byte) {
	t.Helper()
	if action != actRedirect {
		t.Fatalf("action %d", action)
	}
	takeID(want, got)
	if !bytes.Equal(want, got) {
		t.Fatalf("bytes differ\nwant %x\ngot  %x", want, got)
	}
	if err := bpftest.VerifyDatagram(got); err != nil {
		t.Error(err)
	}
}

var (
	mssOption   = []byte{2, 4, 0x23, 0x28, 1, 3, 3, 7} // 9000
	clampedMSS  = []byte{2, 4, 0x05, 0xa0, 1, 3, 3, 7} // 1440
	oddMSS      = []byte{1, 2, 4, 0x23, 0x28, 1, 1, 1}
	oddClamped  = []byte{1, 2, 4, 0x05, 0xa0, 1, 1, 1}
	smallMSS    = []byte{2, 4, 0x02, 0x18}
	nothing     = bytes.Repeat([]byte{1}, 8)        // options of no operation
	pastRoute   = []byte{131, 7, 8, 10, 0, 0, 1, 0} // a source route that has been followed
	ahead       = []byte{137, 7, 4, 10, 0, 0, 1, 0} // one that has not
	hopByHop    = []byte{0, 0, 1, 4, 0, 0, 0, 0}    // padding only
	destination = []byte{60, 0, 1, 4, 0, 0, 0, 0}   // the same, after which come options for the destination
	routed      = []byte{0, 0, 0, 0, 0, 0, 0, 0}    // routing header, no segments left
	chain       = append(bytes.Clone(destination), hopByHop...)
)

type translation struct {
	name      string
	protocol  uint8
	four, six bpftest.Datagram // the same packet in both forms
}

// translations holds in both directions; what does not is in the tests below.
func translations() []translation {
	body := bytes.Repeat([]byte("pontoon"), 33)
	big := bytes.Repeat([]byte("pontoon"), 200)
	tcp, udp := uint8(bpftest.ProtocolTCP), uint8(bpftest.ProtocolUDP)
	return []translation{
		{"segment", tcp, bpftest.Datagram{Flags: bpftest.ACK, Payload: body}, bpftest.Datagram{Flags: bpftest.ACK, Payload: body}},
		{"traffic class", tcp, bpftest.Datagram{Flags: bpftest.ACK, TrafficClass: 0xb9}, bpftest.Datagram{Flags: bpftest.ACK, TrafficClass: 0xb9}},
		{"large segment", tcp, bpftest.Datagram{Flags: bpftest.ACK, Payload: big, DontFragment: true}, bpftest.Datagram{Flags: bpftest.ACK, Payload: big}},
		{"odd length", tcp, bpftest.Datagram{Flags: bpftest.ACK, Payload: body[:3]}, bpftest.Datagram{Flags: bpftest.ACK, Payload: body[:3]}},
		{"small MSS", tcp, bpftest.Datagram{Flags: bpftest.SYN, TCPOptions: smallMSS}, bpftest.Datagram{Flags: bpftest.SYN, TCPOptions: smallMSS}},
		{"datagram", udp, bpftest.Datagram{Payload: body}, bpftest.Datagram{Payload: body}},
		{
			"first fragment", udp,
			bpftest.Datagram{Payload: big, ID: 0x4321, MoreFragments: true, Length: 800},
			bpftest.Datagram{Payload: big, ID: 0x4321, FragmentHeader: true, MoreFragments: true, Length: 800},
		},
		{
			"middle fragment", udp,
			bpftest.Datagram{Payload: big, ID: 0x4321, MoreFragments: true, Offset: 100, Length: 400},
			bpftest.Datagram{Payload: big, ID: 0x4321, FragmentHeader: true, MoreFragments: true, Offset: 100, Length: 400},
		},
		{
			"last fragment", udp,
			bpftest.Datagram{Payload: big, ID: 0x4321, Offset: 150},
			bpftest.Datagram{Payload: big, ID: 0x4321, FragmentHeader: true, Offset: 150},
		},
	}
}

// each runs f for a client of either family.
func eachFamily(t *testing.T, protocol uint8, f func(t *testing.T, c *crossing, six bool)) {
	t.Helper()
	for _, six := range []bool{true, false} {
		name := map[bool]string{true: "NAT64", false: "NAT46"}[six]
		t.Run(name, func(t *testing.T) { f(t, newCrossing(t, six, protocol), six) })
	}
}

func TestTranslatesBetweenFamilies(t *testing.T) {
	for _, protocol := range []uint8{bpftest.ProtocolTCP, bpftest.ProtocolUDP} {
		eachFamily(t, protocol, func(t *testing.T, c *crossing, six bool) {
			before := c.Stats().Counters["translated"]
			n := uint64(0)
			for _, row := range translations() {
				if row.protocol != protocol {
					continue
				}
				in, out := row.four, row.six
				if six {
					in, out = out, in
				}
				t.Run(row.name, func(t *testing.T) {
					sent := c.toEndpoint(out)
					sent.HopLimit = 63
					action, got := c.forward(in)
					expectFrame(t, action, sent.Bytes(t), got)
					answer := c.toClient(in)
					answer.HopLimit = 63
					action, got = c.reply(out)
					expectFrame(t, action, answer.Bytes(t), got)
				})
				n += 2
			}
			if got := c.Stats().Counters["translated"] - before; got != n {
				t.Errorf("%d packets counted as translated, want %d", got, n)
			}
			for reason, n := range c.Stats().Drops {
				if n > 0 {
					t.Errorf("%d drops for %s", n, reason)
				}
			}
		})
	}
}

func TestTranslatesWhatOnlyOneFamilyHas(t *testing.T) {
	body := []byte("pontoon!")
	plain := bpftest.Datagram{Flags: bpftest.ACK, Payload: body}
	crossings := map[bool]*crossing{true: newCrossing(t, true, bpftest.ProtocolTCP), false: newCrossing(t, false, bpftest.ProtocolTCP)}
	for _, row := range []struct {
		name  string
		six   bool
		in    bpftest.Datagram
		out   bpftest.Datagram
		drops bool
	}{
		{"options", false, bpftest.Datagram{Flags: bpftest.ACK, Payload: body, Options: nothing}, plain, false},
		{"most options", false, bpftest.Datagram{Flags: bpftest.ACK, Payload: body, Options: bytes.Repeat(nothing, 5)}, plain, false},
		{"finished source route", false, bpftest.Datagram{Flags: bpftest.ACK, Payload: body, Options: pastRoute}, plain, false},
		{"source route", false, bpftest.Datagram{Flags: bpftest.ACK, Payload: body, Options: ahead}, plain, true},
		{"don't fragment", false, bpftest.Datagram{Flags: bpftest.ACK, Payload: body, DontFragment: true}, plain, false},
		{"flow label", true, bpftest.Datagram{Flags: bpftest.ACK, Payload: body, FlowLabel: 0xfedcb}, plain, false},
		{"hop by hop", true, bpftest.Datagram{Flags: bpftest.ACK, Payload: body, Extensions: hopByHop, FirstExtension: 0}, plain, false},
		{"destination options", true, bpftest.Datagram{Flags: bpftest.ACK, Payload: body, Extensions: hopByHop, FirstExtension: 60}, plain, false},
		{"two extension headers", true, bpftest.Datagram{Flags: bpftest.ACK, Payload: body, Extensions: chain, FirstExtension: 0}, plain, false},
		{"finished routing header", true, bpftest.Datagram{Flags: bpftest.ACK, Payload: body, Extensions: routed, FirstExtension: 43}, plain, false},
		{
			"atomic fragment", true,
			bpftest.Datagram{Flags: bpftest.ACK, Payload: body, FragmentHeader: true, ID: 0x55667788},
			bpftest.Datagram{Flags: bpftest.ACK, Payload: body, ID: 0x7788},
			false,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := crossings[row.six]
			c.forward(plain) // so that the next hop is fresh, however long it took to come here
			action, got := c.forward(row.in)
			if row.drops {
				if action != actDrop || c.drops("translate") != 1 {
					t.Fatalf("action %d, drops %v", action, c.Stats().Drops)
				}
				return
			}
			sent := c.toEndpoint(row.out)
			sent.HopLimit = 63
			expectFrame(t, action, sent.Bytes(t), got)
		})
	}
}

func TestSegmentSizeIsClampedToWhatTheOtherFamilyCarries(t *testing.T) {
	eachFamily(t, bpftest.ProtocolTCP, func(t *testing.T, c *crossing, six bool) {
		for _, row := range []struct{ in, out []byte }{{mssOption, clampedMSS}, {oddMSS, oddClamped}} {
			in, out := bpftest.Datagram{Flags: bpftest.SYN, TCPOptions: row.in}, bpftest.Datagram{Flags: bpftest.SYN, TCPOptions: row.out}
			sent := c.toEndpoint(out)
			sent.HopLimit = 63
			action, got := c.forward(in)
			expectFrame(t, action, sent.Bytes(t), got)
			answer := c.toClient(out)
			answer.HopLimit = 63
			action, got = c.reply(in)
			expectFrame(t, action, answer.Bytes(t), got)
		}
	})
}

func TestDatagramWithoutChecksumGetsOne(t *testing.T) {
	c := newCrossing(t, false, bpftest.ProtocolUDP)
	for _, size := range []int{0, 1, 2, 3, 4, 5, 503, 504, 505, 1016, 1400} {
		payload := bytes.Repeat([]byte{0xa7, 0x31, 0x0c}, 500)[:size]
		sent := c.toEndpoint(bpftest.Datagram{Payload: payload, HopLimit: 63})
		action, got := c.forward(bpftest.Datagram{Payload: payload, NoUDPChecksum: true})
		expectFrame(t, action, sent.Bytes(t), got)
	}
	// The whole of a fragment is not here.
	action, _ := c.forward(bpftest.Datagram{Payload: make([]byte, 1000), NoUDPChecksum: true, MoreFragments: true, Length: 800})
	if action != actDrop || c.drops("translate") != 1 {
		t.Errorf("fragment without a checksum: action %d, drops %v", action, c.Stats().Drops)
	}
}
