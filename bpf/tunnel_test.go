package bpf

import (
	"bytes"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"
)

// direct is a bench with a DSR service, in one family.
type direct struct {
	*bench
	client, vip, endpoint, outer netip.AddrPort
	protocol                     uint8
}

func newDirect(t *testing.T, six bool, protocol uint8, tunnel Tunnel) *direct {
	t.Helper()
	d := &direct{bench: newDualBench(t), protocol: protocol}
	outer := netip.MustParseAddr("10.8.0.1")
	if six {
		d.client, d.vip = netip.AddrPortFrom(clientSix, 40000), netip.AddrPortFrom(vipSix, 80)
		d.endpoint, outer = netip.AddrPortFrom(endpointSix.Addr(), 80), outerSix
	} else {
		d.client, d.vip, d.endpoint = clientPort, vipPort, netip.AddrPortFrom(endpoint1.Addr(), 80)
	}
	d.outer = netip.AddrPortFrom(outer, 0)
	e := Endpoint{Addr: d.endpoint, Weight: 1}
	if tunnel == TunnelIPIP {
		e.Sources = []netip.Addr{outer}
	}
	d.syncDual(Service{
		ID: 7, VIP: d.vip, Protocol: protocol, Mode: ModeDSR, Tunnel: tunnel, Algorithm: AlgorithmRR, Endpoints: []Endpoint{e},
	})
	return d
}

// send runs a packet of the client's; its second result is what it was, without Ethernet.
func (d *direct) send(p bpftest.Datagram) (action uint32, sent, got []byte) {
	d.tb.Helper()
	p.Src, p.Dst, p.SrcMAC, p.DstMAC, p.Protocol = d.client, d.vip, d.far.MAC, d.in.MAC, d.protocol
	sent = p.Bytes(d.tb)
	action, got = d.run(d.in, sent)
	return action, sent, got
}

// oneHopLess is the frame after a router.
func oneHopLess(frame []byte) []byte {
	out := bytes.Clone(frame)
	if out[12] == 0x86 {
		out[14+7]--
		return out
	}
	out[14+8]--
	header := out[14 : 14+4*int(out[14]&15)]
	header[10], header[11] = 0, 0
	check := headerSum(header)
	header[10], header[11] = byte(check>>8), byte(check)
	return out
}

func directPackets(protocol uint8, six bool) map[string]bpftest.Datagram {
	body := bytes.Repeat([]byte("pontoon"), 30)
	rows := map[string]bpftest.Datagram{
		"plain":          {Flags: bpftest.ACK, Payload: body},
		"don't fragment": {Flags: bpftest.ACK, Payload: body, DontFragment: true},
		"ECN":            {Flags: bpftest.ACK, Payload: body, TrafficClass: 0xbb},
		"empty":          {Flags: bpftest.ACK},
	}
	if protocol == bpftest.ProtocolUDP {
		rows["fragment"] = bpftest.Datagram{Payload: body, ID: 9, FragmentHeader: six, MoreFragments: true, Length: 96}
		rows["the rest"] = bpftest.Datagram{Payload: body, ID: 9, FragmentHeader: six, Offset: 12}
	}
	if six {
		rows["extension"] = bpftest.Datagram{Flags: bpftest.ACK, Payload: body, Extensions: hopByHop, FirstExtension: 60}
	} else {
		rows["options"] = bpftest.Datagram{Flags: bpftest.ACK, Payload: body, Options: nothing}
	}
	return rows
}

// eachDirect runs f for both protocols and families of one form of DSR, once a connection stands.
func eachDirect(t *testing.T, tunnel Tunnel, f func(t *testing.T, d *direct, six bool)) {
	t.Helper()
	for _, six := range []bool{false, true} {
		for _, protocol := range []uint8{bpftest.ProtocolTCP, bpftest.ProtocolUDP} {
			t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[six]+map[bool]string{true: " UDP", false: " TCP"}[protocol == bpftest.ProtocolUDP], func(t *testing.T) {
				d := newDirect(t, six, protocol, tunnel)
				d.send(bpftest.Datagram{Flags: bpftest.SYN})
				d.send(bpftest.Datagram{Flags: bpftest.ACK})
				f(t, d, six)
				for reason, n := range d.Stats().Drops {
					if n > 0 {
						t.Errorf("%d drops for %s", n, reason)
					}
				}
			})
		}
	}
}

