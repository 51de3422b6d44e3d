package bpf

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// threeNodes are slot 3, and slots 5 and 6 that hold the same connections of it.
func threeNodes(t *testing.T, connections int) (a, b, c *bench) {
	t.Helper()
	a = newBench(t, nil)
	b, c = newBench(t, func(o *Options) { o.Slot = 5 }), newBench(t, func(o *Options) { o.Slot = 6 })
	for _, n := range []*bench{a, b, c} {
		n.sync(service(ModeFullNAT, endpoint1))
		n.SetOwnersAlive(map[uint8]bool{3: true, 5: true, 6: true})
	}
	talkers(a, connections)
	for _, n := range []*bench{b, c} {
		snapshot(t, a, n)
	}
	return a, b, c
}

// die is the death of slot 3 as n learns of it.
func (b *bench) die() {
	b.tb.Helper()
	if !b.SetOwnersAlive(map[uint8]bool{3: false, 5: true, 6: true}) {
		b.tb.Error("nobody has died")
	}
}

func (b *bench) mustOrphans() Orphans {
	b.tb.Helper()
	o, err := b.OrphanDigest(context.Background())
	if err != nil {
		b.tb.Fatal(err)
	}
	return o
}

// rob takes a connection out of the table behind everybody's back.
func (b *bench) rob(key pontoonFlowKey) {
	b.tb.Helper()
	var f pontoonFlow
	found, err := lookup(b.maps.Flows, key, &f)
	if err != nil || !found {
		b.tb.Fatal(found, err)
	}
	var gone removal
	gone.add(key, &f)
	b.flowMu.Lock()
	defer b.flowMu.Unlock()
	if err := b.remove(b.flowTable(), gone); err != nil {
		b.tb.Fatal(err)
	}
}

// give does what replication does about orphans that b has and to does not.
func (b *bench) give(to *bench) ImportResult {
	b.tb.Helper()
	mine, theirs := b.mustOrphans(), to.mustOrphans()
	if mine.View != theirs.View {
		b.tb.Fatalf("views %b and %b", mine.View, theirs.View)
	}
	var sum ImportResult
	for part, err := range b.OrphanRecordsOf(context.Background(), differing(mine.Sums, theirs.Sums)) {
		if err != nil {
			b.tb.Fatal(err)
		}
		r := importAll(b.tb, to.Dataplane, part)
		sum.Written, sum.Orphans, sum.Kept = sum.Written+r.Written, sum.Orphans+r.Orphans, sum.Kept+r.Kept
	}
	return sum
}

// pass passes on what n tells the others.
func pass(t *testing.T, n *bench, to ...*bench) {
	t.Helper()
	for {
		select {
		case batch := <-n.Events():
			for _, other := range to {
				importAll(t, other.Dataplane, slices.Clone(batch))
			}
		default:
			return
		}
	}
}

func sameOrphans(t *testing.T, b, c *bench, records uint64) {
	t.Helper()
	mine, theirs := b.mustOrphans(), c.mustOrphans()
	if d := differing(mine.Sums, theirs.Sums); len(d) != 0 || mine.Records != records || theirs.Records != records {
		t.Errorf("%d and %d orphans instead of %d, %d buckets differ", mine.Records, theirs.Records, records, len(d))
	}
}

// What the last words of a dead node brought to one survivor only is known to both soon after, and
// the first packet there adopts it.
func TestSurvivorsGiveEachOtherWhatTheyHoldOfTheDead(t *testing.T) {
	a, b, c := threeNodes(t, 20)
	last := netip.AddrPortFrom(client, 41000)
	snat, _ := a.talk(last, vipPort)
	importAll(t, c.Dataplane, records(t, a.Dataplane))
	c.rob(keyOf(netip.AddrPortFrom(client, 40003), vipPort))
	for _, n := range []*bench{b, c} {
		if o := n.mustOrphans(); o.Records != 0 || o.View != 1<<3|1<<5|1<<6 {
			t.Errorf("orphans of the living: %d, view %b", o.Records, o.View)
		}
		n.die()
	}
	if r := c.give(b); r.Orphans != 1 || r.Written != 1 {
		t.Errorf("to b: %+v", r)
	}
	if r := b.give(c); r.Orphans != 1 {
		t.Errorf("to c: %+v", r)
	}
	sameOrphans(t, b, c, 21)
	b.exact("after gifts")
	for _, f := range b.flows() {
		if f.Client == last && (f.Owner || f.OwnerSlot != 3 || f.SNAT != snat || f.State != StateEstablished) {
			t.Errorf("entered as %+v", f)
		}
	}
	runDataplane(t, b.Dataplane)
	if action, _ := b.fromClient(bpftest.Packet{Src: last, Dst: vipPort, Flags: bpftest.ACK, Payload: []byte("still here")}); action != actRedirect {
		t.Errorf("action %d, drops %v", action, b.Stats().Drops)
	}
	if n := b.Stats().Adopted; n != 1 {
		t.Errorf("adopted %d", n)
	}
	if r := c.give(b); r.Orphans != 0 { // c has not heard of it
		t.Errorf("what was adopted is taken for an orphan: %+v", r)
	}
	importAll(t, c.Dataplane, <-b.Events())
	sameOrphans(t, b, c, 20)
}

