package bpf

import (
	"math/rand/v2"
	"testing"
)

func TestFinderAnswersMoreQuestionsThanItHasRoomFor(t *testing.T) {
	b := newBench(t, nil)
	b.establish(700, benchPaths()[0])
	var keys []pontoonFlowKey
	for part, err := range dump(t.Context(), b.maps.Flows) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range part.keys {
			stranger := part.keys[i]
			stranger.Proto = protoSCTP
			keys = append(keys, part.keys[i], stranger)
		}
	}
	for _, n := range []int{0, 1, 511, 512, 513, 1024, len(keys)} {
		next := 0
		err := b.finder.find(keys[:n], func(i int, found *pontoonFlow) {
			if i != next {
				t.Fatalf("answer %d comes as the %d-th", i, next)
			}
			next++
			var want pontoonFlow
			there, err := lookup(b.maps.Flows, keys[i], &want)
			if err != nil {
				t.Fatal(err)
			}
			if there != (found != nil) || there && *found != want {
				t.Fatalf("%d of %d: %v, want %v (%+v)", i, n, found, there, want)
			}
		})
		if err != nil || next != n {
			t.Fatalf("%d of %d answers, %v", next, n, err)
		}
	}
}

func TestHashSetKnowsWhatWasPutIn(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var set hashSet
	if set.has(7) {
		t.Error("an empty set has something")
	}
	known := map[uint64]bool{}
	for range 20_000 {
		h := random.Uint64N(1<<16) << 1
		if set.has(h) != known[h] || set.add(h) != known[h] || !set.has(h) {
			t.Fatalf("%d", h)
		}
		known[h] = true
	}
	if set.n != len(known) {
		t.Errorf("%d elements, want %d", set.n, len(known))
	}
	set.reset()
	for h := range known {
		if set.has(h) {
			t.Fatal("not emptied")
		}
	}
}
