package bpf

import (
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"pgregory.net/rapid"
)

// Whatever flows are adopted when, each that has a place of its own is told of at most once a second,
// and what was not told is owed until it is.
func TestAdoptionsAreToldOnceASecondAndNoneIsForgotten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a adoptions
		now := time.Unix(1, 0)
		told, open := map[int]time.Time{}, map[int]bool{}
		keys, number := distinctPlaces(8)
		note := func(i int) {
			if last, ok := told[i]; ok && now.Sub(last) < adoptEvery {
				t.Fatalf("flow %d is told of again after %s", i, now.Sub(last))
			}
			told[i] = now
			delete(open, i)
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "ms")) * time.Millisecond)
			i := rapid.IntRange(0, len(keys)-1).Draw(t, "flow")
			if a.tell(keys[i], now) {
				note(i)
			} else {
				open[i] = true
			}
			for _, key := range a.due(now) {
				note(number[key])
			}
		}
		now = now.Add(adoptEvery)
		for _, key := range a.due(now) {
			note(number[key])
		}
		if len(open) != 0 || len(a.owed) != 0 {
			t.Fatalf("never told: %v, owed %v", open, a.owed)
		}
	})
}

// distinctPlaces returns keys that do not share a place.
func distinctPlaces(n int) ([]pontoonFlowKey, map[pontoonFlowKey]int) {
	var keys []pontoonFlowKey
	number, taken := map[pontoonFlowKey]int{}, map[uint64]bool{}
	for port := uint16(1024); len(keys) < n; port++ {
		key := keyOf(netip.AddrPortFrom(client, port), vipPort)
		if at := key.hash(0) % adoptionPlaces; !taken[at] {
			taken[at], number[key] = true, len(keys)
			keys = append(keys, key)
		}
	}
	return keys, number
}

// Another flow in the place of one that is owed is told of at once, and does not take it.
func TestFlowsThatShareAPlaceAreAllToldOf(t *testing.T) {
	var a adoptions
	first := keyOf(clientPort, vipPort)
	second := first
	for n := uint32(0); second == first || second.hash(0)%adoptionPlaces != first.hash(0)%adoptionPlaces; n++ {
		second = keyOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 40000), vipPort)
	}
	now := time.Unix(1, 0)
	if !a.tell(first, now) || a.tell(first, now) || !a.tell(second, now) || !a.tell(second, now) {
		t.Error("the second flow waits, or the first does not")
	}
	if due := a.due(now.Add(adoptEvery)); len(due) != 1 || due[0] != first {
		t.Errorf("due: %+v", due)
	}
}

// Two nodes without a master between them adopt a flow from each other all the time.
func TestAdoptionInTurnIsToldOnceASecond(t *testing.T) {
	a, b := twoNodes(t)
	runDataplane(t, b.Dataplane)
	claims := records(t, a.Dataplane)
	began := time.Now()
	const turns = 50
	for range turns {
		b.age(time.Second, nil) // so that the other one's word counts
		if r := importAll(t, b.Dataplane, claims); r.Written != 1 {
			t.Fatalf("%+v", r)
		}
		b.must(b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}))
	}
	if n := b.Stats().Adopted; n != turns {
		t.Fatalf("adopted %d times", n)
	}
	var said []pontoonFlowRecord
	deadline := time.Now().Add(10 * time.Second)
	for len(said) < 2 && time.Now().Before(deadline) {
		said = append(said, b.heard()...)
	}
	seconds := int(time.Since(began)/adoptEvery) + 1
	if len(said) < 2 || len(said) > seconds+1 {
		t.Fatalf("%d records in %d s", len(said), seconds)
	}
	for _, r := range said {
		if r.Reason != reasonAdopt || r.OwnerSlot != 5 || FlowState(r.State) != StateEstablished {
			t.Errorf("%+v", r)
		}
	}
	// The last word is the last state.
	if r := importAll(t, a.Dataplane, wire(said[len(said)-1:])); r.Written != 1 || a.flows()[0].Owner {
		t.Errorf("%+v, at the other node %+v", r, a.flows())
	}
	// What is no longer ours is not told.
	if err := b.tellOwed([]pontoonFlowKey{keyOf(clientPort, vipPort), keyOf(netip.AddrPortFrom(client, 9), vipPort)}); err != nil {
		t.Fatal(err)
	}
	if n := len(b.heard()); n != 1 {
		t.Errorf("%d records of a flow that is ours and one that is not", n)
	}
	b.age(time.Second, nil)
	importAll(t, b.Dataplane, claims)
	if err := b.tellOwed([]pontoonFlowKey{keyOf(clientPort, vipPort)}); err != nil {
		t.Fatal(err)
	}
	if said := b.heard(); len(said) != 0 {
		t.Errorf("said of what another owns: %+v", said)
	}
}
