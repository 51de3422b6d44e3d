package bpf

import (
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// heir is the second of two nodes, which has heard all that the first has said before it died.
func heir(t *testing.T, a, b *bench) {
	t.Helper()
	if r := carry(t, a, b); r.Invalid+r.Failed != 0 {
		t.Fatalf("%+v", r)
	}
	b.SetOwnersAlive(map[uint8]bool{3: false, 5: true})
}

// One side has said its last word before the failover. The other goes on, and says its own after.
func TestHalfClosedConnectionEndsInOrderAfterAFailover(t *testing.T) {
	id := uint16(7<<8 + 1)
	for _, byClient := range []bool{true, false} {
		for _, mode := range []Mode{ModeFullNAT, ModeDNAT} {
			a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
			for _, n := range []*bench{a, b} {
				n.sync(service(mode, endpoint1))
				runDataplane(t, n.Dataplane)
			}
			snat, _ := a.talk(clientPort, vipPort)
			say := func(n *bench, client bool, flags uint8) {
				t.Helper()
				if client {
					n.must(n.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: flags}))
				} else {
					n.must(n.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: flags}))
				}
			}
			say(a, byClient, bpftest.FIN|bpftest.ACK)
			say(a, !byClient, bpftest.ACK)
			heir(t, a, b)
			if f := b.only(); f.State != StateFin || f.Owner {
				t.Fatalf("replica: %+v", f)
			}
			for range 3 { // what the open direction still carries, and its acknowledgements
				say(b, !byClient, bpftest.ACK|bpftest.PSH)
				say(b, byClient, bpftest.ACK)
			}
			if f := b.only(); f.State != StateFin || !f.Owner || b.accounts.get(id) != 1 {
				t.Fatalf("adopted: %+v, %d open", f, b.accounts.get(id))
			}
			b.age(25*time.Second, nil)
			b.mustSweep()
			say(b, !byClient, bpftest.FIN|bpftest.ACK)
			say(b, byClient, bpftest.ACK)
			if f := b.only(); f.State != StateClosed || b.accounts.get(id) != 0 {
				t.Fatalf("closed: %+v, %d open", f, b.accounts.get(id))
			}
			b.exact("closed")
			said := b.heard()
			if n := len(said); n < 2 || said[0].Reason != reasonAdopt || FlowState(said[0].State) != StateFin || said[n-1].Reason != reasonClose {
				t.Errorf("said: %+v", said)
			}
			b.age(6*time.Second, nil)
			b.mustSweep()
			if n := len(b.flows()); n != 0 || entriesOf(t, b.Dataplane) != 0 {
				t.Errorf("%d flows are left", n)
			}
			b.exact("gone")
		}
	}
}

// A half-closed connection of which nothing comes after the failover ends by its own timeout, counted
// from the death of its owner, and not by that of an open one.
func TestHalfClosedReplicaAgesFromTheDeathOfItsOwner(t *testing.T) {
	a, b := twoNodes(t)
	runDataplane(t, a.Dataplane)
	a.heard()
	a.must(a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK}))
	carry(t, a, b)
	b.age(time.Minute, nil)
	b.mustSweep()
	if f := b.only(); f.State != StateFin {
		t.Fatalf("while the owner lives: %+v", f)
	}
	b.SetOwnersAlive(map[uint8]bool{3: false, 5: true})
	b.mustSweep()
	if n := len(b.flows()); n != 1 {
		t.Fatalf("%d flows right after its death", n)
	}
	died := b.owners.died[3]
	died.jiffies -= died.ticks(31 * time.Second)
	b.owners.died[3] = died
	b.mustSweep()
	if n := len(b.flows()); n != 0 {
		t.Errorf("%d flows half a minute after", n)
	}
}

// The new owner, and the old one that comes back without a memory and gets a snapshot, hand no tuple
// out that a living connection has.
func TestNoTupleIsHandedOutTwiceAfterAFailover(t *testing.T) {
	const each = 300
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	for _, n := range []*bench{a, b} {
		n.sync(service(ModeFullNAT, endpoint1))
		runDataplane(t, n.Dataplane)
	}
	taken := map[netip.AddrPort]string{}
	open := func(n *bench, who string, from uint16) {
		t.Helper()
		for i := range uint16(each) {
			snat, _ := n.talk(netip.AddrPortFrom(client, from+i), vipPort)
			if before := taken[snat]; before != "" {
				t.Fatalf("%s was handed out by %s and by %s", snat, before, who)
			}
			taken[snat] = who
		}
	}
	open(a, "the first owner", 2000)
	heir(t, a, b)
	for i := range uint16(each) {
		b.must(b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, 2000+i), Dst: vipPort, Flags: bpftest.ACK}))
	}
	open(b, "its heir", 12000)
	if n := b.Stats().Adopted; n != each {
		t.Fatalf("adopted %d", n)
	}
	returned := newBench(t, nil)
	returned.sync(service(ModeFullNAT, endpoint1))
	returned.SetOwnersAlive(map[uint8]bool{3: true, 5: true})
	if r := importAll(t, returned.Dataplane, records(t, b.Dataplane)); r.Written != 2*each {
		t.Fatalf("%+v", r)
	}
	open(returned, "the one that came back", 22000)
	returned.exact("all of them")
}

// A client that has no flow any more, and one whose flows are all replicas, stay with their endpoint.
func TestClientsStayWithTheirEndpointAfterAFailover(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.Affinity = time.Hour
	for _, n := range []*bench{a, b} {
		n.sync(s)
		runDataplane(t, n.Dataplane)
	}
	b.talk(netip.AddrPortFrom(netip.MustParseAddr("10.9.0.6"), 999), vipPort) // the turn of the other endpoint
	_, with := a.talk(clientPort, vipPort)
	heir(t, a, b)
	for i := range uint16(6) {
		if _, to := b.talk(netip.AddrPortFrom(client, 41000+i), vipPort); to != with {
			t.Fatalf("connection %d goes to %s, before to %s", i, to, with)
		}
	}
}
