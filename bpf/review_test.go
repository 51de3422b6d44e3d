package bpf

import (
	"context"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"

	"pontoon/bpf/bpftest"
)

// keyOf is the key under which packets from src to dst stand.
func keyOf(src, dst netip.AddrPort) pontoonFlowKey {
	return pontoonFlowKey{
		Saddr: toAddr(src.Addr()), Daddr: toAddr(dst.Addr()), Sport: swap16(src.Port()), Dport: swap16(dst.Port()), Proto: protoTCP,
	}
}

// lose takes one half out of the half-open table, as if it had given way in a flood.
func (b *bench) lose(key pontoonFlowKey) {
	b.tb.Helper()
	var half pontoonFlow
	if found, err := b.half.find(key, &half); err != nil || !found {
		b.tb.Fatalf("%+v is not half-open: %v", key, err)
	}
	if err := b.half.drop([]pontoonFlowKey{key}); err != nil {
		b.tb.Fatal(err)
	}
}

func TestFinThatEndsTheHandshakeCounts(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	_, out := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	snat, _ := tuple(out)
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.SYN | bpftest.ACK})
	// The bare ACK was lost.
	action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK, Payload: []byte("all of it")})
	if action != actRedirect {
		t.Fatalf("action %d", action)
	}
	if f := b.flows(); len(f) != 1 || f[0].State != StateFin {
		t.Fatalf("flows: %+v", f)
	}
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.FIN | bpftest.ACK})
	if f := b.flows(); len(f) != 1 || f[0].State != StateClosed {
		t.Errorf("flows: %+v", f)
	}
	b.exact("closed")
}

func TestHandshakeSurvivesTheLossOfItsForwardHalf(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	_, out := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	snat, _ := tuple(out)
	for range 2 { // also for a repeated SYN-ACK
		b.lose(keyOf(clientPort, vipPort))
		if action, _ := b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.SYN | bpftest.ACK}); action != actRedirect {
			t.Fatalf("SYN-ACK: action %d", action)
		}
	}
	if action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}); action != actRedirect {
		t.Fatalf("ACK: action %d, drops %v", action, b.Stats().Drops)
	}
	if f := b.flows(); len(f) != 1 || f[0].State != StateEstablished || f[0].SNAT != snat {
		t.Errorf("flows: %+v", f)
	}
}

func TestLeftoverReplyHalfDoesNotRefuseItsOwnClient(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeDNAT, endpoint1))
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: clientPort, Flags: bpftest.SYN | bpftest.ACK})
	b.lose(keyOf(clientPort, vipPort))
	b.talk(clientPort, vipPort)
	if f := b.flows(); len(f) != 1 || f[0].State != StateEstablished || entriesOf(t, b.Dataplane) != 2 {
		t.Errorf("flows: %+v", f)
	}
}

// The client's first attempt lost its forward half, the second went to the other endpoint; what
// the first endpoint still says must not be taken for the second's word.
func TestLateAnswerOfAnAbandonedAttemptIsDropped(t *testing.T) {
	for name, flags := range map[string]uint8{"SYN-ACK": bpftest.SYN | bpftest.ACK, "RST": bpftest.RST | bpftest.ACK} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			b.sync(service(ModeFullNAT, endpoint1, endpoint2))
			_, out := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
			first, from := tuple(out)
			b.lose(keyOf(clientPort, vipPort))
			_, out = b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
			if _, to := tuple(out); to == from {
				t.Fatalf("both attempts went to %s", to)
			}
			action, _ := b.fromEndpoint(bpftest.Packet{Src: from, Dst: first, Flags: flags})
			if action != actDrop || b.drops("snat_conflict") != 1 {
				t.Errorf("action %d, drops %v", action, b.Stats().Drops)
			}
			if f := b.flows(); len(f) != 1 || f[0].State != StateSyn {
				t.Errorf("flows: %+v", f)
			}
		})
	}
}

// A reply half that was left over (its forward half was taken out alone) leads to a tuple that the
// client uses for another connection by now.
func TestLeftoverHalfDoesNotCloseAnotherConnection(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	snat, _ := b.talk(clientPort, vipPort)
	var reply pontoonFlow
	if err := b.maps.Flows.Lookup(keyOf(endpoint1, snat), &reply); err != nil {
		t.Fatal(err)
	}
	stale := netip.AddrPortFrom(vip, 1024+3*8064+8000)
	if err := b.maps.Flows.Put(keyOf(endpoint2, stale), reply); err != nil {
		t.Fatal(err)
	}
	b.fromEndpoint(bpftest.Packet{Src: endpoint2, Dst: stale, Flags: bpftest.RST})
	if f := b.flows(); len(f) != 1 || f[0].State != StateEstablished {
		t.Errorf("flows: %+v", f)
	}
	b.exact("reset by a stranger")
}

