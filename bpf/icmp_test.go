package bpf

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"
)

// routers are strangers on the way, by family, on the clients' and on the endpoints' side.
var routers = map[string]map[bool]netip.Addr{
	"IPv4": {true: netip.MustParseAddr("192.0.2.1"), false: netip.MustParseAddr("198.51.100.1")},
	"IPv6": {true: netip.MustParseAddr("2001:db8:1::1"), false: netip.MustParseAddr("2001:db8:2::1")},
}

// errorKinds are type, code and number of the errors that are translated.
var errorKinds = map[string]map[string][3]uint32{
	"IPv4": {"too big": {3, 4, 1400}, "port": {3, 3, 0}, "expired": {11, 0, 0}, "parameter": {12, 0, 9 << 24}},
	"IPv6": {"too big": {2, 0, 1400}, "port": {1, 4, 0}, "expired": {3, 0, 0}, "parameter": {4, 1, 9}},
}

// about is an ICMP error from a host about a packet, addressed to who sent that.
func (d *duo) about(from netip.Addr, kind [3]uint32, quoted bpftest.Frame, cut int) bpftest.Frame {
	ip := quoted.IP()
	if cut > 0 {
		ip = ip[:len(ip)-len(quoted.L4)+cut]
	}
	return bpftest.Frame{
		Src: from, Dst: quoted.Src, Protocol: d.icmp,
		L4: bpftest.Error(from, quoted.Src, uint8(kind[0]), uint8(kind[1]), kind[2], ip),
	}
}

// expectTranslated demands that an error comes out with the same words about another packet.
func (d *duo) expectTranslated(t *testing.T, in bpftest.Frame, action uint32, out []byte, want bpftest.Frame) {
	t.Helper()
	if action != actRedirect {
		t.Fatalf("action %d, drops %v", action, d.Stats().Drops)
	}
	d.layers(out)
	copy(want.SrcMAC, out[6:12])
	want.SrcMAC, want.DstMAC, want.TTL, want.ID = out[6:12], out[:6], 63, in.ID
	if !bytes.Equal(out, want.Bytes()) {
		t.Fatalf("got\n%x, want\n%x", out, want.Bytes())
	}
}

func TestErrorsAreTranslatedInsideAndOut(t *testing.T) {
	for _, f := range families {
		for _, mode := range []Mode{ModeFullNAT, ModeOneArm, ModeDNAT} {
			t.Run(f.name+" "+mode.String(), func(t *testing.T) {
				d := newDuo(t, f, nil)
				for _, protocol := range []uint8{protoTCP, protoUDP, protoSCTP} {
					d.serve(mode, protocol)
					seen := d.open(protocol, d.clientPort())
					t.Run(fmt.Sprintf("protocol %d", protocol), func(t *testing.T) { d.translateAll(t, mode, protocol, seen) })
				}
			})
		}
	}
}

