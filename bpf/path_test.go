package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/gopacket/gopacket/layers"
)

var (
	clientPort = netip.AddrPortFrom(client, 40000)
	vipPort    = netip.AddrPortFrom(vip, 80)
)

// tuple reads addresses and ports of a frame with or without IP options.
func tuple(frame []byte) (src, dst netip.AddrPort) {
	ip := frame[14:]
	l4 := ip[int(ip[0]&15)*4:]
	a, _ := netip.AddrFromSlice(ip[12:16])
	b, _ := netip.AddrFromSlice(ip[16:20])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(l4)), netip.AddrPortFrom(b, binary.BigEndian.Uint16(l4[2:]))
}

// expectRewritten demands that out is in with the given tuple, one less TTL and right checksums,
// and nothing else changed beyond MAC addresses.
func expectRewritten(t *testing.T, in, out []byte, src, dst netip.AddrPort) {
	t.Helper()
	if len(in) != len(out) {
		t.Fatalf("length changed from %d to %d", len(in), len(out))
	}
	if err := bpftest.VerifyChecksums(out); err != nil {
		t.Fatal(err)
	}
	gotSrc, gotDst := tuple(out)
	if gotSrc != src || gotDst != dst {
		t.Fatalf("sent as %s -> %s, want %s -> %s", gotSrc, gotDst, src, dst)
	}
	want := bytes.Clone(in)
	copy(want[:12], out[:12])
	ip, header := want[14:], int(want[14]&15)*4
	copy(ip[12:16], src.Addr().AsSlice())
	copy(ip[16:20], dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[header:], src.Port())
	binary.BigEndian.PutUint16(ip[header+2:], dst.Port())
	ip[8]--
	check := map[byte]int{6: 16, 17: 6}[ip[9]]
	copy(ip[10:12], out[14+10:14+12])
	copy(ip[header+check:header+check+2], out[14+header+check:14+header+check+2])
	if !bytes.Equal(want, out) {
		t.Fatalf("bytes differ beyond tuple, TTL and checksums\nwant %x\ngot  %x", want, out)
	}
}

// talk opens a connection through the bench and returns the tuple the endpoint sees.
func (b *bench) talk(c, v netip.AddrPort) (snat, endpoint netip.AddrPort) {
	b.tb.Helper()
	action, out := b.fromClient(bpftest.Packet{Src: c, Dst: v, Flags: bpftest.SYN})
	if action != actRedirect {
		b.tb.Fatalf("SYN of %s: action %d, drops %v", c, action, b.Stats().Drops)
	}
	snat, endpoint = tuple(out)
	if action, _ := b.fromEndpoint(bpftest.Packet{Src: endpoint, Dst: snat, Flags: bpftest.SYN | bpftest.ACK}); action != actRedirect {
		b.tb.Fatalf("SYN-ACK to %s: action %d", c, action)
	}
	if action, _ := b.fromClient(bpftest.Packet{Src: c, Dst: v, Flags: bpftest.ACK}); action != actRedirect {
		b.tb.Fatalf("ACK of %s: action %d", c, action)
	}
	return snat, endpoint
}

func TestRewritesBothDirectionsInEveryMode(t *testing.T) {
	for _, mode := range []Mode{ModeFullNAT, ModeOneArm, ModeDNAT} {
		for _, options := range []bool{false, true} {
			name := mode.String()
			if options {
				name += " with IP and TCP options"
			}
			t.Run(name, func(t *testing.T) {
				b := newBench(t, nil)
				b.sync(service(mode, endpoint1))
				snat, _ := b.talk(clientPort, vipPort)
				want := sourceOf(mode)
				if mode == ModeDNAT {
					want = client
					if snat.Port() != clientPort.Port() {
						t.Errorf("dnat changed the client's port to %d", snat.Port())
					}
				} else if low := uint16(1024 + 3*8064); snat.Port() < low || snat.Port() >= low+8064 {
					t.Errorf("source port %d is not of slot 3", snat.Port())
				}
				if snat.Addr() != want {
					t.Errorf("source is %s, want %s", snat.Addr(), want)
				}
				for i := range 5 { // past the next-hop cache's learning
					p := bpftest.Packet{
						SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: clientPort, Dst: vipPort, Flags: bpftest.ACK | bpftest.PSH,
						Seq: 7, Ack: 9, IPOptions: options, TCPOptions: options, Payload: bytes.Repeat([]byte{byte(i)}, 101),
					}
					in := p.Bytes(t)
					action, out := b.run(b.in, in)
					if action != actRedirect {
						t.Fatalf("action %d", action)
					}
					expectRewritten(t, in, out, snat, endpoint1)
					if !bytes.Equal(out[:6], b.end.MAC) || !bytes.Equal(out[6:12], b.out.MAC) {
						t.Errorf("packet %d: MACs are %x and %x", i, out[:6], out[6:12])
					}
					p.SrcMAC, p.DstMAC, p.Src, p.Dst = b.end.MAC, b.out.MAC, endpoint1, snat
					in = p.Bytes(t)
					if action, out = b.run(b.out, in); action != actRedirect {
						t.Fatalf("reply: action %d", action)
					}
					expectRewritten(t, in, out, vipPort, clientPort)
				}
			})
		}
	}
}

