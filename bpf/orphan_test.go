package bpf

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// twoNodes are slot 3 with one established connection and slot 5 with its replica.
func twoNodes(t *testing.T) (a, b *bench) {
	t.Helper()
	a, b = newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	for _, n := range []*bench{a, b} {
		n.sync(service(ModeFullNAT, endpoint1))
	}
	a.talk(clientPort, vipPort)
	importAll(t, b.Dataplane, records(t, a.Dataplane))
	b.SetOwnersAlive(map[uint8]bool{3: true, 5: true})
	return a, b
}

// comeBack is the death of slot 3 as slot 5 sees it, and its return.
func comeBack(b *bench) {
	b.age(time.Second, nil)
	b.SetOwnersAlive(map[uint8]bool{3: false, 5: true})
	b.SetOwnersAlive(map[uint8]bool{3: true, 5: true})
}

// snapshot carries everything that from holds to to, as replication does.
func snapshot(t *testing.T, from, to *bench) (removed int) {
	t.Helper()
	to.BeginSnapshot(from.opts.Slot)
	importAll(t, to.Dataplane, records(t, from.Dataplane))
	removed, err := to.EndSnapshot(context.Background(), from.opts.Slot)
	if err != nil {
		t.Fatal(err)
	}
	return removed
}

// A connection that is silent while its load balancer dies and returns is known to the others
// alone: the machine that returns has forgotten it and must not make them forget.
func TestIdleFlowOutlivesTheReturnOfItsForgetfulOwner(t *testing.T) {
	_, b := twoNodes(t)
	comeBack(b)
	reborn := newBench(t, nil)
	reborn.sync(service(ModeFullNAT, endpoint1))
	if removed := snapshot(t, reborn, b); removed != 0 || len(b.flows()) != 1 {
		t.Fatalf("removed %d, flows %+v", removed, b.flows())
	}
	action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: []byte("still here")})
	if action != actRedirect {
		t.Errorf("action %d, drops %v", action, b.Stats().Drops)
	}
}

// What its owner took along into death is nobody's: it ages although the slot lives again.
func TestOrphanAgesAlthoughItsSlotLivesAgain(t *testing.T) {
	_, b := twoNodes(t)
	b.age(10*time.Hour, nil)
	comeBack(b)
	b.mustSweep()
	if n := len(b.flows()); n != 1 {
		t.Fatalf("%d flows right after the death", n)
	}
	died := b.owners.died[3]
	died.jiffies -= died.ticks(2 * time.Hour)
	b.owners.died[3] = died
	b.mustSweep()
	if n := len(b.flows()); n != 0 {
		t.Errorf("%d flows two hours after the death", n)
	}
}

// An owner that was declared dead and had only been slow vouches for its flows with a snapshot.
func TestOwnerThatRemembersTakesItsFlowsBack(t *testing.T) {
	a, b := twoNodes(t)
	comeBack(b)
	if removed := snapshot(t, a, b); removed != 0 {
		t.Fatalf("removed %d", removed)
	}
	died := b.owners.died[3]
	died.jiffies -= died.ticks(2 * time.Hour)
	b.owners.died[3] = died
	b.mustSweep()
	if n := len(b.flows()); n != 1 {
		t.Fatalf("%d flows: a flow aged that its living owner answers for", n)
	}
	if _, err := a.Flush(context.Background(), 7); err != nil {
		t.Fatal(err)
	}
	if removed := snapshot(t, a, b); removed != 1 || len(b.flows()) != 0 {
		t.Errorf("removed %d, flows %+v", removed, b.flows())
	}
}

// The machine that forgot gets its flows back from the others. It does not know when their last
// packets were, so they start ageing there, and their end is told to all.
func TestForgetfulOwnerGetsItsFlowsBack(t *testing.T) {
	_, b := twoNodes(t)
	b.age(10*time.Hour, nil)
	comeBack(b)
	reborn := newBench(t, nil)
	reborn.sync(service(ModeFullNAT, endpoint1))
	snapshot(t, b, reborn)
	reborn.mustSweep()
	if n := len(reborn.flows()); n != 1 {
		t.Fatalf("%d flows", n)
	}
	if removed := snapshot(t, reborn, b); removed != 0 || len(b.flows()) != 1 {
		t.Fatalf("removed %d", removed)
	}
	reborn.age(2*time.Hour, nil)
	reborn.mustSweep()
	select {
	case batch := <-reborn.Events():
		if r := importAll(t, b.Dataplane, batch); r.Deleted != 1 {
			t.Errorf("%+v", r)
		}
	default:
		t.Error("the end of a flow that is ours was not told")
	}
}