func TestDirectReturnByMACChangesNothingElse(t *testing.T) {
	eachDirect(t, TunnelL2, func(t *testing.T, d *direct, six bool) {
		for _, name := range []string{"plain", "don't fragment", "ECN", "empty", "fragment", "the rest", "extension", "options"} {
			p, ok := directPackets(d.protocol, six)[name]
			if !ok {
				continue
			}
			action, sent, got := d.send(p)
			want := oneHopLess(sent)
			copy(want, d.end.MAC)
			copy(want[6:], d.out.MAC)
			if action != actRedirect || !bytes.Equal(want, got) {
				t.Errorf("%s: action %d\nwant %x\ngot  %x", name, action, want, got)
			}
		}
	})
}

func TestTunnelCarriesThePacketWhole(t *testing.T) {
	eachDirect(t, TunnelIPIP, func(t *testing.T, d *direct, six bool) {
		outer := bpftest.Datagram{SrcMAC: d.out.MAC, DstMAC: d.end.MAC, Src: d.outer, Dst: d.endpoint, Protocol: 4}
		if six {
			outer.Protocol = 41
		}
		before, n := d.Stats().Counters["encapsulated"], uint64(0)
		var label uint32
		for _, name := range []string{"plain", "don't fragment", "ECN", "empty", "fragment", "the rest", "extension", "options"} {
			p, ok := directPackets(d.protocol, six)[name]
			if !ok {
				continue
			}
			action, sent, got := d.send(p)
			n++
			out := outer
			out.TrafficClass, out.DontFragment = p.TrafficClass, p.DontFragment
			if six && len(got) > 18 {
				out.FlowLabel = uint32(got[15]&15)<<16 | uint32(got[16])<<8 | uint32(got[17])
				if label != 0 && label != out.FlowLabel {
					t.Errorf("%s: flow label %x, was %x", name, out.FlowLabel, label)
				}
				label = out.FlowLabel
			}
			want := out.Around(t, oneHopLess(sent)[14:])
			if len(want) == len(got) && !six && want[20]&0x3f == 0 { // the outer identification is made up
				copy(want[18:20], got[18:20])
				want[24], want[25] = 0, 0
				check := headerSum(want[14:34])
				want[24], want[25] = byte(check>>8), byte(check)
			}
			if action != actRedirect || !bytes.Equal(want, got) {
				t.Errorf("%s: action %d\nwant %x\ngot  %x", name, action, want, got)
			}
		}
		if six && label == 0 {
			t.Error("no flow label")
		}
		if got := d.Stats().Counters["encapsulated"] - before; got != n {
			t.Errorf("%d packets counted as encapsulated, want %d", got, n)
		}
	})
}

func TestDirectReturnFollowsOneSideOfAConnection(t *testing.T) {
	for _, tunnel := range []Tunnel{TunnelL2, TunnelIPIP} {
		for _, six := range []bool{false, true} {
			d := newDirect(t, six, bpftest.ProtocolTCP, tunnel)
			for _, step := range []struct {
				flags uint8
				half  bool
				state FlowState
			}{
				{bpftest.SYN, true, StateSyn},
				{bpftest.SYN, true, StateSyn},
				{bpftest.ACK, false, StateEstablished},
				{bpftest.ACK | bpftest.PSH, false, StateEstablished},
				{bpftest.FIN | bpftest.ACK, false, StateFin},
				{bpftest.ACK, false, StateFin},
				{bpftest.RST, false, StateClosed},
				{bpftest.SYN, true, StateSyn},
			} {
				if action, _, _ := d.send(bpftest.Datagram{Flags: step.flags}); action != actRedirect {
					t.Fatalf("tunnel %d, flags %x: action %d, drops %v", tunnel, step.flags, action, d.Stats().Drops)
				}
				flows := d.flows()
				if len(flows) != 1 || flows[0].HalfOpen != step.half || flows[0].State != step.state {
					t.Fatalf("tunnel %d, after flags %x: %+v", tunnel, step.flags, flows)
				}
			}
		}
	}
}

func TestDirectReturnPromotesSecondDatagram(t *testing.T) {
	for _, tunnel := range []Tunnel{TunnelL2, TunnelIPIP} {
		d := newDirect(t, false, bpftest.ProtocolUDP, tunnel)
		for _, half := range []bool{true, false, false} {
			d.send(bpftest.Datagram{Payload: []byte("hello")})
			if flows := d.flows(); len(flows) != 1 || flows[0].HalfOpen != half {
				t.Fatalf("tunnel %d: %+v", tunnel, flows)
			}
		}
	}
}