// translateAll sends errors of every kind about packets of one connection from both sides. From a
// router and from the receiver itself, quoted whole and with eight bytes only, with and without
// options outside and inside.
func (d *duo) translateAll(t *testing.T, mode Mode, protocol uint8, seen ports) {
	asked := ports{d.clientPort(), d.vipPort()}
	payload := bytes.Repeat([]byte("quoted "), 9)
	n := d.Stats().Counters["icmp_error"]
	for name, kind := range errorKinds[d.name] {
		for _, row := range []struct {
			fromClient bool
			ours, was  ports // what we sent and what we had got
			kept       bool  // the router's own address is told
		}{
			{true, asked.turned(), seen.turned(), mode == ModeDNAT},
			{false, seen, asked, false},
		} {
			for _, cut := range []int{0, 8, 16, 18} {
				for _, itself := range []bool{false, true} {
					for _, options := range []bool{false, true} {
						from := routers[d.name][row.fromClient]
						if itself {
							from = row.ours.dst.Addr()
						}
						quoted := row.ours.frame(protocol, bpftest.ACK|bpftest.PSH, payload)
						original := row.was.frame(protocol, bpftest.ACK|bpftest.PSH, payload)
						quoted.TTL, original.TTL = 63, 63
						if protocol == protoSCTP { // its CRC is left as it was quoted
							copy(original.L4[8:12], quoted.L4[8:12])
						}
						if options {
							extend(&quoted)
							extend(&original)
						}
						in := d.about(from, kind, quoted, cut)
						source := row.was.dst.Addr()
						if row.kept && !itself {
							source = from
						}
						want := d.about(source, kind, original, cut)
						if options {
							in.Options, want.Options = make([]byte, 4), make([]byte, 4)
						}
						action, out := d.send(row.fromClient, in)
						what := fmt.Sprintf("%s from client's side %t, itself %t, cut %d, options %t", name, row.fromClient, itself, cut, options)
						t.Run(what, func(t *testing.T) { d.expectTranslated(t, in, action, out, want) })
						n++
					}
				}
			}
		}
	}
	if got := d.Stats().Counters["icmp_error"]; got != n {
		t.Errorf("%d errors counted, want %d", got, n)
	}
}

// extend gives a packet options, or all the extension headers that one may have, and makes it a
// first fragment.
func extend(f *bpftest.Frame) {
	if f.Src.Is4() {
		f.Options = make([]byte, 8)
		return
	}
	f.FirstHeader, f.More, f.ID = 0, true, 4711
	f.Extensions = append(bpftest.Extension(60, 8), append(bpftest.Extension(43, 24), make([]byte, 8)...)...)
	f.Extensions[32] = 44 // of a routing header that has been everywhere
}

func TestErrorAboutTheFirstPacketReachesTheClient(t *testing.T) {
	for _, f := range families {
		d := newDuo(t, f, nil)
		d.serve(ModeFullNAT, protoTCP)
		asked := ports{d.clientPort(), d.vipPort()}
		_, out := d.send(true, asked.frame(protoTCP, bpftest.SYN, nil))
		l := d.layers(out)
		kind := errorKinds[f.name]["port"]
		in := d.about(l.DstP.Addr(), kind, ports{l.SrcP, l.DstP}.frame(protoTCP, bpftest.SYN, nil), 0)
		action, out := d.send(false, in)
		d.expectTranslated(t, in, action, out, d.about(d.vip, kind, asked.frame(protoTCP, bpftest.SYN, nil), 0))
	}
}

func TestErrorAboutADatagramWithoutChecksum(t *testing.T) {
	d := newDuo(t, families[0], nil)
	d.serve(ModeFullNAT, protoUDP)
	seen := d.open(protoUDP, d.clientPort())
	kind := errorKinds[d.name]["port"]
	quoted, original := seen.frame(protoUDP, 0, nil), ports{d.clientPort(), d.vipPort()}.frame(protoUDP, 0, nil)
	for _, f := range []bpftest.Frame{quoted, original} {
		f.L4[6], f.L4[7] = 0, 0
	}
	in := d.about(seen.dst.Addr(), kind, quoted, 0)
	action, out := d.send(false, in)
	d.expectTranslated(t, in, action, out, d.about(d.vip, kind, original, 0))
}

func TestErrorsDoNotAdoptReplicas(t *testing.T) {
	d := newDuo(t, families[0], nil)
	d.serve(ModeFullNAT, protoTCP)
	seen := d.open(protoTCP, d.clientPort())
	key := pontoonFlowKey{
		Saddr: toAddr(seen.dst.Addr()), Daddr: toAddr(seen.src.Addr()), Sport: swap16(seen.dst.Port()), Dport: swap16(seen.src.Port()), Proto: protoTCP,
	}
	var before, after pontoonFlow
	if err := d.maps.Flows.Lookup(key, &before); err != nil {
		t.Fatal(err)
	}
	before.Flags |= flagReplica
	if err := d.maps.Flows.Put(key, before); err != nil {
		t.Fatal(err)
	}
	action, _ := d.send(false, d.about(seen.dst.Addr(), errorKinds["IPv4"]["too big"], seen.frame(protoTCP, bpftest.ACK, nil), 0))
	if err := d.maps.Flows.Lookup(key, &after); err != nil {
		t.Fatal(err)
	}
	if action != actRedirect || after != before {
		t.Errorf("action %d, flow changed from %+v to %+v", action, before, after)
	}
}

