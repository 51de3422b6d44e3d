package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
)

// occupy fills every SNAT port of the bench's slot towards endpoint1 with flows in the state.
func (b *bench) occupy(state FlowState) {
	b.tb.Helper()
	var keys []pontoonFlowKey
	var values []pontoonFlow
	now, err := b.clock.now()
	if err != nil {
		b.tb.Fatal(err)
	}
	for i := range 8064 {
		c := connection{key: pontoonFlowKey{
			Saddr: toAddr(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})), Daddr: toAddr(vip),
			Sport: swap16(5000), Dport: swap16(80), Proto: protoTCP,
		}}
		c.forward = pontoonFlow{
			NewSaddr: toAddr(vip), NewSport: swap16(uint16(1024 + 3*8064 + i)),
			NewDaddr: toAddr(endpoint1.Addr()), NewDport: swap16(endpoint1.Port()),
			Service: 7, Mode: uint8(ModeFullNAT), State: uint8(state), OwnerSlot: 3, LastSeen: uint32(now.jiffies),
		}
		c.reply = c.forward
		c.reply.Flags = flagReply
		c.reply.NewSaddr, c.reply.NewSport = c.key.Daddr, c.key.Dport
		c.reply.NewDaddr, c.reply.NewDport = c.key.Saddr, c.key.Sport
		keys = append(keys, c.key, otherKey(&c.key, &c.forward))
		values = append(values, c.forward, c.reply)
	}
	if _, err := b.maps.Flows.BatchUpdate(keys, values, nil); err != nil {
		b.tb.Fatal(err)
	}
}

func TestExhaustedSourcePortsAreCounted(t *testing.T) {
	b := newBench(t, func(o *Options) { o.MaxFlows = 10000 })
	b.sync(service(ModeFullNAT, endpoint1))
	b.occupy(StateEstablished)
	action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	if action != actDrop || b.drops("snat_exhausted") != 1 {
		t.Errorf("action %d, drops %v", action, b.Stats().Drops)
	}
	// Another endpoint has its own ports.
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	for i := range 4 {
		if _, endpoint := b.talk(netip.AddrPortFrom(client, uint16(41000+i)), vipPort); endpoint != endpoint2 {
			t.Errorf("went to %s", endpoint)
		}
	}
}

func TestClosedTupleIsTakenOver(t *testing.T) {
	b := newBench(t, func(o *Options) { o.MaxFlows = 10000 })
	b.sync(service(ModeFullNAT, endpoint1))
	b.occupy(StateClosed)
	snat, _ := b.talk(clientPort, vipPort)
	if n := b.Stats().Counters["taken_over"]; n != 1 {
		t.Errorf("taken over %d", n)
	}
	same := 0
	for _, f := range b.flows() {
		if f.SNAT == snat {
			same++
			if f.Client != clientPort {
				t.Errorf("%s still holds %s", f.Client, snat)
			}
		}
	}
	if same != 1 || entriesOf(t, b.Dataplane) != 2*8064 {
		t.Errorf("%d flows hold the tuple, %d halves", same, entriesOf(t, b.Dataplane))
	}
}

func TestDNATCollisionTakesAnotherEndpoint(t *testing.T) {
	b := newBench(t, nil)
	first := service(ModeDNAT, endpoint1)
	second := service(ModeDNAT, endpoint1, endpoint2)
	second.ID, second.VIP = 8, netip.AddrPortFrom(vip, 81)
	third := service(ModeDNAT, endpoint1)
	third.ID, third.VIP = 9, netip.AddrPortFrom(vip, 82)
	b.sync(first, second, third)
	b.talk(clientPort, vipPort)
	if _, endpoint := b.talk(clientPort, second.VIP); endpoint != endpoint2 {
		t.Errorf("second service went to %s", endpoint)
	}
	action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: third.VIP, Flags: bpftest.SYN})
	if action != actDrop || b.drops("dnat_collision") != 1 {
		t.Errorf("action %d, drops %v", action, b.Stats().Drops)
	}
}

func TestFullFlowTableRefusesAndCounts(t *testing.T) {
	b := newBench(t, func(o *Options) { o.MaxFlows = 64 })
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	// One entry of an odd number, so that at the end there is room for half a connection.
	if err := b.maps.Flows.Put(pontoonFlowKey{Proto: 1}, pontoonFlow{Flags: flagReply}); err != nil {
		t.Fatal(err)
	}
	complete := 0
	for i := range 400 {
		c := netip.AddrPortFrom(client, uint16(2000+i))
		_, out := b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.SYN})
		snat, endpoint := tuple(out)
		b.fromEndpoint(bpftest.Packet{Src: endpoint, Dst: snat, Flags: bpftest.SYN | bpftest.ACK})
		if action, _ := b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.ACK}); action == actRedirect {
			complete++
		}
	}
	full := b.drops("table_full")
	if complete < 63 || full == 0 || complete+int(full) != 400 {
		t.Errorf("%d complete, %d refused", complete, full)
	}
	if n := entriesOf(t, b.Dataplane); n != 2*complete+1 {
		t.Errorf("%d halves for %d connections", n-1, complete)
	}
	if n := b.Stats().Counters["insert_failed"]; n != full {
		t.Errorf("insert_failed %d, want %d", n, full)
	}
}

