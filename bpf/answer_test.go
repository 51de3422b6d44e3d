package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"
)

// expectAnswer demands that the answer to frame goes back to where it came from.
func (d *duo) expectAnswer(t *testing.T, in bpftest.Frame, action uint32, out []byte) bpftest.Layers {
	t.Helper()
	if action != actRedirect {
		t.Fatalf("action %d, drops %v, counters %v", action, d.Stats().Drops, d.Stats().Counters)
	}
	l := d.layers(out)
	if !bytes.Equal(l.Link[:6], in.SrcMAC) || !bytes.Equal(l.Link[6:], in.DstMAC) {
		t.Errorf("MACs are %x", l.Link)
	}
	if l.Src != in.Dst || l.Dst != in.Src || l.VLAN != in.VLAN || len(l.Options) != 0 {
		t.Errorf("answer %s -> %s, tag %d, options %x", l.Src, l.Dst, l.VLAN, l.Options)
	}
	return l
}

// expectError is expectAnswer for an ICMP error that quotes the frame.
func (d *duo) expectError(t *testing.T, in bpftest.Frame, action uint32, out []byte, kind, code uint8) bpftest.Layers {
	t.Helper()
	l := d.expectAnswer(t, in, action, out)
	if l.Protocol != d.icmp || l.L4[0] != kind || l.L4[1] != code {
		t.Errorf("protocol %d, type %d, code %d; want type %d, code %d", l.Protocol, l.L4[0], l.L4[1], kind, code)
	}
	want := in.IP()
	want = want[:min(len(want), 512)]
	if !bytes.Equal(l.L4[8:], want) {
		t.Errorf("quoted\n%x, want\n%x", l.L4[8:], want)
	}
	return l
}

// shapes are the ways in which a packet can come that an answer must not be confused by.
func (d *duo) shapes(f bpftest.Frame) map[string]bpftest.Frame {
	optioned, tagged := f, f
	optioned.Options = bytes.Repeat([]byte{1}, 12)
	optioned.Extensions, optioned.FirstHeader = bpftest.Extension(f.Protocol, 16), 60
	tagged.VLAN = 23
	return map[string]bpftest.Frame{"plain": f, "with options": optioned, "tagged": tagged}
}

var portUnreachable = map[string][2]uint8{"IPv4": {3, 3}, "IPv6": {1, 4}}

func TestPacketsOfADoomedFlowAreAnsweredOnBothSides(t *testing.T) {
	for _, f := range families {
		for _, mode := range []Mode{ModeFullNAT, ModeOneArm, ModeDNAT, ModeDSR} {
			t.Run(f.name+" TCP "+mode.String(), func(t *testing.T) {
				d := newDuo(t, f, nil)
				d.serve(mode, protoTCP)
				seen := d.open(protoTCP, d.clientPort())
				d.doom()
				asked := ports{d.clientPort(), d.vipPort()}
				rows := map[bool]ports{true: asked, false: seen.turned()}
				if mode == ModeDSR {
					delete(rows, false)
				}
				answered := uint64(0)
				for fromClient, ends := range rows {
					for name, in := range d.shapes(ends.frame(protoTCP, bpftest.ACK|bpftest.PSH, []byte("still here"))) {
						d.side(fromClient, &in)
						action, out := d.send(fromClient, in)
						l := d.expectAnswer(t, in, action, out)
						if seq, flags := binary.BigEndian.Uint32(l.L4[4:]), l.L4[13]; seq != 2000 || flags != bpftest.RST || len(l.L4) != 20 {
							t.Errorf("%s: seq %d, flags %#x, %d bytes", name, seq, flags, len(l.L4))
						}
						answered++
					}
					d.send(fromClient, ends.frame(protoTCP, bpftest.RST, nil))
					if n := d.Stats().Counters["refused"]; n != answered {
						t.Errorf("refused %d, want %d: a reset is not answered", n, answered)
					}
				}
				d.expectDrops(t, "doomed", answered+uint64(len(rows)))
			})
		}
		t.Run(f.name+" UDP", func(t *testing.T) {
			d := newDuo(t, f, nil)
			d.serve(ModeFullNAT, protoUDP)
			seen := d.open(protoUDP, d.clientPort())
			d.doom()
			for fromClient, ends := range map[bool]ports{true: {d.clientPort(), d.vipPort()}, false: seen.turned()} {
				for _, size := range []int{0, 1, 3, 100, 484, 485, 1200} {
					for name, in := range d.shapes(ends.frame(protoUDP, 0, bytes.Repeat([]byte{7, 9}, size)[:size])) {
						t.Run(fmt.Sprintf("%d bytes %s", size, name), func(t *testing.T) {
							d.side(fromClient, &in)
							action, out := d.send(fromClient, in)
							d.expectError(t, in, action, out, portUnreachable[f.name][0], portUnreachable[f.name][1])
						})
					}
				}
			}
		})
	}
}

