package bpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// pair is a bench with an SCTP service, and what both ends say.
type pair struct {
	*bench
	vip, client, endpoint netip.AddrPort
	snat                  netip.AddrPort // learned from the client's first packet
	own                   netip.Addr     // of the load balancer, on the endpoint's side
}

// newPair makes a bench of one family.
func newPair(tb testing.TB, v6 bool) *pair {
	tb.Helper()
	p := &pair{bench: newBench(tb, nil)}
	v, c, e, own := vip, client, endpoint1.Addr(), lbAddress
	if v6 {
		v, c = netip.MustParseAddr("fd00:9::100"), netip.MustParseAddr("fd00:9::5")
		e, own = netip.MustParseAddr("fd00:8::21"), netip.MustParseAddr("fd00:8::1")
		p.ns.Do(func() {
			for _, name := range []string{"all", "default", "lo", "eth1", "eth2"} {
				p.ns.Sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "0")
				p.ns.Sysctl("net/ipv6/conf/"+name+"/forwarding", "1")
			}
		})
		p.in.Address("fd00:9::1/64")
		p.out.Address("fd00:8::1/64")
		p.in.Neighbour(c.String(), p.far.MAC)
		p.out.Neighbour(e.String(), p.end.MAC)
	}
	p.vip, p.client, p.own = netip.AddrPortFrom(v, 2905), netip.AddrPortFrom(c, 40000), own
	p.endpoint = netip.AddrPortFrom(e, 5000)
	return p
}

// serve makes the service one of the mode, with the endpoint's port, for another client.
func (p *pair) serve(mode Mode, port uint16) {
	p.tb.Helper()
	p.another()
	p.endpoint = netip.AddrPortFrom(p.endpoint.Addr(), port)
	s := Service{ID: 7, VIP: p.vip, Protocol: protoSCTP, Mode: mode, Algorithm: AlgorithmRR, Endpoints: []Endpoint{{Addr: p.endpoint, Weight: 1}}}
	switch mode {
	case ModeFullNAT:
		s.Endpoints[0].Sources = []netip.Addr{p.vip.Addr()}
	case ModeOneArm:
		s.Endpoints[0].Sources = []netip.Addr{p.own}
	}
	if err := p.Sync(context.Background(), Desired{VIPs: []netip.Addr{p.vip.Addr()}, Services: numbered(s)}); err != nil {
		p.tb.Fatal(err)
	}
}

// another makes the client one that has not been here.
func (p *pair) another() {
	p.client, p.snat = netip.AddrPortFrom(p.client.Addr(), p.client.Port()+1), netip.AddrPort{}
}

// flow returns the client's connection; false: there is none, or more than one.
func (p *pair) flow() (Flow, bool) {
	p.tb.Helper()
	var found []Flow
	for _, f := range p.flows() {
		if f.Client == p.client {
			found = append(found, f)
		}
	}
	if len(found) != 1 {
		return Flow{}, false
	}
	return found[0], true
}

// say sends chunks of one side and returns the frame that went in, what came out and the action.
func (p *pair) say(client bool, tag uint32, chunks ...bpftest.SCTPChunk) (in []byte, action uint32, out []byte) {
	p.tb.Helper()
	if client {
		in = bpftest.SCTP{SrcMAC: p.far.MAC, DstMAC: p.bench.in.MAC, Src: p.client, Dst: p.vip, Tag: tag, Chunks: chunks}.Bytes()
		action, out = p.run(p.bench.in, in)
	} else {
		in = bpftest.SCTP{SrcMAC: p.end.MAC, DstMAC: p.bench.out.MAC, Src: p.endpoint, Dst: p.snat, Tag: tag, Chunks: chunks}.Bytes()
		action, out = p.run(p.bench.out, in)
	}
	return in, action, out
}

// ends reads addresses and ports of an SCTP frame.
func ends(tb testing.TB, frame []byte) (src, dst netip.AddrPort) {
	tb.Helper()
	ip, packet, err := bpftest.SplitSCTP(frame)
	if err != nil {
		tb.Fatal(err)
	}
	a, b := ip[12:16], ip[16:20]
	if len(ip) == 40 {
		a, b = ip[8:24], ip[24:40]
	}
	from, _ := netip.AddrFromSlice(a)
	to, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(from, binary.BigEndian.Uint16(packet)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(packet[2:]))
}

func chunk4(kind uint8, value ...byte) bpftest.SCTPChunk {
	return bpftest.SCTPChunk{Type: kind, Value: value}
}