// A replica's stamp is younger than the owner's by what the record took to travel. That must not
// make the owner believe somebody who only repeats what it said itself.
func TestOwnFlowIsNotTakenFromUsByHearsay(t *testing.T) {
	a, b := twoNodes(t)
	a.age(time.Minute, nil)
	snapshot(t, b, a)
	if f := a.flows(); len(f) != 1 || !f[0].Owner {
		t.Fatalf("flows: %+v", f)
	}
	a.age(2*time.Hour, nil)
	a.mustSweep()
	select {
	case <-a.Events():
	default:
		t.Error("its end was not told")
	}
}

// What a third node still holds of an owner that lives does not count as named by the owner, and
// is no news once the owner's own snapshot is here.
func TestHearsayDoesNotKeepWhatTheOwnerDoesNotName(t *testing.T) {
	a, b := twoNodes(t)
	c := newBench(t, func(o *Options) { o.Slot = 6 })
	c.sync(service(ModeFullNAT, endpoint1))
	c.SetOwnersAlive(map[uint8]bool{3: true, 5: true, 6: true})
	if _, err := a.Flush(context.Background(), 7); err != nil {
		t.Fatal(err)
	}
	stale := records(t, b.Dataplane)
	c.BeginSnapshot(3)
	importAll(t, c.Dataplane, stale)
	if removed, err := c.EndSnapshot(context.Background(), 3); err != nil || removed != 1 {
		t.Errorf("removed %d, %v", removed, err)
	}
	if r := importAll(t, c.Dataplane, stale); r.Written != 0 || len(c.flows()) != 0 {
		t.Errorf("after the owner's snapshot: %+v", r)
	}
	c.SetOwnersAlive(map[uint8]bool{3: false, 5: true, 6: true})
	if r := importAll(t, c.Dataplane, stale); r.Written != 1 {
		t.Errorf("after the owner's death: %+v", r)
	}
}

// A node that was cut off still holds what another has adopted since. Neither its old claim nor
// its giving up may touch the replica of the new owner on a third node.
func TestOldOwnerCannotSpeakForWhatAnotherAdopted(t *testing.T) {
	a, b := twoNodes(t)
	c := newBench(t, func(o *Options) { o.Slot = 6 })
	a.age(time.Minute, nil)
	runDataplane(t, b.Dataplane)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	adopted := <-b.Events()
	importAll(t, c.Dataplane, adopted)
	claim := records(t, a.Dataplane)
	if r := importAll(t, c.Dataplane, claim); r.Kept != 1 {
		t.Errorf("old claim: %+v", r)
	}
	claim[recordOp] = opDelete
	if r := importAll(t, c.Dataplane, claim); r.Deleted != 0 || len(c.flows()) != 1 {
		t.Errorf("old owner's deletion: %+v", r)
	}
	if f := c.flows(); len(f) == 1 && f[0].OwnerSlot != 5 {
		t.Errorf("owner is %d", f[0].OwnerSlot)
	}
	adopted[recordOp] = opDelete
	if r := importAll(t, c.Dataplane, adopted); r.Deleted != 1 {
		t.Errorf("the owner's deletion: %+v", r)
	}
}

// The new member that gets a removed node's slot knows nothing of that node's flows.
func TestIdleFlowOutlivesTheNextHolderOfItsSlot(t *testing.T) {
	_, b := twoNodes(t)
	b.age(time.Second, nil)
	b.SetOwnersAlive(map[uint8]bool{5: true})
	b.SetOwnersAlive(map[uint8]bool{3: true, 5: true})
	next := newBench(t, nil)
	next.sync(service(ModeFullNAT, endpoint1))
	next.talk(netip.AddrPortFrom(client, 41000), vipPort)
	if removed := snapshot(t, next, b); removed != 0 || len(b.flows()) != 2 {
		t.Errorf("removed %d, flows %+v", removed, b.flows())
	}
}