// longAgo makes the death of slot 3 so much older.
func (b *bench) longAgo(d time.Duration) {
	died := b.owners.died[3]
	died.jiffies -= died.ticks(d)
	b.owners.died[3] = died
}

// A connection that one survivor knows to have ended is not brought back by the other, and ends there.
func TestOrphansThatEndedAreNotRevived(t *testing.T) {
	for name, end := range map[string]func(a, b *bench, records []byte){
		"by the dead node's own word": func(_, b *bench, records []byte) {
			records[recordOp] = opDelete
			importAll(t, b.Dataplane, records)
		},
		"by the survivor that adopted it": func(a, b *bench, _ []byte) {
			b.die()
			b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.RST})
			b.age(time.Hour, nil)
			b.mustSweep()
			for range len(b.Events()) { // nobody hears of it
				<-b.Events()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, c := threeNodes(t, 0)
			a.talk(clientPort, vipPort)
			all := records(t, a.Dataplane)
			importAll(t, b.Dataplane, all)
			importAll(t, c.Dataplane, all)
			for _, n := range []*bench{a, b, c} {
				n.age(time.Minute, nil)
			}
			end(a, b, all)
			c.age(time.Hour, nil)
			b.SetOwnersAlive(map[uint8]bool{5: true, 6: true})
			c.die()
			if n := len(b.flows()); n != 0 {
				t.Fatalf("%d flows", n)
			}
			if r := c.give(b); r.Orphans != 0 || r.Kept != 1 || len(b.flows()) != 0 {
				t.Errorf("revived: %+v", r)
			}
			pass(t, b, c)
			if n := len(c.flows()); n != 0 {
				t.Errorf("%d flows where nobody had heard of the end", n)
			}
		})
	}
}

// The client has used its port again since: what ended was another connection.
func TestOrphanIsNotTakenForTheOneBeforeIt(t *testing.T) {
	a, b, c := threeNodes(t, 0)
	a.talk(clientPort, vipPort)
	old := records(t, a.Dataplane)
	importAll(t, b.Dataplane, old)
	for _, n := range []*bench{a, b} {
		n.age(time.Minute, nil)
	}
	old[recordOp] = opDelete
	importAll(t, b.Dataplane, old)
	if _, err := a.Flush(context.Background(), 7); err != nil {
		t.Fatal(err)
	}
	a.talk(clientPort, vipPort)
	importAll(t, c.Dataplane, records(t, a.Dataplane))
	b.die()
	c.die()
	if r := c.give(b); r.Orphans != 1 {
		t.Errorf("%+v", r)
	}
	sameOrphans(t, b, c, 1)
	pass(t, b, c)
	sameOrphans(t, b, c, 1)
}

// An orphan is as old on every node, and given away it gets no younger: or the survivors would keep it
// alive for each other for ever.
func TestOrphansDoNotGetYoungerByBeingGivenAway(t *testing.T) {
	_, b, c := threeNodes(t, 1)
	for _, n := range []*bench{b, c} {
		n.age(10*time.Hour, nil)
		n.die()
		n.longAgo(30 * time.Minute)
	}
	c.rob(keyOf(netip.AddrPortFrom(client, 40000), vipPort))
	if r := b.give(c); r.Orphans != 1 {
		t.Fatalf("%+v", r)
	}
	c.mustSweep()
	if n := len(c.flows()); n != 1 {
		t.Fatalf("%d flows half an hour after the death", n)
	}
	given := c.owners.died[3]
	c.longAgo(40 * time.Minute)
	c.mustSweep()
	if n := len(c.flows()); n != 0 {
		t.Fatalf("%d flows 70 minutes after the death: it got younger", n)
	}
	c.owners.died[3] = given
	if r := b.give(c); r.Orphans != 1 {
		t.Fatalf("%+v", r)
	}
	c.rob(keyOf(netip.AddrPortFrom(client, 40000), vipPort))
	c.longAgo(2 * time.Hour)
	if r := b.give(c); r.Orphans != 0 || r.Kept != 1 {
		t.Errorf("whose time is over: %+v", r)
	}
}

