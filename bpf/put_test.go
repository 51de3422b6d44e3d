package bpf

import (
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// A new connection goes into the table in one step with the look whether it is there. If only one of its
// tuples is free neither half may be left behind.
func TestNewConnectionIsPutInWholeOrNotAtAll(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	for _, n := range []*bench{a, b} {
		n.sync(service(ModeFullNAT, endpoint1))
	}
	a.talk(clientPort, vipPort)
	record := tellNew(records(t, a.Dataplane))
	r, err := parseRecord(record)
	if err != nil {
		t.Fatal(err)
	}
	// Here the reply's tuple belongs to a connection of this node that is in use.
	own := netip.AddrPortFrom(client, 40500)
	snat, _ := b.talk(own, vipPort)
	r.Snat, r.SnatPort, r.IdleMs = toAddr(snat.Addr()), swap16(snat.Port()), 60_000
	if got := importAll(t, b.Dataplane, r.append(nil)); got.Written != 0 || got.Kept != 1 {
		t.Errorf("%+v", got)
	}
	if f := b.flows(); len(f) != 1 || f[0].Client != own || !f[0].Owner {
		t.Errorf("flows: %+v", f)
	}
	b.whole()
	b.exact("after a tuple that was taken")
	if got := importAll(t, b.Dataplane, record); got.Written != 1 || len(b.flows()) != 2 {
		t.Errorf("%+v, %d flows", got, len(b.flows()))
	}
	b.whole()
	b.exact("after one that was free")
}

// What is told of as new and known already is handled as ever: the owner's word is taken, and what this
// node has adopted since stays.
func TestNewsOfAKnownConnectionIsNoNewConnection(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	for _, n := range []*bench{a, b} {
		n.sync(service(ModeFullNAT, endpoint1))
	}
	a.talk(clientPort, vipPort)
	record := tellNew(records(t, a.Dataplane))
	importAll(t, b.Dataplane, record)
	if got := importAll(t, b.Dataplane, record); got.Written != 1 || len(b.flows()) != 1 {
		t.Errorf("again: %+v", got)
	}
	a.age(time.Minute, nil)
	record = tellNew(records(t, a.Dataplane))
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	if got := importAll(t, b.Dataplane, record); got.Kept != 1 {
		t.Errorf("after the adoption: %+v", got)
	}
	if f := b.flows(); len(f) != 1 || !f[0].Owner {
		t.Errorf("flows: %+v", f)
	}
	b.whole()
	b.exact("after the same thrice")
}

// A snapshot is taken in by the way that suits it: most of it is new, or most of it is known.
func TestSnapshotIsTakenInWhateverIsKnownOfIt(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	for _, n := range []*bench{a, b} {
		n.sync(service(ModeFullNAT, endpoint1))
	}
	talkers(a, 4*importWindow)
	all := records(t, a.Dataplane)
	half := append([]byte(nil), all[:len(all)/2]...)
	for _, part := range [][]byte{half, all, all} {
		b.BeginSnapshot(3)
		if got := importAll(t, b.Dataplane, part); got.Written != len(part)/RecordSize {
			t.Errorf("%+v of %d", got, len(part)/RecordSize)
		}
		if removed, err := b.EndSnapshot(t.Context(), 3); removed != 0 || err != nil {
			t.Errorf("removed %d, %v", removed, err)
		}
		if n := len(b.flows()); n != len(part)/RecordSize {
			t.Errorf("%d flows of %d", n, len(part)/RecordSize)
		}
		b.exact("after a snapshot")
	}
	b.whole()
}

// tellNew makes of a record one of a connection that has just begun.
func tellNew(record []byte) []byte {
	record[recordReason] = reasonNew
	return record
}

// Whether a record is probably new is a guess that says nothing about whose word counts: a node that was
// dead, and lives, does not take a connection from who has forwarded it since.
func TestGuessThatAConnectionIsNewDecidesNothing(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	for _, n := range []*bench{a, b} {
		n.sync(service(ModeFullNAT, endpoint1))
	}
	a.talk(clientPort, vipPort)
	r, err := parseRecord(records(t, a.Dataplane))
	if err != nil {
		t.Fatal(err)
	}
	r.OwnerSlot, r.IdleMs, r.AgeMs = 6, 60_000, 3_600_000
	importAll(t, b.Dataplane, r.append(nil))
	for _, lives := range []bool{true, false, true} {
		b.SetOwnersAlive(map[uint8]bool{3: lives, 6: true})
	}
	b.longAgo(30 * time.Second)
	r.OwnerSlot, r.IdleMs = 3, 600_000
	for _, reason := range []uint8{reasonState, reasonNew} {
		r.Reason = reason
		if got := importAll(t, b.Dataplane, r.append(nil)); got.Kept != 1 {
			t.Errorf("reason %d: %+v", reason, got)
		}
		if f := b.flows(); len(f) != 1 || f[0].OwnerSlot != 6 {
			t.Errorf("reason %d: %+v", reason, f)
		}
	}
}