// RFC 9293, 3.10.7.1: without an ACK the reset acknowledges what came.
func TestResetAcknowledgesWhatHasNoAcknowledgement(t *testing.T) {
	for _, f := range families {
		d := newDuo(t, f, nil)
		d.serve(ModeFullNAT, protoTCP)
		in := ports{d.clientPort(), netip.AddrPortFrom(d.vip, 81)}.frame(protoTCP, bpftest.SYN, []byte("early"))
		for name, in := range d.shapes(in) {
			d.side(true, &in)
			action, out := d.send(true, in)
			l := d.expectAnswer(t, in, action, out)
			ack, flags := binary.BigEndian.Uint32(l.L4[8:]), l.L4[13]
			if ack != 1006 || flags != bpftest.RST|bpftest.ACK {
				t.Errorf("%s: ack %d, flags %#x", name, ack, flags)
			}
		}
	}
}

func TestLastHopIsToldToTheSender(t *testing.T) {
	kinds := map[string]uint8{"IPv4": 11, "IPv6": 3}
	for _, f := range families {
		for _, protocol := range []uint8{protoTCP, protoUDP} {
			t.Run(fmt.Sprintf("%s protocol %d", f.name, protocol), func(t *testing.T) {
				d := newDuo(t, f, nil)
				d.serve(ModeDNAT, protocol)
				seen := d.open(protocol, d.clientPort())
				n := uint64(0)
				for fromClient, ends := range map[bool]ports{true: {d.clientPort(), d.vipPort()}, false: seen.turned()} {
					for _, in := range d.shapes(ends.frame(protocol, bpftest.ACK, []byte("x"))) {
						in.TTL = 1
						d.side(fromClient, &in)
						action, out := d.send(fromClient, in)
						d.expectError(t, in, action, out, kinds[f.name], 0)
						n++
					}
				}
				if got := d.Stats().Counters["expired"]; got != n {
					t.Errorf("expired %d, want %d", got, n)
				}
				d.expectDrops(t, "ttl", n)
			})
		}
	}
}

func TestErrorsAreLimitedPerSecond(t *testing.T) {
	d := newDuo(t, families[0], nil)
	d.serve(ModeFullNAT, protoUDP)
	d.open(protoUDP, d.clientPort())
	d.doom()
	in := ports{d.clientPort(), d.vipPort()}.frame(protoUDP, 0, []byte("x"))
	for range 6000 { // more than two seconds of two CPUs allow, within less
		d.send(true, in)
	}
	stats := d.Stats()
	if stats.Counters["answer_limited"] == 0 || stats.Counters["refused"]+stats.Counters["answer_limited"] != 6000 {
		t.Errorf("refused %d, limited %d", stats.Counters["refused"], stats.Counters["answer_limited"])
	}
}

func TestNoErrorForPacketsWithoutOneSender(t *testing.T) {
	sources := map[string][]string{
		"IPv4": {"224.0.0.1", "255.255.255.255", "0.0.0.0", "127.0.0.1"},
		"IPv6": {"ff02::1", "::", "::1"},
	}
	for _, f := range families {
		d := newDuo(t, f, nil)
		d.serve(ModeFullNAT, protoUDP)
		for i, source := range sources[f.name] {
			from := netip.AddrPortFrom(netip.MustParseAddr(source), 40000)
			in := ports{from, d.vipPort()}.frame(protoUDP, 0, []byte("x"))
			in.TTL = 1
			if action, _ := d.send(true, in); action != actDrop {
				t.Errorf("%s: action %d", source, action)
			}
			d.expectDrops(t, "martian", uint64(i)+1)
		}
		if n := d.Stats().Counters["expired"]; n != 0 {
			t.Errorf("%d answers", n)
		}
	}
}