// Neither side of a gift may touch what a living node forwards, or has a claim to: not the same
// connection, and not another that has its tuple.
func TestOrphansGiveWayToWhatLives(t *testing.T) {
	a, b, c := threeNodes(t, 0)
	a.talk(clientPort, vipPort)
	importAll(t, c.Dataplane, records(t, a.Dataplane))
	c.age(time.Minute, nil)
	c.die()
	b.SetOwnersAlive(map[uint8]bool{5: true, 6: true})
	b.talk(clientPort, vipPort) // the client has begun anew
	b.age(10*time.Minute, nil)
	was := b.flows()
	if r := c.give(b); r.Written != 0 || r.Kept != 1 {
		t.Errorf("%+v", r)
	}
	if is := b.flows(); len(is) != 1 || !is[0].Owner || is[0].SNAT != was[0].SNAT {
		t.Errorf("%+v became %+v", was, is)
	}
}

// Of two orphans that claim one tuple the same survives on both sides, and of two words about one
// the later state.
func TestSurvivorsAgreeOnWhatTheyHoldDifferently(t *testing.T) {
	a, b, c := threeNodes(t, 0)
	a.talk(clientPort, vipPort)
	first := records(t, a.Dataplane)
	importAll(t, b.Dataplane, first)
	if _, err := a.Flush(context.Background(), 7); err != nil {
		t.Fatal(err)
	}
	b.age(time.Minute, nil)
	other := netip.AddrPortFrom(client, 41001)
	a.talk(other, vipPort)
	importAll(t, b.Dataplane, records(t, a.Dataplane))
	a.talk(clientPort, vipPort) // with another port to the endpoint
	snat, _ := a.talk(clientPort, vipPort)
	a.fromClient(bpftest.Packet{Src: other, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK})
	importAll(t, c.Dataplane, records(t, a.Dataplane))
	b.die()
	c.die()
	if slices.Equal(b.mustOrphans().Sums, c.mustOrphans().Sums) {
		t.Fatal("nothing differs")
	}
	b.give(c)
	c.give(b)
	sameOrphans(t, b, c, 2)
	for _, n := range []*bench{b, c} {
		for _, f := range n.flows() {
			if f.Client == clientPort && f.SNAT != snat || f.Client == other && f.State == StateEstablished {
				t.Errorf("%+v", f)
			}
		}
		n.whole()
		n.exact("after gifts")
	}
}

// Whatever two survivors hold of the dead, the same or not, after a gift in each direction they hold
// the same.
func TestGiftsInBothDirectionsMakeEqual(t *testing.T) {
	a, b, c := threeNodes(t, 40)
	const seed = 5
	random := rand.New(rand.NewPCG(seed, seed))
	all := records(t, a.Dataplane)
	for _, n := range []*bench{b, c} {
		for at := 0; at < len(all); at += RecordSize {
			one := slices.Clone(all[at : at+RecordSize])
			switch random.IntN(4) {
			case 0:
				n.rob(forwardKey(one))
			case 1:
				one[78] = uint8(StateEstablished) + uint8(random.IntN(int(StateClosed-StateEstablished)+1))
				one[recordReason] = reasonState
				importAll(t, n.Dataplane, one)
			}
		}
		n.die()
	}
	b.give(c)
	c.give(b)
	sameOrphans(t, b, c, b.mustOrphans().Records)
	b.whole()
	c.whole()
}

// While there are no orphans nobody looks for them.
func TestTableWithoutOrphansIsNotSearchedForThem(t *testing.T) {
	_, b, c := threeNodes(t, 3)
	searched := func(n *bench) bool { return n.owners.none.Load() != n.owners.news.Load()+1 }
	if b.mustOrphans(); searched(b) {
		t.Error("the next look searches although there was nothing")
	}
	if b.die(); !searched(b) || b.mustOrphans().Records != 3 || !searched(b) {
		t.Error("the orphans of a death are not looked for")
	}
	b.SetOwnersAlive(map[uint8]bool{3: true, 5: true, 6: true})
	b.mustOrphans()
	c.die()
	b.rob(keyOf(netip.AddrPortFrom(client, 40000), vipPort))
	importAll(t, b.Dataplane, records(t, c.Dataplane))
	if !searched(b) {
		t.Error("orphans that another node told of are not looked for")
	}
}
