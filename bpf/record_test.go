package bpf

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// Records come from other machines: whatever they say, the table stays whole and the counts right.
func TestRandomRecordsLeaveTheTableWhole(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot, o.MaxFlows = 5, 64 })
	s := affine()
	a.sync(s)
	b.sync(s)
	for i := range 20 {
		a.talk(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
	}
	good := records(t, a.Dataplane)
	const seed = 11
	random := rand.New(rand.NewPCG(seed, seed))
	for round := range 300 {
		bad := append([]byte(nil), good...)
		for range 40 {
			bad[random.IntN(len(bad))] = byte(random.Uint32())
		}
		for at := recordOp; at < len(bad); at += RecordSize {
			switch random.IntN(6) {
			case 0:
				bad[at] = opAffinity
			case 1:
				bad[at] = opDelete
			case 2: // one half
				bad[at-2] = uint8(ModeDSR)
			}
		}
		importAll(t, b.Dataplane, bad)
		b.exact("imported")
		if round%50 == 0 {
			b.whole()
		}
	}
	b.whole()
}

// whole demands that every half in the flow table has its other half, where it has one.
func (b *bench) whole() {
	b.tb.Helper()
	for part, err := range dump(b.tb.Context(), b.maps.Flows) {
		if err != nil {
			b.tb.Fatal(err)
		}
		for i := range part.keys {
			f := part.values[i]
			var other pontoonFlow
			found, err := partner(b.flowTable(), &part.keys[i], &f, &other)
			if err != nil {
				b.tb.Fatal(err)
			}
			if !found && !f.oneHalf() {
				b.tb.Fatalf("%+v of %+v is alone", f, part.keys[i])
			}
		}
	}
}
