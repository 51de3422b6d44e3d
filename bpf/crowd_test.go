package bpf

import (
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/gopacket/gopacket/layers"
)

// forge opens connections by DSR from n sources with two packets each, and returns how many there are.
func (b *bench) forge(first, n int) int {
	b.tb.Helper()
	made := 0
	for i := range n {
		c := netip.AddrPortFrom(client, uint16(first+i))
		b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.SYN})
		if action, _ := b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.ACK}); action == actRedirect {
			made++
		}
	}
	return made
}

// The flood defence counts first packets, whatever becomes of them.
func TestForgedHandshakesByDSRAreHeldToTheRate(t *testing.T) {
	for _, mode := range []Mode{ModeDSR, ModeFullNAT} {
		b := newBench(t, nil)
		s := service(mode, netip.AddrPortFrom(endpoint1.Addr(), 80))
		s.NewFlowRate = 20
		b.sync(s)
		start := time.Now()
		made := b.forge(2000, 400)
		windows := int(time.Since(start)/time.Second) + 2
		stats := b.Stats()
		if most := 20 * windows; made > most || stats.Drops["flood"] < uint64(400-most) {
			t.Errorf("%s: %d connections of 400 in %d windows of 20, drops %v", mode, made, windows, stats.Drops)
		}
		if mode == ModeDSR && made < 20 {
			t.Errorf("%d connections where 20 are allowed", made)
		}
		if stats.Drops["flood"]+stats.Counters["created"] != 400 {
			t.Errorf("%s: %d refused, %d half-open made of 400", mode, stats.Drops["flood"], stats.Counters["created"])
		}
	}
}

// Two packets are all the proof that there is of a connection by DSR: enough while there is room.
func TestUnprovenConnectionsGoFirstFromACrowdedTable(t *testing.T) {
	b := newBench(t, func(o *Options) { o.MaxFlows = 64 })
	tcp := service(ModeDSR, netip.AddrPortFrom(endpoint1.Addr(), 80))
	udp := tcp
	udp.ID, udp.Protocol = 8, protoUDP
	b.sync(tcp, udp)
	ask := bpftest.Packet{Src: clientPort, Dst: vipPort, Protocol: layers.IPProtocolUDP}
	b.fromClient(ask)
	b.fromClient(ask) // by its second packet it is in the flow table
	if n := b.forge(1000, 1); n != 1 {
		t.Fatal("no connection")
	}
	b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, 1000), Dst: vipPort, Flags: bpftest.ACK, Payload: []byte("said more")})
	b.forge(1001, 1)
	b.age(11*time.Second, nil)
	b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, 1001), Dst: vipPort, Flags: bpftest.ACK, Payload: []byte("later")})
	b.forge(2000, 20)
	b.age(11*time.Second, nil)
	b.mustSweep()
	if n := len(b.flows()); n != 23 {
		t.Fatalf("%d flows in a table that is not crowded, want 23", n)
	}
	if b.forge(3000, 15) != 15 {
		t.Fatal("no connections")
	}
	urgent, err := b.sweepOnce(t.Context())
	if err != nil || urgent != 15 {
		t.Errorf("%d connections in doubt, %v", urgent, err)
	}
	kept := map[uint16]bool{}
	for _, f := range b.flows() {
		kept[f.Client.Port()] = true
	}
	if len(kept) != 17 || !kept[1000] || !kept[1001] || !kept[3000] || kept[2000] || kept[clientPort.Port()] {
		t.Errorf("kept %v", kept)
	}
	b.exact("swept")
}

// A connection whose answers pass here is believed: its endpoint has answered.
func TestConnectionsOfTwoHalvesAreNeverInDoubt(t *testing.T) {
	b := newBench(t, func(o *Options) { o.MaxFlows = 64 })
	b.sync(service(ModeFullNAT, endpoint1))
	for i := range 40 {
		b.talk(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
	}
	b.age(time.Minute, nil)
	b.mustSweep()
	if n := len(b.flows()); n != 40 {
		t.Errorf("%d flows, want 40", n)
	}
}

func TestCopiesAreLeftToTheirOwnersDoubt(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot, o.MaxFlows = 5, 64 })
	for _, n := range []*bench{a, b} {
		n.sync(service(ModeDSR, netip.AddrPortFrom(endpoint1.Addr(), 80)))
	}
	a.forge(2000, 40)
	all := records(t, a.Dataplane)
	for at := 0; at < len(all); at += RecordSize {
		all[at+recordForwardPackets] = 1 // as it is told of a new connection
	}
	importAll(t, b.Dataplane, all)
	b.age(time.Minute, nil)
	b.mustSweep()
	if n := len(b.flows()); n != 40 {
		t.Errorf("%d flows, want 40", n)
	}
	// One more packet, later than any handshake's: it is our own now, and believed.
	b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, 2000), Dst: vipPort, Flags: bpftest.ACK})
	b.age(time.Minute, nil)
	b.mustSweep()
	if n := len(b.flows()); n != 40 {
		t.Errorf("%d flows after one was adopted, want 40", n)
	}
}

const recordForwardPackets = 96
