package bpf

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// dsrBench has one connection by DSR and, under the key where the reply half of a connection of
// two halves would stand, an entry of somebody else.
func dsrBench(t *testing.T, slot uint8) (*bench, pontoonFlowKey) {
	t.Helper()
	b := newBench(t, func(o *Options) { o.Slot = slot })
	s := service(ModeDSR, netip.AddrPortFrom(endpoint1.Addr(), 80))
	b.sync(s)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	if action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}); action != actRedirect {
		t.Fatalf("action %d, drops %v", action, b.Stats().Drops)
	}
	if n := entriesOf(t, b.Dataplane); n != 1 {
		t.Fatalf("%d halves", n)
	}
	b.exact("established")
	return b, b.plant(t)
}

// plant writes the foreign entry: the reply half of a connection whose forward half is elsewhere.
func (b *bench) plant(t *testing.T) pontoonFlowKey {
	t.Helper()
	key := pontoonFlowKey{
		Saddr: toAddr(endpoint1.Addr()), Daddr: toAddr(client), Sport: swap16(80), Dport: swap16(clientPort.Port()), Proto: protoTCP,
	}
	now, err := b.clock.now()
	if err != nil {
		t.Fatal(err)
	}
	foreign := pontoonFlow{
		NewSaddr: toAddr(netip.MustParseAddr("10.9.0.200")), NewDaddr: toAddr(client), NewSport: swap16(80), NewDport: swap16(clientPort.Port()),
		State: uint8(StateEstablished), Mode: uint8(ModeDNAT), Flags: flagReply, LastSeen: uint32(now.jiffies) + 1000, PacketsLo: 77,
		Service: 9, OwnerSlot: b.opts.Slot,
	}
	if err := b.maps.Flows.Put(key, foreign); err != nil {
		t.Fatal(err)
	}
	return key
}

func (b *bench) holds(t *testing.T, key pontoonFlowKey) bool {
	t.Helper()
	var f pontoonFlow
	found, err := lookup(b.maps.Flows, key, &f)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestOneHalfIsShownAndReportedByItself(t *testing.T) {
	b, _ := dsrBench(t, 3)
	if f := b.flows(); len(f) != 1 || f[0].Packets != 2 {
		t.Errorf("flows: %+v", f)
	}
	all := records(t, b.Dataplane)
	if r, err := parseRecord(all); err != nil || r.ReplyPackets != 0 || r.ForwardPackets != 2 {
		t.Errorf("record %+v, %v", r, err)
	}
}

func TestOneHalfExpiresByItself(t *testing.T) {
	b, foreign := dsrBench(t, 3)
	b.age(2*time.Hour, func(f *pontoonFlow) bool { return !f.reply() })
	b.mustSweep()
	if n := len(b.flows()); n != 0 || !b.holds(t, foreign) {
		t.Errorf("%d flows, foreign entry there: %t", n, b.holds(t, foreign))
	}
	b.exact("expired")
}

func TestOneHalfIsFlushedByItself(t *testing.T) {
	b, foreign := dsrBench(t, 3)
	if n, err := b.Flush(context.Background(), 7); n != 1 || err != nil || !b.holds(t, foreign) {
		t.Errorf("flushed %d, %v; foreign entry there: %t", n, err, b.holds(t, foreign))
	}
	b.exact("flushed")
}

func TestOneHalfIsReplicatedByItself(t *testing.T) {
	a, _ := dsrBench(t, 3)
	b := newBench(t, func(o *Options) { o.Slot = 5 })
	b.sync(service(ModeDSR, netip.AddrPortFrom(endpoint1.Addr(), 80)))
	foreign := b.plant(t)
	all := records(t, a.Dataplane)
	if r := importAll(t, b.Dataplane, all); r.Written != 1 || entriesOf(t, b.Dataplane) != 2 {
		t.Fatalf("%+v, %d halves", r, entriesOf(t, b.Dataplane))
	}
	b.exact("imported")
	if r := importAll(t, b.Dataplane, all); r.Written != 1 || entriesOf(t, b.Dataplane) != 2 {
		t.Fatalf("again: %+v, %d halves", r, entriesOf(t, b.Dataplane))
	}
	b.exact("imported twice")
	b.BeginSnapshot(3)
	if n, err := b.EndSnapshot(context.Background(), 3); n != 1 || err != nil {
		t.Fatalf("removed %d, %v", n, err)
	}
	importAll(t, b.Dataplane, all)
	all[recordOp] = opDelete
	if r := importAll(t, b.Dataplane, all); r.Deleted != 1 || !b.holds(t, foreign) || entriesOf(t, b.Dataplane) != 1 {
		t.Errorf("%+v, %d halves", r, entriesOf(t, b.Dataplane))
	}
	b.exact("deleted")
}

// A connection that changes between one and two halves, because its service's mode was changed,
// leaves nothing behind.
func TestRecordOfAnotherModeReplacesBothHalves(t *testing.T) {
	dsr, nat := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	dsr.sync(service(ModeDSR, netip.AddrPortFrom(endpoint1.Addr(), 80)))
	nat.sync(service(ModeFullNAT, endpoint1))
	dsr.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	dsr.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	nat.talk(clientPort, vipPort)
	one, two := records(t, dsr.Dataplane), records(t, nat.Dataplane)
	third := newBench(t, func(o *Options) { o.Slot = 6 })
	for i, all := range [][]byte{two, one, two} {
		if i > 0 {
			third.age(time.Minute, nil)
		}
		if r := importAll(t, third.Dataplane, all); r.Written != 1 {
			t.Fatalf("%d: %+v", i, r)
		}
		want := 2 - i%2
		if n := entriesOf(t, third.Dataplane); n != want {
			t.Fatalf("%d: %d halves, want %d", i, n, want)
		}
		third.exact("imported")
	}
}
