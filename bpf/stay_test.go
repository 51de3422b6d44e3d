package bpf

import (
	"errors"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// A connection that this node goes on to own lives by the younger packet that another has forwarded. What
// packets do to it here at the same moment is not undone.
func TestYoungerPacketElsewhereUndoesNothingHere(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1)
	s.Epoch = 10
	b.sync(s)
	snat, _ := b.talk(clientPort, vipPort)
	b.age(time.Minute, nil)
	said := records(t, b.Dataplane)
	claim, err := parseRecord(said)
	if err != nil {
		t.Fatal(err)
	}
	claim.OwnerSlot, claim.Epoch, claim.IdleMs = 5, 9, 1000
	now, err := b.clock.now()
	if err != nil {
		t.Fatal(err)
	}
	in := &b.importer
	in.begin(b.Dataplane, now)
	if err := in.record(claim.append(nil)); err != nil {
		t.Fatal(err)
	}
	if err := in.ask(); err != nil {
		t.Fatal(err)
	}
	for i := range in.items {
		in.decide(&in.items[i])
	}
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.FIN | bpftest.ACK})
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK})
	before := b.flows()[0]
	if err := errors.Join(in.write(), b.finder.stamp(in.seen, in.stamps)); err != nil {
		t.Fatal(err)
	}
	if f := b.flows()[0]; before.State != StateClosed || f.State != before.State || f.Packets != before.Packets || !f.Owner {
		t.Errorf("%+v became %+v", before, f)
	}
	b.age(time.Minute, nil)
	claim.AgeMs += 60_000
	if r := importAll(t, b.Dataplane, claim.append(nil)); r.Kept != 1 || b.flows()[0].Idle > 10*time.Second || !b.flows()[0].Owner {
		t.Errorf("%+v, %+v", r, b.flows())
	}
}