func TestErrorsAboutNothingOfOurs(t *testing.T) {
	for _, f := range families {
		d := newDuo(t, f, nil)
		d.serve(ModeFullNAT, protoTCP)
		seen := d.open(protoTCP, d.clientPort())
		stranger := netip.AddrPortFrom(d.other, 4711)
		kind := errorKinds[f.name]["port"]
		fragment := ports{d.vipPort(), d.clientPort()}.frame(protoTCP, bpftest.ACK, nil)
		fragment.Offset = 16
		onItsWay := ports{d.vipPort(), d.clientPort()}.frame(protoTCP, bpftest.ACK, nil)
		onItsWay.Extensions, onItsWay.FirstHeader = bpftest.Extension(protoTCP, 8), 43
		onItsWay.Extensions[3] = 1 // one stop is left
		endless := ports{d.vipPort(), d.clientPort()}.frame(protoTCP, bpftest.ACK, nil)
		endless.FirstHeader, endless.Extensions = 60, bytes.Repeat(bpftest.Extension(60, 8), 7)
		endless.Extensions[48] = protoTCP
		cut := d.about(d.client, kind, onItsWay, 0)
		cut.L4 = bpftest.Error(d.client, d.vip, uint8(kind[0]), uint8(kind[1]), 0, onItsWay.IP()[:d.header+4])
		other := ports{d.vipPort(), d.clientPort()}.frame(47, 0, nil)
		other.L4 = make([]byte, 20)
		known := ports{d.vipPort(), d.clientPort()}.frame(protoTCP, bpftest.ACK, nil)
		redirect := errorKinds[f.name]["port"]
		redirect[0] = map[string]uint32{"IPv4": 5, "IPv6": 100}[f.name]
		short := d.about(d.client, kind, known, 0)
		short.L4 = bpftest.Error(d.client, d.vip, uint8(kind[0]), uint8(kind[1]), 0, known.IP()[:d.header+4])
		drops := []bpftest.Frame{
			d.about(d.client, kind, ports{d.vipPort(), stranger}.frame(protoTCP, bpftest.ACK, nil), 0),
			d.about(d.client, kind, fragment, 0), d.about(d.client, kind, other, 0), d.about(d.client, redirect, known, 0), short,
		}
		if f.name == "IPv6" {
			drops = append(drops, d.about(d.client, kind, onItsWay, 0), d.about(d.client, kind, endless, 0), cut)
		}
		for i, in := range drops {
			if action, _ := d.send(true, in); action != actDrop {
				t.Errorf("%s: row %d: action %d", f.name, i, action)
			}
		}
		d.expectDrops(t, "icmp_unknown", uint64(len(drops)))
		// The host has connections of its own.
		own := ports{netip.AddrPortFrom(d.lb, 5000), stranger}.frame(protoTCP, bpftest.ACK, nil)
		for _, in := range []bpftest.Frame{d.about(d.client, kind, own, 0), d.about(seen.dst.Addr(), redirect, own, 0)} {
			d.side(true, &in)
			action, out := d.send(true, in)
			if action != actPass || !bytes.Equal(out, in.Bytes()) {
				t.Errorf("%s: error for the host: action %d", f.name, action)
			}
		}
		last := d.about(d.client, kind, known, 0)
		last.TTL = 1
		if action, _ := d.send(true, last); action != actDrop || d.drops("ttl") != 1 {
			t.Errorf("%s: at its last hop: action %d", f.name, action)
		}
	}
}

