package fsm

import (
	"testing"

	"pgregory.net/rapid"
)

func TestIDRingGoesRoundBeforeItRepeats(t *testing.T) {
	r := newIDRing()
	for want := uint32(1); want <= MaxID; want++ {
		if got := r.take(); got != want {
			t.Fatalf("took %d, want %d", got, want)
		}
		if want != 7 && want != 65535 {
			r.drop(want)
		}
	}
	var second []uint32
	for range 8 {
		second = append(second, r.take())
	}
	if second[0] != 1 || second[6] != 8 {
		t.Errorf("the second round begins with %v, want 7 left out", second)
	}
	if r.held != 10 || r.room() != MaxID-10 || !r.has(7) || !r.has(0) || r.has(9999) {
		t.Errorf("%d held, room %d", r.held, r.room())
	}
}

func TestIDRingFindsTheLastOne(t *testing.T) {
	r := newIDRing()
	for r.room() > 0 {
		r.take()
	}
	for _, id := range []uint32{1, 63, 64, 65535, 40000} {
		r.drop(id)
		for _, from := range []uint32{1, id, max(1, id-1), min(MaxID, id+1), MaxID} {
			r.next = from
			if got := r.take(); got != id {
				t.Fatalf("from %d on: took %d, want %d", from, got, id)
			}
			r.drop(id)
		}
		r.put(id)
	}
}

func TestIDRingOfADraftLeavesTheStateAlone(t *testing.T) {
	r := newIDRing()
	r.take()
	r.freeze()
	before := *r.taken
	draft := r
	draft.take()
	draft.drop(1)
	if *r.taken != before || r.next != 2 || r.held != 1 {
		t.Error("a draft wrote to the ring of the state")
	}
}

// TestEndpointIDs holds that ids are nobody's twice, stay with their endpoint,
// and come back as late as can be. That they are the same on all replicas, also
// after a restore, is held by TestSameLogGivesSameBytesAlsoAfterARestore.
func TestEndpointIDs(t *testing.T) {
	kept, made := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		for _, c := range genLog(t) {
			before := s
			s, _ = s.Apply(s.Index()+1, c)
			seen := map[uint32]string{}
			for _, svc := range s.Services() {
				old, existed := before.Service(svc.Name)
				for _, e := range svc.Endpoints {
					if other, twice := seen[e.ID]; twice || e.ID == 0 || e.ID > MaxID {
						t.Fatalf("endpoint %s of %s has id %d, as %s", e.Address, svc.Name, e.ID, other)
					}
					seen[e.ID] = svc.Name
					if !s.endpointIDs.has(e.ID) {
						t.Fatalf("id %d is not taken", e.ID)
					}
					i, stays := old.endpointAt(e.Address)
					switch _, batch := c.(Batch); {
					case batch: // may delete and make anew
					case existed && stays && old.Endpoints[i].ID != e.ID:
						t.Fatalf("%+v: endpoint %s of %s had id %d and has %d", c, e.Address, svc.Name, old.Endpoints[i].ID, e.ID)
					case existed && stays:
						kept++
					case e.ID < before.endpointIDs.next:
						t.Fatalf("%+v: new endpoint %s has id %d, and %d was next", c, e.Address, e.ID, before.endpointIDs.next)
					default:
						made++
					}
				}
			}
			if len(seen) != s.endpointIDs.held {
				t.Fatalf("%d endpoints, and %d ids are taken", len(seen), s.endpointIDs.held)
			}
			if len(s.Services()) != s.serviceIDs.held {
				t.Fatalf("%d services, and %d ids are taken", len(s.Services()), s.serviceIDs.held)
			}
		}
	})
	t.Logf("%d endpoints made, %d kept", made, kept)
	if made < 50 || kept < 50 {
		t.Errorf("%d endpoints made, %d kept: too few to tell anything", made, kept)
	}
}