// flood runs SYNs of n distinct sources through the program, in one test run per packet.
func (b *bench) flood(n int) {
	b.tb.Helper()
	frame := bpftest.Packet{SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: clientPort, Dst: vipPort, Flags: bpftest.SYN}.Bytes(b.tb)
	out := make([]byte, len(frame)+64)
	b.ns.Do(func() {
		for i := range n {
			source := 0xac100000 | uint32(i) // 172.16.0.0/12; TCP's checksum does not matter
			binary.BigEndian.PutUint32(frame[26:], source)
			binary.BigEndian.PutUint16(frame[24:], 0)
			binary.BigEndian.PutUint16(frame[24:], headerSum(frame[14:34]))
			options := &ebpf.RunOptions{Data: frame, DataOut: out, Context: skBuff{Ifindex: uint32(b.in.Index)}}
			if _, err := b.programs.entry.Run(options); err != nil {
				b.tb.Fatal(err)
			}
		}
	})
}

func TestSynFloodLeavesEstablishedFlowsAndNewOnesAlone(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	snats := map[netip.AddrPort]netip.AddrPort{}
	for i := range 50 {
		c := netip.AddrPortFrom(client, uint16(40000+i))
		snats[c], _ = b.talk(c, vipPort)
	}
	b.flood(200_000)
	if n := entriesOf(t, b.Dataplane); n != 100 {
		t.Fatalf("%d halves in the flow table, want 100", n)
	}
	for c, snat := range snats {
		_, out := b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.ACK})
		if src, _ := tuple(out); src != snat {
			t.Fatalf("%s left as %s, want %s", c, src, snat)
		}
	}
	b.talk(netip.AddrPortFrom(client, 41000), vipPort)
	stats := b.Stats()
	t.Logf("drops %v, counters %v", stats.Drops, stats.Counters)
	if stats.Counters["created"] < 150_000 {
		t.Errorf("only %d half-open flows were made", stats.Counters["created"])
	}
}

func TestHandshakeSurvivesTheLossOfItsReplyHalf(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	forget := func(key pontoonFlowKey) {
		t.Helper()
		b.lose(key)
	}
	_, out := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	snat, _ := tuple(out)
	reply := pontoonFlowKey{
		Saddr: toAddr(endpoint1.Addr()), Daddr: toAddr(snat.Addr()),
		Sport: swap16(endpoint1.Port()), Dport: swap16(snat.Port()), Proto: protoTCP,
	}
	forget(reply)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN}) // restores it
	if action, _ := b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.SYN | bpftest.ACK}); action != actRedirect {
		t.Fatalf("SYN-ACK: action %d", action)
	}
	forget(reply)
	if action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}); action != actRedirect {
		t.Fatalf("ACK: action %d", action)
	}
	if f := b.flows(); len(f) != 1 || f[0].State != StateEstablished || entriesOf(t, b.Dataplane) != 2 {
		t.Errorf("flows: %+v", f)
	}
}

func TestTupleGivenAwayMeanwhileIsNotUsed(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	_, out := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	snat, _ := tuple(out)
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.SYN | bpftest.ACK})
	reply := pontoonFlowKey{
		Saddr: toAddr(endpoint1.Addr()), Daddr: toAddr(snat.Addr()),
		Sport: swap16(endpoint1.Port()), Dport: swap16(snat.Port()), Proto: protoTCP,
	}
	var half pontoonFlow
	if found, err := b.half.find(reply, &half); err != nil || !found {
		t.Fatal(found, err)
	}
	half.NewDport = swap16(1) // it gave way, and another client got the tuple
	b.put(&b.half, reply, half)
	action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	if action != actDrop || b.drops("snat_conflict") != 1 || entriesOf(t, b.Dataplane) != 0 {
		t.Errorf("action %d, drops %v", action, b.Stats().Drops)
	}
}

func TestNoRouteAndNoForwardingAreToldApart(t *testing.T) {
	b := newBench(t, nil)
	nowhere := netip.MustParseAddrPort("192.0.2.1:80")
	b.sync(service(ModeFullNAT, nowhere))
	action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	if action != actDrop || b.drops("no_route") != 1 {
		t.Errorf("no route: action %d, drops %v", action, b.Stats().Drops)
	}
	b.ns.Do(func() { b.ns.Sysctl("net/ipv4/conf/eth1/forwarding", "0") })
	b.sync(service(ModeFullNAT, endpoint1))
	action, _ = b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, 40001), Dst: vipPort, Flags: bpftest.SYN})
	if action != actDrop || b.drops("forwarding_disabled") != 1 {
		t.Errorf("forwarding off: action %d, drops %v", action, b.Stats().Drops)
	}
}

func TestNextHopIsAskedAnewAfterFlush(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	misses := func() uint64 { return b.Stats().Counters["next_hop_miss"] }
	before := misses()
	data := bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}
	for range 10 {
		b.fromClient(data)
	}
	if misses() != before {
		t.Errorf("%d FIB lookups for known next hops", misses()-before)
	}
	b.FlushNextHops()
	b.fromClient(data)
	b.fromClient(data)
	if n := misses() - before; n != 1 {
		t.Errorf("%d FIB lookups after a flush, want 1", n)
	}
}

func TestUnknownNeighbourIsLeftToTheKernel(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, netip.MustParseAddrPort("10.8.0.99:80")))
	action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	if n := b.Stats().Counters["neighbour_miss"]; action != actRedirect || n != 1 {
		t.Errorf("action %d, %d neighbour misses", action, n)
	}
}

func TestOneWayUDPNeverReachesTheFlowTable(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1)
	s.Protocol = protoUDP
	b.sync(s)
	for range 100 {
		b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Protocol: layers.IPProtocolUDP, Payload: []byte("log line")})
	}
	if n := entriesOf(t, b.Dataplane); n != 0 {
		t.Errorf("%d halves", n)
	}
	if f := b.flows(); len(f) != 1 || f[0].Packets != 100 {
		t.Errorf("flows %+v", f)
	}
}

// headerSum is the checksum of an IPv4 header whose own field is zero.
func headerSum(header []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