func TestErrorAboutAnEndpointsOwnAnswerReachesItByDSR(t *testing.T) {
	for _, f := range families {
		d := newDuo(t, f, nil)
		d.serve(ModeDSR, protoTCP)
		d.open(protoTCP, d.clientPort())
		for range 3 {
			in := d.about(routers[f.name][true], errorKinds[f.name]["too big"], ports{d.vipPort(), d.clientPort()}.frame(protoTCP, bpftest.ACK, []byte("answer")), 0)
			action, out := d.send(true, in)
			d.expectTranslated(t, in, action, out, in)
		}
		if n := d.Stats().Counters["icmp_error"]; n != 3 {
			t.Errorf("%d counted", n)
		}
	}
}

// RFC 2003, 4 and RFC 2473, 8: what is said about the outer packet is said on about the inner one.
func TestErrorAboutATunnelBecomesOneAboutThePacketInIt(t *testing.T) {
	rows := map[string][][2][3]uint32{
		"IPv4": {{{3, 4, 1400}, {3, 4, 1380}}, {{3, 0, 0}, {3, 1, 0}}, {{3, 2, 0}, {3, 1, 0}}, {{11, 0, 0}, {3, 1, 0}}},
		"IPv6": {{{2, 0, 1400}, {2, 0, 1360}}, {{1, 0, 0}, {1, 3, 0}}, {{3, 0, 0}, {1, 3, 0}}, {{4, 1, 0}, {1, 3, 0}}},
	}
	for _, f := range families {
		d := newDuo(t, f, nil)
		own := netip.MustParseAddr(map[string]string{"IPv4": "10.8.0.1", "IPv6": "fd00:8::1"}[f.name])
		s := Service{ID: 7, VIP: d.vipPort(), Protocol: protoTCP, Mode: ModeDSR, Tunnel: TunnelIPIP, Algorithm: AlgorithmRR}
		s.Endpoints = []Endpoint{{Addr: netip.AddrPortFrom(d.endpoint1.Addr(), 80), Weight: 1, Sources: []netip.Addr{own}}}
		d.configure(s)
		asked := ports{d.clientPort(), d.vipPort()}
		d.send(true, asked.frame(protoTCP, bpftest.SYN, nil))
		d.send(true, asked.frame(protoTCP, bpftest.ACK, nil))
		for _, size := range []int{0, 31, 900} {
			inner := asked.frame(protoTCP, bpftest.ACK|bpftest.PSH, bytes.Repeat([]byte{1, 2, 3}, size)[:size])
			outer := bpftest.Frame{Src: own, Dst: d.endpoint1.Addr(), Protocol: map[string]uint8{"IPv4": 4, "IPv6": 41}[f.name], L4: inner.IP()}
			for _, row := range rows[f.name] {
				for _, options := range []bool{false, true} {
					in := d.about(routers[f.name][false], row[0], outer, 0)
					if options {
						in.Options = make([]byte, 8)
					}
					action, out := d.send(false, in)
					if action != actRedirect {
						t.Fatalf("%s: action %d, drops %v", f.name, action, d.Stats().Drops)
					}
					l := d.layers(out)
					quoted := inner.IP()
					quoted = quoted[:min(len(quoted), 512)]
					want := bpftest.Error(d.vip, d.client, uint8(row[1][0]), uint8(row[1][1]), row[1][2], quoted)
					if l.Src != d.vip || l.Dst != d.client || !bytes.Equal(l.L4, want) {
						t.Errorf("%s -> %s\n%x, want\n%x", l.Src, l.Dst, l.L4, want)
					}
				}
			}
		}
		wrong := bpftest.Frame{Src: own, Dst: d.endpoint2.Addr(), Protocol: map[string]uint8{"IPv4": 4, "IPv6": 41}[f.name], L4: asked.frame(protoTCP, bpftest.ACK, nil).IP()}
		if action, _ := d.send(false, d.about(routers[f.name][false], rows[f.name][0][0], wrong, 0)); action != actPass {
			t.Errorf("a packet that we did not send: action %d", action)
		}
	}
}