func TestHandshakeToClose(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	expect := func(step string, half bool, state FlowState) {
		t.Helper()
		flows := b.flows()
		if len(flows) != 1 || flows[0].HalfOpen != half || flows[0].State != state {
			t.Fatalf("after %s: %+v", step, flows)
		}
	}
	_, out := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	expect("SYN", true, StateSyn)
	snat, _ := tuple(out)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	expect("second SYN", true, StateSyn)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	expect("ACK without SYN-ACK", true, StateSyn)
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.SYN | bpftest.ACK})
	expect("SYN-ACK", true, StateSynAck)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	expect("ACK", false, StateEstablished)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK})
	expect("FIN", false, StateFin)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK})
	expect("second FIN of the same side", false, StateFin)
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.FIN | bpftest.ACK})
	expect("FIN of the endpoint", false, StateClosed)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	expect("last ACK", false, StateClosed)
	if f := b.flows()[0]; f.Packets != 9 {
		t.Errorf("%d packets counted, want 9", f.Packets)
	}
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	expect("SYN of a new connection", true, StateSyn)
	if n := b.Stats().Counters["replaced"]; n != 1 {
		t.Errorf("replaced %d, want 1", n)
	}
}

func TestSynOnEstablishedFlowPassesThrough(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	snat, _ := b.talk(clientPort, vipPort)
	action, out := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	if src, _ := tuple(out); action != actRedirect || src != snat {
		t.Errorf("action %d, source %s, want %s", action, src, snat)
	}
	if f := b.flows(); len(f) != 1 || f[0].State != StateEstablished {
		t.Errorf("flows: %+v", f)
	}
}

func TestResetClosesAndTrafficOfItsSenderRevives(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	snat, _ := b.talk(clientPort, vipPort)
	state := func() FlowState { return b.flows()[0].State }
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.RST})
	if state() != StateClosed {
		t.Fatalf("after RST: %s", state())
	}
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK, Payload: []byte("under way")})
	if state() != StateClosed {
		t.Fatalf("data that was under way when the RST came: %s", state())
	}
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: []byte("alive")})
	if state() != StateEstablished {
		t.Fatalf("after data from the side that had sent the RST: %s", state())
	}
}

func TestRefusedConnectionIsToldToTheClient(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	_, out := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	snat, _ := tuple(out)
	action, out := b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.RST | bpftest.ACK})
	if src, dst := tuple(out); action != actRedirect || src != vipPort || dst != clientPort {
		t.Errorf("RST: action %d, %s -> %s", action, src, dst)
	}
	if f := b.flows(); len(f) != 1 || f[0].State != StateRefused || !f[0].HalfOpen {
		t.Errorf("flows: %+v", f)
	}
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	if f := b.flows(); len(f) != 1 || f[0].State != StateSyn {
		t.Errorf("after another SYN: %+v", f)
	}
}

func TestUDPReplyPromotes(t *testing.T) {
	for _, none := range []bool{false, true} {
		b := newBench(t, nil)
		s := service(ModeFullNAT, endpoint1)
		s.Protocol = protoUDP
		b.sync(s)
		p := bpftest.Packet{
			SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: clientPort, Dst: vipPort,
			Protocol: layers.IPProtocolUDP, NoUDPChecksum: none, Payload: []byte("question"),
		}
		in := p.Bytes(t)
		action, out := b.run(b.in, in)
		if action != actRedirect {
			t.Fatalf("action %d", action)
		}
		snat, _ := tuple(out)
		expectRewritten(t, in, out, snat, endpoint1)
		if none && (out[40] != 0 || out[41] != 0) {
			t.Error("a checksum was put where there was none")
		}
		if f := b.flows(); len(f) != 1 || !f[0].HalfOpen {
			t.Fatalf("one way: %+v", f)
		}
		action, out = b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Protocol: layers.IPProtocolUDP, Payload: []byte("answer")})
		if src, dst := tuple(out); action != actRedirect || src != vipPort || dst != clientPort {
			t.Errorf("answer: action %d, %s -> %s", action, src, dst)
		}
		if f := b.flows(); len(f) != 1 || f[0].HalfOpen || f[0].State != StateEstablished {
			t.Fatalf("two way: %+v", f)
		}
	}
}