// A packet that is larger than the way out takes is not cut, but its sender is told what would fit.
func TestSenderLearnsTheSizeThatFits(t *testing.T) {
	kinds := map[string][2]uint8{"IPv4": {3, 4}, "IPv6": {2, 0}}
	for _, f := range families {
		for _, protocol := range []uint8{protoTCP, protoUDP} {
			d := newDuo(t, f, nil)
			d.out.SetMTU(1300)
			d.serve(ModeFullNAT, protocol)
			d.open(protocol, d.clientPort())
			fits := 1300 - f.header - map[uint8]int{protoTCP: 20, protoUDP: 8}[protocol]
			asked := ports{d.clientPort(), d.vipPort()}
			if action, _ := d.send(true, asked.frame(protocol, bpftest.ACK, make([]byte, fits))); action != actRedirect || d.Stats().Counters["too_big"] != 0 {
				t.Fatalf("%s: what fits: action %d", f.name, action)
			}
			n := uint64(0)
			for _, in := range d.shapes(asked.frame(protocol, bpftest.ACK, make([]byte, fits+1))) {
				d.side(true, &in)
				action, out := d.send(true, in)
				l := d.expectError(t, in, action, out, kinds[f.name][0], kinds[f.name][1])
				if mtu := binary.BigEndian.Uint32(l.L4[4:]); mtu != 1300 {
					t.Errorf("%s: MTU %d", f.name, mtu)
				}
				n++
			}
			d.expectDrops(t, "fragmentation_needed", n)
			if got := d.Stats().Counters["too_big"]; got != n {
				t.Errorf("%s: %d answers, want %d", f.name, got, n)
			}
		}
	}
}

// RFC 9260, 8.4: one who does not know the association says so with the tag of the packet, or with the
// one that an INIT brings.
func TestSCTPIsAnsweredWithAbort(t *testing.T) {
	for _, f := range families {
		d := newDuo(t, f, nil)
		d.serve(ModeFullNAT, protoSCTP)
		closed := ports{d.clientPort(), netip.AddrPortFrom(d.vip, 81)}
		seen := d.open(protoSCTP, d.clientPort())
		d.doom()
		asked := ports{d.clientPort(), d.vipPort()}
		shutdown := asked.frame(protoSCTP, bpftest.ACK, []byte("x"))
		shutdown.L4 = bpftest.SCTPBytes(asked.src, asked.dst, 0x5eed, bpftest.Chunk(8, 0, nil))
		for i, row := range []struct {
			fromClient  bool
			in          bpftest.Frame
			kind, flags byte
		}{
			{true, closed.frame(protoSCTP, bpftest.SYN, nil), 6, 0},
			{true, asked.frame(protoSCTP, bpftest.PSH, []byte("data")), 6, 1},
			{false, seen.turned().frame(protoSCTP, bpftest.PSH, []byte("data")), 6, 1},
			{true, shutdown, 14, 1},
		} {
			for name, in := range d.shapes(row.in) {
				d.side(row.fromClient, &in)
				action, out := d.send(row.fromClient, in)
				l := d.expectAnswer(t, in, action, out)
				want := bpftest.SCTPBytes(netip.AddrPortFrom(l.Src, l.SrcP.Port()), l.DstP, 0x5eed, bpftest.Chunk(row.kind, row.flags, nil))
				if !bytes.Equal(l.L4, want) {
					t.Errorf("%s row %d %s: %x, want %x", f.name, i, name, l.L4, want)
				}
			}
		}
		if action, _ := d.send(true, asked.frame(protoSCTP, bpftest.RST, nil)); action != actDrop {
			t.Errorf("an ABORT: action %d", action)
		}
	}
}