var (
	sctpInit       = chunk4(bpftest.SCTPInit, make([]byte, 16)...)
	sctpInitAck    = chunk4(bpftest.SCTPInitAck, make([]byte, 40)...)
	sctpCookieEcho = chunk4(bpftest.SCTPCookieEcho, make([]byte, 90)...)
	sctpCookieAck  = chunk4(bpftest.SCTPCookieAck)
	sctpData       = chunk4(bpftest.SCTPData, []byte("twelve bytes and then the payload")...)
	sctpSack       = chunk4(bpftest.SCTPSack, make([]byte, 12)...)
	sctpShutdown   = chunk4(bpftest.SCTPShutdown, 0, 0, 0, 1)
	sctpShutAck    = chunk4(bpftest.SCTPShutdownAck)
	sctpShutDone   = chunk4(bpftest.SCTPShutdownComplete)
	sctpAbort      = chunk4(bpftest.SCTPAbort)
	sctpHeartbeat  = chunk4(bpftest.SCTPHeartbeat, make([]byte, 40)...)
	sctpError      = chunk4(bpftest.SCTPError, 0, 3, 0, 8, 0, 0, 0, 1)
)

// associate makes an association through the bench.
func (p *pair) associate() {
	p.tb.Helper()
	_, action, out := p.say(true, 0, sctpInit)
	if action != actRedirect {
		p.tb.Fatalf("INIT: action %d, drops %v", action, p.Stats().Drops)
	}
	p.snat, _ = ends(p.tb, out)
	p.say(false, 1, sctpInitAck)
	p.say(true, 2, sctpCookieEcho)
	if f, ok := p.flow(); !ok || f.State != StateEstablished {
		p.tb.Fatalf("flow: %+v", f)
	}
}

func TestSCTPIsRewrittenBothWaysInEveryMode(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		p := newPair(t, v6)
		for _, mode := range []Mode{ModeFullNAT, ModeOneArm, ModeDNAT} {
			for _, port := range []uint16{2905, 5000} {
				p.serve(mode, port)
				p.associate()
				if want := p.client; mode == ModeDNAT && p.snat != want {
					t.Errorf("the endpoint sees %s, want %s", p.snat, want)
				}
				for i := range 5 { // past the next-hop cache's learning
					data := chunk4(bpftest.SCTPData, bytes.Repeat([]byte{7}, 13+31*i)...)
					in, action, out := p.say(true, 2, sctpSack, data)
					p.expect(in, action, out, p.snat, p.endpoint)
					in, action, out = p.say(false, 1, sctpSack, data)
					p.expect(in, action, out, p.vip, p.client)
				}
			}
		}
	}
}

// expect demands that out is in with the given tuple, one hop less and right checksums, and
// nothing else changed beyond MAC addresses.
func (p *pair) expect(in []byte, action uint32, out []byte, src, dst netip.AddrPort) {
	p.tb.Helper()
	if action != actRedirect {
		p.tb.Fatalf("action %d, drops %v", action, p.Stats().Drops)
	}
	if a, b := ends(p.tb, out); a != src || b != dst {
		p.tb.Fatalf("sent as %s -> %s, want %s -> %s", a, b, src, dst)
	}
	want := bytes.Clone(in)
	copy(want, out[:12])
	addresses, ttl, header := 26, 22, 20
	if src.Addr().Is6() {
		addresses, ttl, header = 22, 21, 40
	} else {
		copy(want[24:26], out[24:26])
	}
	copy(want[addresses:], src.Addr().AsSlice())
	copy(want[addresses+len(src.Addr().AsSlice()):], dst.Addr().AsSlice())
	want[ttl]--
	binary.BigEndian.PutUint16(want[14+header:], src.Port())
	binary.BigEndian.PutUint16(want[16+header:], dst.Port())
	if src.Port() != binary.BigEndian.Uint16(in[14+header:]) || dst.Port() != binary.BigEndian.Uint16(in[16+header:]) {
		copy(want[22+header:26+header], out[22+header:26+header])
	}
	if !bytes.Equal(want, out) {
		p.tb.Fatalf("bytes differ beyond tuple, hops and checksums\nwant %x\ngot  %x", want, out)
	}
}