func TestSynToUnknownPortIsAnsweredWithReset(t *testing.T) {
	for _, row := range []struct {
		name     string
		packet   bpftest.Packet
		seq, ack uint32
		flags    byte
	}{
		{"SYN", bpftest.Packet{Flags: bpftest.SYN, Seq: 1000}, 0, 1001, bpftest.RST | bpftest.ACK},
		{"SYN with options", bpftest.Packet{Flags: bpftest.SYN, Seq: 1000, TCPOptions: true}, 0, 1001, bpftest.RST | bpftest.ACK},
		{"SYN with data", bpftest.Packet{Flags: bpftest.SYN, Seq: 1<<32 - 1, Payload: []byte("early")}, 0, 5, bpftest.RST | bpftest.ACK},
		{"SYN-ACK", bpftest.Packet{Flags: bpftest.SYN | bpftest.ACK, Seq: 5, Ack: 77}, 77, 0, bpftest.RST},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := newBench(t, nil)
			b.sync(service(ModeFullNAT, endpoint1))
			row.packet.Src, row.packet.Dst = clientPort, netip.AddrPortFrom(vip, 81)
			action, out := b.fromClient(row.packet)
			if action != actRedirect || len(out) != 54 {
				t.Fatalf("action %d, %d bytes, drops %v", action, len(out), b.Stats().Drops)
			}
			if err := bpftest.VerifyChecksums(out); err != nil {
				t.Error(err)
			}
			if src, dst := tuple(out); src != row.packet.Dst || dst != clientPort {
				t.Errorf("reset goes %s -> %s", src, dst)
			}
			if !bytes.Equal(out[:6], b.far.MAC) || !bytes.Equal(out[6:12], b.in.MAC) {
				t.Errorf("MACs are %x and %x", out[:6], out[6:12])
			}
			seq, ack := binary.BigEndian.Uint32(out[38:]), binary.BigEndian.Uint32(out[42:])
			if seq != row.seq || ack != row.ack || out[47] != row.flags {
				t.Errorf("seq %d ack %d flags %#x, want %d %d %#x", seq, ack, out[47], row.seq, row.ack, row.flags)
			}
			if n := b.Stats().Counters["refused"]; n != 1 {
				t.Errorf("refused %d", n)
			}
		})
	}
}