// While one set of programs replaces another a jump may lead nowhere for a moment.
func TestMissingProgramLeaksNothingToTheHost(t *testing.T) {
	b := newBench(t, whole)
	b.sync(service(ModeFullNAT, endpoint1))
	snat, _ := b.talk(clientPort, vipPort)
	fresh := netip.AddrPortFrom(client, 40001)
	_, out := b.fromClient(bpftest.Packet{Src: fresh, Dst: vipPort, Flags: bpftest.SYN})
	half, _ := tuple(out)
	for index := range tailPrograms {
		if err := b.programs.tails.Delete(uint32(index)); err != nil {
			t.Fatal(err)
		}
	}
	stranger := netip.MustParseAddrPort("10.8.0.77:80")
	for _, row := range []struct {
		name   string
		side   func(bpftest.Packet) (uint32, []byte)
		packet bpftest.Packet
		action uint32
	}{
		{"SYN to the VIP", b.fromClient, bpftest.Packet{Src: netip.AddrPortFrom(client, 40002), Dst: vipPort, Flags: bpftest.SYN}, actDrop},
		{"FIN of an established flow", b.fromClient, bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK}, actDrop},
		{"FIN of its endpoint", b.fromEndpoint, bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.FIN | bpftest.ACK}, actDrop},
		{"SYN-ACK", b.fromEndpoint, bpftest.Packet{Src: endpoint1, Dst: half, Flags: bpftest.SYN | bpftest.ACK}, actDrop},
		{"with IP options", b.fromClient, bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, IPOptions: true}, actDrop},
		{"one more of an established flow", b.fromClient, bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}, actRedirect},
		{"not for a VIP", b.fromClient, bpftest.Packet{Src: clientPort, Dst: stranger, Flags: bpftest.SYN}, actPass},
		{"not for a VIP, with options", b.fromClient, bpftest.Packet{Src: clientPort, Dst: stranger, IPOptions: true}, actPass},
	} {
		before := b.drops("no_program")
		if action, _ := row.side(row.packet); action != row.action {
			t.Errorf("%s: action %d, want %d", row.name, action, row.action)
		}
		if n := b.drops("no_program") - before; (n == 1) != (row.action == actDrop) {
			t.Errorf("%s: %d drops counted", row.name, n)
		}
	}
}

// New flows have a program of their own; while it is missing XDP leaves them to TC, and TC drops
// them, as nothing else may answer.
func TestMissingProgramForNewFlowsIsNoWayToTheHost(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Hook = HookXDP })
	b.sync(service(ModeFullNAT, endpoint1))
	syn := bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN, SrcMAC: b.far.MAC, DstMAC: b.in.MAC}
	if err := b.programs.xdpTails.Delete(uint32(pontoonTailTAIL_NEW)); err != nil {
		t.Fatal(err)
	}
	if action, _ := b.runXDP(b.in, syn.Bytes(t)); action != actPass {
		t.Errorf("XDP: action %d", action)
	}
	if action, _ := b.fromClient(syn); action != actRedirect {
		t.Errorf("TC: action %d", action)
	}
	if err := b.programs.tails.Delete(uint32(pontoonTailTAIL_NEW)); err != nil {
		t.Fatal(err)
	}
	syn.Src = netip.AddrPortFrom(client, 40001)
	if action, _ := b.fromClient(syn); action != actDrop || b.drops("no_program") != 1 {
		t.Errorf("TC without the program: action %d, %d drops counted", action, b.drops("no_program"))
	}
}

// A miscount must not close the table: less than none is none.
func TestNegativeCountDoesNotRefuseNewFlows(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.accounts.add(0, -1)
	b.talk(clientPort, vipPort)
}

