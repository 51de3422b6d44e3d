package bpf

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// mustDigest is Digest of an owner.
func (b *bench) mustDigest(owner uint8) []uint64 {
	b.tb.Helper()
	sums, err := b.Digest(context.Background(), owner)
	if err != nil {
		b.tb.Fatal(err)
	}
	return sums
}

// differing are the buckets of two digests that are not the same.
func differing(a, b []uint64) []uint32 {
	var out []uint32
	for i := range a {
		if a[i] != b[i] {
			out = append(out, uint32(i))
		}
	}
	return out
}

// repairTo does what replication does about buckets that differ.
func (b *bench) repairTo(to *bench, buckets []uint32) (removed int) {
	b.tb.Helper()
	to.BeginRepair(b.opts.Slot, buckets)
	for part, err := range b.RecordsOf(context.Background(), buckets) {
		if err != nil {
			b.tb.Fatal(err)
		}
		importAll(b.tb, to.Dataplane, part)
	}
	removed, err := to.EndRepair(context.Background(), b.opts.Slot)
	if err != nil {
		b.tb.Fatal(err)
	}
	return removed
}

func talkers(b *bench, n int) {
	for i := range n {
		b.talk(netip.AddrPortFrom(client, uint16(40000+i)), vipPort)
	}
}

// A replica that missed the beginning, the end or the closing of connections has other digests in
// exactly the buckets where they are, and a repair of those makes it equal.
func TestDigestsFindAndRepairsMendWhatDiffers(t *testing.T) {
	a, b := twoNodes(t)
	talkers(a, 30)
	snapshot(t, a, b)
	a.age(time.Minute, nil)
	b.age(time.Minute, nil)
	if d := differing(a.mustDigest(3), b.mustDigest(3)); len(d) != 0 || slices.Equal(a.mustDigest(3), make([]uint64, DigestBuckets)) {
		t.Fatalf("%d buckets of equal tables differ", len(d))
	}
	// A record overtaken by the DELETE of its connection: the replica would stay for ever.
	gone := netip.AddrPortFrom(client, 40003)
	stale := records(t, a.Dataplane)
	key := keyOf(gone, vipPort)
	if err := a.removeForward(key); err != nil {
		t.Fatal(err)
	}
	importAll(t, b.Dataplane, stale)
	b.age(time.Minute, func(f *pontoonFlow) bool { return true })
	// A connection that b never heard of, and one whose FIN it missed.
	missed, closing := keyOf(netip.AddrPortFrom(client, 40007), vipPort), netip.AddrPortFrom(client, 40011)
	if err := b.removeForward(missed); err != nil {
		t.Fatal(err)
	}
	a.fromClient(bpftest.Packet{Src: closing, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK})
	fin := keyOf(closing, vipPort)
	want := []uint32{key.bucket(), missed.bucket(), fin.bucket()}
	slices.Sort(want)
	d := differing(a.mustDigest(3), b.mustDigest(3))
	if !slices.Equal(d, slices.Compact(want)) {
		t.Fatalf("buckets %v differ, want %v", d, want)
	}
	if removed := a.repairTo(b, d); removed != 1 {
		t.Errorf("%d replicas removed, want the stale one", removed)
	}
	if d := differing(a.mustDigest(3), b.mustDigest(3)); len(d) != 0 {
		t.Errorf("buckets %v differ after the repair", d)
	}
	if n := len(b.flows()); n != 29 {
		t.Errorf("%d flows, want 29", n)
	}
	b.exact("repaired")
}

// What is born or adopted while a repair is under way is not its business.
func TestRepairRemovesOnlyWhatWasThereBefore(t *testing.T) {
	a, b := twoNodes(t)
	b.age(time.Minute, nil)
	all := make([]uint32, DigestBuckets)
	for i := range all {
		all[i] = uint32(i)
	}
	b.BeginRepair(3, all)
	a.talk(netip.AddrPortFrom(client, 41000), vipPort)
	b.repairs.open[3].began.jiffies -= 1 << createdShift
	late := records(t, a.Dataplane)
	b.repairs.forget(3, nil) // what it names is not noted
	importAll(t, b.Dataplane, late)
	b.BeginRepair(3, all)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	open := b.repairs.open[3]
	open.began.jiffies -= open.began.ticks(time.Second)
	removed, err := b.EndRepair(context.Background(), 3)
	if err != nil || removed != 0 {
		t.Errorf("removed %d, %v; flows %+v", removed, err, b.flows())
	}
	if _, err := b.EndRepair(context.Background(), 3); err == nil {
		t.Error("ended twice")
	}
	b.BeginRepair(3, all)
	b.BeginSnapshot(3)
	if _, err := b.EndRepair(context.Background(), 3); err == nil {
		t.Error("a snapshot has begun since")
	}
}

// Young and closed connections are under way; orphans are nobody's.
func TestDigestsLeaveOutWhatIsUnderWay(t *testing.T) {
	a, b := twoNodes(t)
	none := make([]uint64, DigestBuckets)
	if !slices.Equal(a.mustDigest(3), none) || !slices.Equal(b.mustDigest(3), none) {
		t.Error("a connection of this moment is in a digest")
	}
	a.age(time.Minute, nil)
	b.age(time.Minute, nil)
	if slices.Equal(a.mustDigest(3), none) || !slices.Equal(a.mustDigest(3), b.mustDigest(3)) || !slices.Equal(a.mustDigest(5), none) {
		t.Error("an old connection is not in the digest of its owner alone")
	}
	b.SetOwnersAlive(map[uint8]bool{5: true})
	if !slices.Equal(b.mustDigest(3), none) {
		t.Error("an orphan is in the digest of its dead owner")
	}
	a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.RST})
	if !slices.Equal(a.mustDigest(3), none) {
		t.Error("a closed connection is in a digest")
	}
}