// The checksum is corrected from the four bytes of the ports and the length alone: every length
// that a small packet has, and some of those that a test run takes, each with other bytes.
func TestSCTPChecksumIsRightForEveryLength(t *testing.T) {
	p := newPair(t, false)
	p.bench.out.SetMTU(9000)
	p.end.SetMTU(9000)
	p.serve(ModeFullNAT, 5000)
	p.associate()
	random := rand.New(rand.NewPCG(1, 2))
	for n := 0; n < 3500; n++ {
		if n > 1500 {
			n += random.IntN(50)
		}
		value := make([]byte, n)
		for i := range value {
			value[i] = byte(random.Uint32())
		}
		_, action, out := p.say(true, random.Uint32()|1, chunk4(bpftest.SCTPData, value...))
		if action != actRedirect {
			t.Fatalf("%d bytes: action %d", n, action)
		}
		if _, _, err := bpftest.SplitSCTP(out); err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

// step is one packet and the state of the connection after it.
type step struct {
	client bool
	tag    uint32
	chunks []bpftest.SCTPChunk
	state  FlowState
}

func cl(state FlowState, chunks ...bpftest.SCTPChunk) step { return step{true, 2, chunks, state} }
func ep(state FlowState, chunks ...bpftest.SCTPChunk) step { return step{false, 1, chunks, state} }
func ini(state FlowState) step                             { return step{true, 0, []bpftest.SCTPChunk{sctpInit}, state} }

func TestSCTPStates(t *testing.T) {
	handshake := []step{ini(StateSyn), ep(StateSynAck, sctpInitAck), cl(StateEstablished, sctpCookieEcho), ep(StateEstablished, sctpCookieAck)}
	p := newPair(t, false)
	p.serve(ModeFullNAT, 5000)
	after := func(steps ...step) []step { return append(append([]step{}, handshake...), steps...) }
	for _, row := range []struct {
		name  string // and the section of RFC 9260
		steps []step
	}{
		{"5.1 association", handshake},
		{"5.1 DATA beside COOKIE ECHO", []step{ini(StateSyn), ep(StateSynAck, sctpInitAck), cl(StateEstablished, sctpCookieEcho, sctpData)}},
		{"5.1 INIT repeated", []step{ini(StateSyn), ini(StateSyn), ep(StateSynAck, sctpInitAck), cl(StateEstablished, sctpCookieEcho)}},
		{"5.1 INIT ACK lost", []step{ini(StateSyn), ep(StateSynAck, sctpInitAck), ini(StateSynAck), ep(StateSynAck, sctpInitAck), cl(StateEstablished, sctpCookieEcho)}},
		{"5.1 COOKIE ECHO repeated", after(cl(StateEstablished, sctpCookieEcho), ep(StateEstablished, sctpCookieAck))},
		{"5.1 COOKIE ECHO without INIT ACK", []step{ini(StateSyn), cl(StateSyn, sctpCookieEcho)}},
		{"5.1 no DATA completes it", []step{ini(StateSyn), ep(StateSynAck, sctpInitAck), cl(StateSynAck, sctpData), ep(StateSynAck, sctpCookieAck)}},
		{"5.2.1 INIT of the other side", []step{ini(StateSyn), {false, 0, []bpftest.SCTPChunk{sctpInit}, StateSyn}, ep(StateSynAck, sctpInitAck), cl(StateEstablished, sctpCookieEcho)}},
		{"5.2.2 restart", after(ini(StateEstablished), ep(StateEstablished, sctpInitAck), cl(StateEstablished, sctpCookieEcho))},
		{"5.2.6 stale cookie", after(ep(StateEstablished, sctpError), ini(StateEstablished))},
		{"8.3 heartbeat", after(cl(StateEstablished, sctpHeartbeat), ep(StateEstablished, chunk4(bpftest.SCTPHeartbeatAck, make([]byte, 40)...)))},
		{"8.4 ABORT of the endpoint, T bit", []step{ini(StateSyn), ep(StateRefused, bpftest.SCTPChunk{Type: bpftest.SCTPAbort, Flags: 1}), ini(StateSyn)}},
		{"8.4 ABORT of an earlier association", []step{ini(StateSyn), ep(StateRefused, sctpAbort), ep(StateSynAck, sctpInitAck), cl(StateEstablished, sctpCookieEcho)}},
		{"9.1 ABORT", after(cl(StateClosed, sctpAbort), ini(StateSyn))},
		{"9.1 ABORT behind another chunk", after(ep(StateClosed, sctpError, sctpAbort))},
		{"9.1 ABORT that was not believed", after(ep(StateClosed, sctpAbort), cl(StateClosed, sctpData), ep(StateEstablished, sctpData))},
		{"9.2 shutdown", after(cl(StateFin, sctpShutdown), ep(StateClosed, sctpShutAck), cl(StateClosed, sctpShutDone), ini(StateSyn))},
		{"9.2 shutdown by the endpoint", after(ep(StateFin, sctpShutdown), cl(StateClosed, sctpShutAck), ep(StateClosed, sctpShutDone))},
		{"9.2 DATA goes on against SHUTDOWN", after(cl(StateFin, sctpShutdown), ep(StateFin, sctpData), cl(StateFin, sctpSack, sctpShutdown), ep(StateClosed, sctpShutAck))},
		{"9.2 SHUTDOWN repeated", after(cl(StateFin, sctpShutdown), cl(StateFin, sctpShutdown), ep(StateClosed, sctpShutAck))},
		{"9.2 SHUTDOWN of both", after(cl(StateFin, sctpShutdown), ep(StateClosed, sctpShutdown), cl(StateClosed, sctpShutAck), ep(StateClosed, sctpShutAck))},
		{"9.2 SHUTDOWN COMPLETE lost", after(cl(StateFin, sctpShutdown), ep(StateClosed, sctpShutAck), ep(StateClosed, sctpShutAck), cl(StateClosed, bpftest.SCTPChunk{Type: bpftest.SCTPShutdownComplete, Flags: 1}))},
		{"9.2 SHUTDOWN COMPLETE alone closes", after(cl(StateClosed, sctpShutDone))},
		{"9.2 SHUTDOWN before the association", []step{ini(StateSyn), cl(StateSyn, sctpShutdown), ep(StateSynAck, sctpInitAck)}},
	} {
		p.another()
		t.Run(row.name, func(t *testing.T) { p.take(t, row.steps) })
	}
}

func (p *pair) take(t *testing.T, steps []step) {
	t.Helper()
	for i, s := range steps {
		_, action, out := p.say(s.client, s.tag, s.chunks...)
		if action != actRedirect {
			t.Fatalf("step %d: action %d, drops %v", i, action, p.Stats().Drops)
		}
		src, _ := ends(t, out)
		if !p.snat.IsValid() {
			p.snat = src
		}
		f, ok := p.flow()
		if !ok || f.State != s.state || f.HalfOpen != (s.state < StateEstablished) {
			t.Fatalf("step %d: flow %+v, want state %s", i, f, s.state)
		}
		if s.client {
			p.snat = f.SNAT // a closed connection that is replaced may get another
		}
	}
}

func TestSCTPPacketsThatContradictThemselvesAreDropped(t *testing.T) {
	short := func(kind uint8, length uint16, value int) bpftest.SCTPChunk {
		return bpftest.SCTPChunk{Type: kind, Length: length, Value: make([]byte, value)}
	}
	p := newPair(t, false)
	p.serve(ModeFullNAT, 5000)
	dropped := uint64(0)
	for _, row := range []struct {
		name   string // and the section of RFC 9260
		packet bpftest.SCTP
	}{
		{"3 no chunk", bpftest.SCTP{Tag: 2}},
		{"3 header cut off", bpftest.SCTP{Tag: 2, Chunks: []bpftest.SCTPChunk{sctpData}, Length: 8}},
		{"3.1 port 0", bpftest.SCTP{Src: netip.AddrPortFrom(client, 0), Chunks: []bpftest.SCTPChunk{sctpInit}}},
		{"3.2 chunk length 0", bpftest.SCTP{Tag: 2, Chunks: []bpftest.SCTPChunk{{Type: bpftest.SCTPSack, Value: make([]byte, 12)}, short(bpftest.SCTPHeartbeat, 3, 8)}}},
		{"3.2 chunk longer than the packet", bpftest.SCTP{Tag: 2, Chunks: []bpftest.SCTPChunk{short(bpftest.SCTPData, 200, 16)}}},
		{"3.3.2 INIT too short", bpftest.SCTP{Chunks: []bpftest.SCTPChunk{short(bpftest.SCTPInit, 0, 12)}}},
		{"6.10 INIT with company", bpftest.SCTP{Chunks: []bpftest.SCTPChunk{sctpInit, sctpData}}},
		{"6.10 INIT behind another", bpftest.SCTP{Chunks: []bpftest.SCTPChunk{sctpHeartbeat, sctpInit}}},
		{"6.10 SHUTDOWN COMPLETE with company", bpftest.SCTP{Tag: 2, Chunks: []bpftest.SCTPChunk{sctpShutDone, sctpSack}}},
		{"8.5.1 INIT with a tag", bpftest.SCTP{Tag: 2, Chunks: []bpftest.SCTPChunk{sctpInit}}},
		{"8.5.1 DATA without a tag", bpftest.SCTP{Chunks: []bpftest.SCTPChunk{sctpData}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if !row.packet.Src.IsValid() {
				row.packet.Src = p.client
			}
			row.packet.SrcMAC, row.packet.DstMAC, row.packet.Dst = p.far.MAC, p.bench.in.MAC, p.vip
			if action, _ := p.run(p.bench.in, row.packet.Bytes()); action != actDrop {
				t.Errorf("action %d", action)
			}
			if dropped++; p.drops("malformed") != dropped || len(p.flows()) != 0 {
				t.Errorf("drops %v, flows %+v", p.Stats().Drops, p.flows())
			}
		})
	}
}

// The sum of a fragmented packet cannot be corrected: its length is not known. Where the ports
// stay nothing needs to be.
func TestSCTPFirstFragment(t *testing.T) {
	p := newPair(t, false)
	for _, row := range []struct {
		port   uint16
		action uint32
		drops  uint64
	}{{2905, actRedirect, 0}, {5000, actDrop, 1}} {
		p.serve(ModeDNAT, row.port)
		p.associate()
		frame := bpftest.SCTP{
			SrcMAC: p.far.MAC, DstMAC: p.bench.in.MAC, Src: p.client, Dst: p.vip, Tag: 2, MoreFragments: true, Length: 12 + 16 + 24,
			Chunks: []bpftest.SCTPChunk{sctpSack, chunk4(bpftest.SCTPData, make([]byte, 1000)...)},
		}.Bytes()
		action, out := p.run(p.bench.in, frame)
		if action != row.action || p.drops("sctp_fragment") != row.drops {
			t.Errorf("port %d: action %d, want %d; drops %v", row.port, action, row.action, p.Stats().Drops)
		}
		if action == actRedirect && !bytes.Equal(out[34:], frame[34:]) {
			t.Errorf("port %d: %x became %x", row.port, frame[34:], out[34:])
		}
	}
}

// Nobody here knows the tags that an abort of our own would need. The sides send heartbeats, which
// have them.
func TestSidesOfAnIdleAssociationAreToldAtTheirNextWord(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		p := newPair(t, v6)
		p.serve(ModeFullNAT, 5000)
		s := Service{
			ID: 7, VIP: p.vip, Protocol: protoSCTP, Mode: ModeFullNAT, Algorithm: AlgorithmRR, IdleReset: true, IdleTimeout: time.Minute,
			Endpoints: []Endpoint{{Addr: p.endpoint, Weight: 1, Sources: []netip.Addr{p.vip.Addr()}}},
		}
		if err := p.Sync(context.Background(), Desired{VIPs: []netip.Addr{p.vip.Addr()}, Services: numbered(s)}); err != nil {
			t.Fatal(err)
		}
		p.associate()
		silent := p.client
		p.another()
		p.associate()
		p.age(time.Hour, nil)
		p.mustSweep()
		p.age(85*time.Second, nil)
		p.mustSweep()
		if f, ok := p.flow(); !ok || !f.Ended {
			t.Fatalf("flow: %+v", f)
		}
		for _, client := range []bool{true, false} {
			in, action, out := p.say(client, 0x1234, sctpHeartbeat)
			_, asked, _ := bpftest.SplitSCTP(in)
			_, answer, err := bpftest.SplitSCTP(out)
			if action != actRedirect || err != nil || len(answer) < 16 {
				t.Fatalf("action %d, %v, %x", action, err, answer)
			}
			// RFC 9260, 8.4: the tag of the packet, and the T bit for it.
			if !bytes.Equal(answer[4:8], asked[4:8]) || answer[12] != bpftest.SCTPAbort || answer[13] != 1 {
				t.Errorf("answer %x", answer)
			}
		}
		p.mustSweep()
		if f := p.flows(); len(f) != 1 || f[0].Client != silent {
			t.Errorf("after both sides were told: %+v", f)
		}
		p.age(10*time.Second, nil)
		p.mustSweep()
		if f := p.flows(); len(f) != 0 {
			t.Errorf("still there although nobody speaks: %+v", f)
		}
	}
}