func TestVerdicts(t *testing.T) {
	other := netip.MustParseAddrPort("10.8.0.77:80")
	udp, icmp := layers.IPProtocolUDP, layers.IPProtocolICMPv4
	for _, row := range []struct {
		name    string
		packet  bpftest.Packet
		action  uint32
		drop    string
		counter string
	}{
		{"not for a VIP", bpftest.Packet{Dst: other, Flags: bpftest.SYN}, actPass, "", ""},
		{"not for a VIP, fragment", bpftest.Packet{Dst: other, Fragment: 10}, actPass, "", ""},
		{"not for a VIP, ICMP", bpftest.Packet{Dst: other, Protocol: icmp, ICMPType: 8}, actPass, "", ""},
		{"echo request to a VIP", bpftest.Packet{Dst: vipPort, Protocol: icmp, ICMPType: 8}, actPass, "", "echo"},
		{"other ICMP to a VIP", bpftest.Packet{Dst: vipPort, Protocol: icmp, ICMPType: 13}, actDrop, "icmp", ""},
		{"fragment to a VIP", bpftest.Packet{Dst: vipPort, Fragment: 10, Payload: []byte("rest")}, actDrop, "fragment", ""},
		{"first fragment to a VIP", bpftest.Packet{Dst: vipPort, MoreFragments: true, Flags: bpftest.SYN}, actRedirect, "", "created"},
		{"other protocol to a VIP", bpftest.Packet{Dst: vipPort, Protocol: 47, Payload: []byte("gre gre gre")}, actDrop, "protocol", ""},
		{"segment without a flow", bpftest.Packet{Dst: vipPort, Flags: bpftest.ACK}, actDrop, "no_flow", ""},
		{"RST without a flow", bpftest.Packet{Dst: vipPort, Flags: bpftest.RST}, actDrop, "no_flow", ""},
		{"SYN-FIN", bpftest.Packet{Dst: vipPort, Flags: bpftest.SYN | bpftest.FIN}, actDrop, "no_flow", ""},
		{"segment to an unknown port", bpftest.Packet{Dst: netip.AddrPortFrom(vip, 81), Flags: bpftest.ACK}, actDrop, "no_service", ""},
		{"UDP to an unknown port", bpftest.Packet{Dst: vipPort, Protocol: udp}, actDrop, "no_service", ""},
		{"SYN with its last breath", bpftest.Packet{Dst: vipPort, Flags: bpftest.SYN, TTL: 1}, actRedirect, "ttl", "expired"},
		{"service without endpoints", bpftest.Packet{Dst: netip.AddrPortFrom(vip, 90), Flags: bpftest.SYN}, actDrop, "no_endpoint", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := newBench(t, nil)
			empty := service(ModeFullNAT)
			empty.ID, empty.VIP = 8, netip.AddrPortFrom(vip, 90)
			b.sync(service(ModeFullNAT, endpoint1), empty)
			row.packet.Src, row.packet.SrcMAC, row.packet.DstMAC = clientPort, b.far.MAC, b.in.MAC
			in := row.packet.Bytes(t)
			action, out := b.run(b.in, in)
			if action != row.action {
				t.Errorf("action %d, want %d", action, row.action)
			}
			if action == actPass && !bytes.Equal(in, out) {
				t.Error("a packet that was passed on was changed")
			}
			stats := b.Stats()
			for reason, n := range stats.Drops {
				if want := map[bool]uint64{true: 1}[reason == row.drop]; n != want {
					t.Errorf("drops for %s: %d, want %d", reason, n, want)
				}
			}
			if row.counter != "" && stats.Counters[row.counter] != 1 {
				t.Errorf("counter %s: %d", row.counter, stats.Counters[row.counter])
			}
		})
	}
}

func TestFramesThatAreNotOursAreLeftAlone(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	syn := bpftest.Packet{SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: clientPort, Dst: vipPort, Flags: bpftest.SYN}.Bytes(t)
	stranger := bytes.Clone(syn)
	copy(stranger, []byte{2, 0, 0, 0, 0, 9})
	broadcast := bytes.Clone(syn)
	copy(broadcast, []byte{255, 255, 255, 255, 255, 255})
	arp := bytes.Clone(syn)
	arp[12], arp[13] = 8, 6
	v6 := bytes.Clone(syn)
	v6[12], v6[13] = 0x86, 0xdd
	for name, frame := range map[string][]byte{"for another host": stranger, "broadcast": broadcast, "arp": arp, "ipv6": v6} {
		action, out := b.run(b.in, frame)
		if action != actPass || !bytes.Equal(frame, out) {
			t.Errorf("%s: action %d", name, action)
		}
	}
	if f := b.flows(); len(f) != 0 {
		t.Errorf("flows: %+v", f)
	}
}

func TestRoundRobinHonoursWeightsExactly(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.Endpoints[0].Weight, s.Endpoints[1].Weight = 30, 10
	b.sync(s)
	seen := map[netip.AddrPort]int{}
	for i := range 40 {
		_, endpoint := b.talk(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
		seen[endpoint]++
	}
	if seen[endpoint1] != 30 || seen[endpoint2] != 10 {
		t.Errorf("%v", seen)
	}
}

func TestMaglevNamesTheSameEndpointOnEveryNode(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.Algorithm, s.Seed = AlgorithmMaglev, 99
	a.sync(s)
	s.Endpoints[0], s.Endpoints[1] = s.Endpoints[1], s.Endpoints[0]
	b.sync(s)
	seen := map[netip.AddrPort]int{}
	for i := range 200 {
		c := netip.AddrPortFrom(client, uint16(2000+i))
		_, one := a.talk(c, vipPort)
		_, two := b.talk(c, vipPort)
		if one != two {
			t.Fatalf("%s goes to %s on one node and to %s on the other", c, one, two)
		}
		seen[one]++
	}
	if seen[endpoint1] < 60 || seen[endpoint2] < 60 {
		t.Errorf("uneven: %v", seen)
	}
}
