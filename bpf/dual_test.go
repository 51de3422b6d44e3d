package bpf

import (
	"context"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"
)

// family is one IP family's addresses on the test bench.
type family struct {
	name                 string
	vip, lb, pool        netip.Addr // pool: onearm's source on the endpoints' side
	client, other        netip.Addr
	endpoint1, endpoint2 netip.AddrPort
	icmp                 uint8
	header               int // of IP
}

var families = []family{
	{
		"IPv4", vip, lbAddress, lbAddress, client, netip.MustParseAddr("10.9.0.6"),
		endpoint1, endpoint2, bpftest.ProtoICMP, 20,
	},
	{
		"IPv6", netip.MustParseAddr("fd00:9::100"), netip.MustParseAddr("fd00:9::1"), netip.MustParseAddr("fd00:9::1"),
		netip.MustParseAddr("fd00:9::5"), netip.MustParseAddr("fd00:9::6"),
		netip.MustParseAddrPort("[fd00:8::21]:8080"), netip.MustParseAddrPort("[fd00:8::22]:8080"), bpftest.ProtoICMPv6, 40,
	},
}

func (f family) vipPort() netip.AddrPort    { return netip.AddrPortFrom(f.vip, 80) }
func (f family) clientPort() netip.AddrPort { return netip.AddrPortFrom(f.client, 40000) }

// source is where connections to the endpoint come from in the mode.
func (f family) source(mode Mode) netip.Addr {
	switch mode {
	case ModeFullNAT:
		return f.vip
	case ModeOneArm:
		return f.pool
	}
	return f.client
}

// duo is a bench of both families, seen from one of them.
type duo struct {
	*bench
	family
}

func newDuo(tb testing.TB, f family, change func(*Options)) *duo {
	tb.Helper()
	d := &duo{newBench(tb, change), f}
	d.ns.EnableSix()
	six := families[1]
	d.in.Address(six.lb.String() + "/64")
	d.in.Address(six.vip.String() + "/128")
	d.out.Address("fd00:8::1/64")
	for _, a := range []netip.Addr{client, families[0].other, six.client, six.other} {
		d.in.Neighbour(a.String(), d.far.MAC)
	}
	for _, a := range []netip.AddrPort{endpoint1, endpoint2, six.endpoint1, six.endpoint2} {
		d.out.Neighbour(a.Addr().String(), d.end.MAC)
	}
	return d
}

// serve configures one service of the protocol with one endpoint.
func (d *duo) serve(mode Mode, protocol uint8) Service {
	d.tb.Helper()
	s := Service{
		ID: 7, VIP: d.vipPort(), Protocol: protocol, Mode: mode, Algorithm: AlgorithmRR,
		Endpoints: []Endpoint{{Addr: d.endpoint1, Weight: 1}},
	}
	switch mode {
	case ModeDNAT:
	case ModeDSR:
		s.Endpoints[0].Addr = netip.AddrPortFrom(d.endpoint1.Addr(), 80)
	default:
		s.Endpoints[0].Sources = []netip.Addr{d.source(mode)}
	}
	d.configure(s)
	return s
}

func (d *duo) configure(services ...Service) {
	d.tb.Helper()
	vips := []netip.Addr{families[0].vip, families[1].vip}
	if err := d.Sync(context.Background(), Desired{VIPs: vips, Services: numbered(services...)}); err != nil {
		d.tb.Fatal(err)
	}
}

// send sends a frame from the client's side (or the endpoints').
func (d *duo) send(fromClient bool, f bpftest.Frame) (uint32, []byte) {
	d.tb.Helper()
	return d.run(d.side(fromClient, &f), f.Bytes())
}

// side fills in the MAC addresses and says on which interface the frame comes in.
func (d *duo) side(fromClient bool, f *bpftest.Frame) bpftest.Iface {
	if fromClient {
		f.SrcMAC, f.DstMAC = d.far.MAC, d.in.MAC
		return d.in
	}
	f.SrcMAC, f.DstMAC = d.end.MAC, d.out.MAC
	return d.out
}

// ports are the ends of a packet.
type ports struct{ src, dst netip.AddrPort }