// In DSR nobody sees the endpoint's FIN, so a SYN after the client's must begin anew: else the new
// connection lives by the timeout of one that is closing.
func TestSynAfterFinBeginsANewConnectionByDSR(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeDSR, netip.AddrPortFrom(endpoint1.Addr(), 80)))
	for _, flags := range []uint8{bpftest.SYN, bpftest.ACK, bpftest.FIN | bpftest.ACK, bpftest.SYN, bpftest.ACK} {
		if action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: flags}); action != actRedirect {
			t.Fatalf("flags %#x: action %d, drops %v", flags, action, b.Stats().Drops)
		}
	}
	if f := b.flows(); len(f) != 1 || f[0].State != StateEstablished {
		t.Errorf("flows: %+v", f)
	}
	b.exact("replaced")
}

func TestExhaustedSourceGivesWayToTheNextOfThePool(t *testing.T) {
	b := newBench(t, func(o *Options) { o.MaxFlows = 10000 })
	s := service(ModeFullNAT, endpoint1)
	s.Endpoints[0].Sources = []netip.Addr{vip, netip.MustParseAddr("10.8.0.3")}
	b.sync(s)
	b.occupy(StateEstablished) // every port of the first
	for i := range 20 {
		if snat, _ := b.talk(netip.AddrPortFrom(client, uint16(41000+i)), vipPort); snat.Addr() == vip {
			t.Fatalf("%s was taken", snat)
		}
	}
}

// Virtual network cards hand up several segments in one packet without saying how many.
func TestSegmentsOfAnUnnumberedBundleAreCounted(t *testing.T) {
	for _, row := range []struct{ payload, segments int }{{1400, 1}, {2800, 2}, {2820, 3}} {
		b := newBench(t, nil)
		b.sync(service(ModeFullNAT, endpoint1))
		b.talk(clientPort, vipPort)
		frame := bpftest.Packet{
			SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: make([]byte, row.payload),
		}.Bytes(t)
		options := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64), Context: skBuff{Ifindex: uint32(b.in.Index), GSOSize: 1400}}
		b.ns.Do(func() {
			if _, err := b.programs.entry.Run(options); err != nil {
				t.Fatal(err)
			}
		})
		if f := b.flows(); f[0].Packets != 3+uint64(row.segments) {
			t.Errorf("%d bytes: %d packets counted after the handshake's 3, want %d", row.payload, f[0].Packets-3, row.segments)
		}
	}
}

func TestWrongHeaderChecksumIsFoundBehindIPOptions(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	frame := bpftest.Packet{SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: clientPort, Dst: vipPort, Flags: bpftest.SYN, IPOptions: true}.Bytes(t)
	frame[24] ^= 1
	if action, _ := b.run(b.in, frame); action != actDrop || b.drops("malformed") != 1 {
		t.Errorf("action %d, drops %v", action, b.Stats().Drops)
	}
}

// A packet whose routing header names further stops is not for the VIP alone (RFC 8200, 4.4; type 0
// is not to be obeyed at all, RFC 5095), and its TCP checksum is for another destination.
func TestRoutingHeaderWithFurtherStopsIsRefused(t *testing.T) {
	b := newBench(t, nil)
	vip6, client6 := netip.MustParseAddr("2001:db8:9::100"), netip.MustParseAddr("2001:db8:9::5")
	s := service(ModeDNAT, netip.MustParseAddrPort("[2001:db8:8::21]:80"))
	s.VIP = netip.AddrPortFrom(vip6, 80)
	if err := b.Sync(context.Background(), Desired{VIPs: []netip.Addr{vip6}, Services: numbered(s)}); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		kind, left byte
		drop       string
	}{{0, 0, "forwarding_disabled"} /* parsed, and not sent: the namespace has no IPv6 */, {0, 1, "malformed"}, {4, 1, "malformed"}} {
		before := b.drops(row.drop)
		frame := append([]byte(b.in.MAC), b.far.MAC...)
		frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 24+20, 43, 64)
		frame = append(append(frame, client6.AsSlice()...), vip6.AsSlice()...)
		frame = append(frame, 6, 2, row.kind, row.left, 0, 0, 0, 0)
		frame = append(frame, client6.AsSlice()...) // the further stop
		tcp := make([]byte, 20)
		binary.BigEndian.PutUint16(tcp, 40000+uint16(row.kind)+uint16(row.left))
		tcp[3], tcp[12], tcp[13] = 80, 5<<4, bpftest.SYN
		if action, _ := b.run(b.in, append(frame, tcp...)); action != actDrop || b.drops(row.drop) != before+1 {
			t.Errorf("type %d, %d left: action %d, drops %v", row.kind, row.left, action, b.Stats().Drops)
		}
	}
}

