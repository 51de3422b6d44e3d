package bpf

import (
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// mastered are two nodes with one connection of the first, which is the master.
func mastered(t *testing.T) (a, b *bench) {
	t.Helper()
	a, b = twoNodes(t)
	s := service(ModeFullNAT, endpoint1)
	s.Epoch = 10
	a.sync(s)
	runDataplane(t, a.Dataplane)
	runDataplane(t, b.Dataplane)
	a.heard()
	b.heard()
	return a, b
}

// wire is what heard gives back, as bytes.
func wire(said []pontoonFlowRecord) []byte {
	var all []byte
	for i := range said {
		all = said[i].append(all)
	}
	for at := 0; at < len(all); at += RecordSize {
		toWire(all[at : at+RecordSize])
	}
	return all
}

// The two directions of a connection pass different nodes for as long as it lives: the master keeps
// it, the other says once that it has adopted it, and that is all that is said.
func TestDirectionsThroughTwoNodesCostOneRecord(t *testing.T) {
	a, b := mastered(t)
	snat := b.flows()[0].SNAT
	said := 0
	for range 20 {
		b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK})
		a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
		ofB, ofA := b.heard(), a.heard()
		said += len(ofA) + len(ofB)
		importAll(t, a.Dataplane, wire(ofB))
		importAll(t, b.Dataplane, wire(ofA))
	}
	if said != 1 || !a.flows()[0].Owner {
		t.Errorf("%d records for 20 turns; %+v", said, a.flows())
	}
	// The master's next word settles it there, too.
	importAll(t, b.Dataplane, records(t, a.Dataplane))
	if f := b.flows(); f[0].Owner || f[0].OwnerSlot != 3 {
		t.Errorf("at the other node: %+v", f)
	}
}

// A master whose flow another node forwards goes on to own it and must not let it idle out.
func TestFlowInUseElsewhereDoesNotIdleOutAtItsMaster(t *testing.T) {
	a, b := mastered(t)
	a.age(50*time.Minute, nil)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	if r := importAll(t, a.Dataplane, wire(b.heard())); r.Kept != 1 || r.Written != 0 {
		t.Fatalf("%+v", r)
	}
	if f := a.flows(); !f[0].Owner || f[0].Idle > time.Minute {
		t.Fatalf("%+v", f)
	}
	a.exact("refreshed")
	a.age(50*time.Minute, nil)
	a.mustSweep()
	if n := len(a.flows()); n != 1 {
		t.Errorf("%d flows after 50 minutes without a packet anywhere", n)
	}
}

// Who was the master before and comes back gives up what the new one forwards, without a reset.
func TestFormerMasterGivesWayToTheLaterEpoch(t *testing.T) {
	a, b := mastered(t)
	s := service(ModeFullNAT, endpoint1)
	s.Epoch = 11
	b.sync(s)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}) // a straggler
	if r := importAll(t, a.Dataplane, wire(b.heard())); r.Written != 1 || a.flows()[0].Owner {
		t.Errorf("%+v, %+v", r, a.flows())
	}
	b.age(time.Minute, nil)
	if r := importAll(t, b.Dataplane, records(t, a.Dataplane)); r.Written != 0 || !b.flows()[0].Owner {
		t.Errorf("what the former master repeats takes the flow: %+v", r)
	}
}