func (p ports) turned() ports { return ports{p.dst, p.src} }

// frame is a packet of the protocol between the ends. flags are TCP's, and chosen so that they
// mean the same in SCTP.
func (p ports) frame(protocol, flags uint8, payload []byte) bpftest.Frame {
	f := bpftest.Frame{Src: p.src.Addr(), Dst: p.dst.Addr(), Protocol: protocol}
	switch protocol {
	case bpftest.ProtoTCP:
		f.L4 = bpftest.TCPBytes(p.src, p.dst, flags, 1000, 2000, payload)
	case bpftest.ProtoUDP:
		f.L4 = bpftest.UDPBytes(p.src, p.dst, payload)
	case bpftest.ProtoSCTP:
		tag := uint32(0x5eed)
		if flags == bpftest.SYN {
			tag = 0 // RFC 9260, 8.5.1
		}
		f.L4 = bpftest.SCTPBytes(p.src, p.dst, tag, sctpChunk(flags, payload))
	}
	return f
}

// sctpChunk is the chunk that stands where TCP has the flags.
func sctpChunk(flags uint8, payload []byte) []byte {
	switch {
	case flags == bpftest.SYN:
		return bpftest.Chunk(1, 0, append([]byte{0, 0, 0x5e, 0xed, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1}, payload...))
	case flags == bpftest.SYN|bpftest.ACK:
		return bpftest.Chunk(2, 0, append([]byte{0, 0, 0x5e, 0xed, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1}, payload...))
	case flags == bpftest.ACK && payload == nil:
		return bpftest.Chunk(10, 0, []byte("cookie"))
	case flags&bpftest.RST != 0:
		return bpftest.Chunk(6, 0, nil)
	}
	return bpftest.Chunk(0, 3, append([]byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, payload...))
}

// open establishes a connection; the result is what the endpoint sees.
func (d *duo) open(protocol uint8, client netip.AddrPort) ports {
	d.tb.Helper()
	asked := ports{client, d.vipPort()}
	action, out := d.send(true, asked.frame(protocol, bpftest.SYN, nil))
	if action != actRedirect {
		d.tb.Fatalf("first packet: action %d, drops %v", action, d.Stats().Drops)
	}
	l := d.layers(out)
	seen := ports{l.SrcP, l.DstP}
	if seen.dst == d.vipPort() { // DSR: the answer does not come this way
		d.send(true, asked.frame(protocol, bpftest.ACK, nil))
		return seen
	}
	if action, _ := d.send(false, seen.turned().frame(protocol, bpftest.SYN|bpftest.ACK, nil)); action != actRedirect {
		d.tb.Fatalf("answer: action %d, drops %v", action, d.Stats().Drops)
	}
	if action, _ := d.send(true, asked.frame(protocol, bpftest.ACK, nil)); action != actRedirect {
		d.tb.Fatalf("third packet: action %d, drops %v", action, d.Stats().Drops)
	}
	return seen
}

// layers takes a frame apart; all its checksums must be right.
func (d *duo) layers(frame []byte) bpftest.Layers {
	d.tb.Helper()
	l, err := bpftest.VerifyFrame(frame)
	if err != nil {
		d.tb.Fatalf("%v: %x", err, frame)
	}
	return l
}

// doom marks every established flow as one whose endpoint is gone.
func (d *duo) doom() {
	d.tb.Helper()
	for part, err := range dump(d.tb.Context(), d.maps.Flows) {
		if err != nil {
			d.tb.Fatal(err)
		}
		for i, key := range part.keys {
			f := part.values[i]
			f.Flags |= uint8(pontoonFlowFlagFLOW_F_DOOMED)
			if err := d.maps.Flows.Put(key, f); err != nil {
				d.tb.Fatal(err)
			}
		}
	}
}

// expectDrops demands that exactly the named reason was counted, n times.
func (d *duo) expectDrops(t *testing.T, reason string, n uint64) {
	t.Helper()
	for name, got := range d.Stats().Drops {
		want := uint64(0)
		if name == reason {
			want = n
		}
		if got != want {
			t.Errorf("drops for %s: %d, want %d", name, got, want)
		}
	}
}