// Stamps of another CPU may be ahead by a tick.
func TestStampsThatAreAheadAreYoung(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.Affinity = 60e9
	b.sync(s)
	_, first := b.talk(clientPort, vipPort)
	key := pontoonAffinityKey{Client: toAddr(client), Service: 7}
	var value pontoonAffinity
	if err := b.maps.Affinities.Lookup(key, &value); err != nil {
		t.Fatal(err)
	}
	value.Used += 2
	if err := b.maps.Affinities.Put(key, value); err != nil {
		t.Fatal(err)
	}
	if _, next := b.talk(netip.AddrPortFrom(client, 40001), vipPort); next != first {
		t.Errorf("the client went to %s and then to %s", first, next)
	}
}

// Fragments that pass by without being ours must not push out those that are.
func TestOnlyFragmentsOfFlowsAreRemembered(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	remembered := func() (n int) {
		t.Helper()
		var key pontoonFragmentKey
		var value pontoonFragment
		entries := b.maps.Fragments.Iterate()
		for entries.Next(&key, &value) {
			n++
		}
		if err := entries.Err(); err != nil {
			t.Fatal(err)
		}
		return n
	}
	udp := layers.IPProtocolUDP
	for _, to := range []netip.AddrPort{netip.MustParseAddrPort("10.8.0.77:80"), netip.AddrPortFrom(vip, 81)} {
		b.fromClient(bpftest.Packet{Src: clientPort, Dst: to, Protocol: udp, MoreFragments: true, Payload: make([]byte, 64)})
	}
	if n := remembered(); n != 0 {
		t.Errorf("%d fragments remembered that belong to no flow", n)
	}
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN, MoreFragments: true, Payload: make([]byte, 4)})
	action, out := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Fragment: 3, Payload: []byte("the rest")})
	if action != actRedirect || remembered() != 1 {
		t.Fatalf("the second fragment: action %d, %d remembered, drops %v", action, remembered(), b.Stats().Drops)
	}
	if to, _ := netip.AddrFromSlice(out[30:34]); to != endpoint1.Addr() {
		t.Errorf("the second fragment went to %s", to)
	}
}

// The kernel's router would drop these; the endpoints are not to see them either.
func TestSourcesThatNoHostHasAreRefused(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeDNAT, endpoint1))
	sources := []string{"127.0.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.5", "239.1.1.1", "255.255.255.255"}
	for _, s := range sources {
		source := netip.AddrPortFrom(netip.MustParseAddr(s), 40000)
		if action, _ := b.fromClient(bpftest.Packet{Src: source, Dst: vipPort, Flags: bpftest.SYN}); action != actDrop {
			t.Errorf("%s: action %d", s, action)
		}
	}
	if n := b.drops("martian"); n != uint64(len(sources)) || len(b.flows()) != 0 {
		t.Errorf("%d drops, flows %+v", n, b.flows())
	}
	if action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN}); action != actRedirect {
		t.Errorf("a client: action %d", action)
	}
}

// A packet that is larger than the way to the endpoint is not sent and not lost without a word,
// also when the next hop is known already.
func TestPacketLargerThanTheWayIsTold(t *testing.T) {
	b := newBench(t, nil)
	b.ns.Do(func() {
		out, err := netlink.LinkByName("eth2")
		if err == nil {
			err = netlink.LinkSetMTU(out, 1400)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	fits := bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: make([]byte, 1360)}
	if action, _ := b.fromClient(fits); action != actRedirect {
		t.Fatalf("1400 bytes: action %d", action)
	}
	large := fits
	large.Payload = make([]byte, 1361)
	_, out := b.fromClient(large)
	stats := b.Stats()
	if stats.Drops["fragmentation_needed"] != 1 || stats.Counters["too_big"] != 1 {
		t.Errorf("drops %v, counters %v", stats.Drops, stats.Counters)
	}
	if out[23] != 1 || out[34] != 3 || out[35] != 4 || binary.BigEndian.Uint16(out[40:]) != 1400 {
		t.Errorf("the client got %x", out[14:min(len(out), 42)])
	}
	if dst, _ := netip.AddrFromSlice(out[30:34]); dst != client {
		t.Errorf("it went to %s", dst)
	}
	if f := b.flows(); f[0].Packets != 4 {
		t.Errorf("%d packets counted, want 4", f[0].Packets)
	}
}
