package bpf

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// affine is a service whose clients stay, with two endpoints.
func affine() Service {
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.Affinity = time.Hour
	return s
}

// ageAffinities makes what is remembered older.
func (b *bench) ageAffinities(by time.Duration) {
	b.tb.Helper()
	now, err := b.clock.now()
	if err != nil {
		b.tb.Fatal(err)
	}
	for part, err := range dumpAffinities(context.Background(), b.maps.Affinities) {
		if err != nil {
			b.tb.Fatal(err)
		}
		for i := range part.keys {
			part.values[i].Used -= uint32(now.ticks(by) >> createdShift)
			if err := b.maps.Affinities.Put(part.keys[i], part.values[i]); err != nil {
				b.tb.Fatal(err)
			}
		}
	}
}

func (b *bench) remembered() int {
	b.tb.Helper()
	n := 0
	for part, err := range dumpAffinities(context.Background(), b.maps.Affinities) {
		if err != nil {
			b.tb.Fatal(err)
		}
		n += len(part.keys)
	}
	return n
}

// goesTo opens a connection from a port of the client and tells where it goes.
func (b *bench) goesTo(port uint16) netip.AddrPort {
	b.tb.Helper()
	_, endpoint := b.talk(netip.AddrPortFrom(client, port), vipPort)
	return endpoint
}

func TestClientStaysWithItsEndpoint(t *testing.T) {
	b := newBench(t, nil)
	b.sync(affine())
	first := b.goesTo(2000)
	for i := range 9 {
		if e := b.goesTo(uint16(2001 + i)); e != first {
			t.Fatalf("connection %d goes to %s, the first went to %s", i, e, first)
		}
	}
	if n := b.Stats().Counters["affinity"]; n != 9 {
		t.Errorf("counted %d", n)
	}
}

func TestClientIsForgottenAfterTheTimeout(t *testing.T) {
	b := newBench(t, nil)
	b.sync(affine())
	b.goesTo(2000)
	b.ageAffinities(59 * time.Minute)
	if err := b.sweepAffinities(context.Background()); err != nil || b.remembered() != 1 {
		t.Fatalf("%d remembered before the timeout, %v", b.remembered(), err)
	}
	b.ageAffinities(2 * time.Minute)
	before := b.Stats().Counters["affinity"]
	b.goesTo(2001)
	if n := b.Stats().Counters["affinity"]; n != before {
		t.Error("remembered after the timeout")
	}
	b.ageAffinities(62 * time.Minute)
	b.mustSweep()
	if n := b.remembered(); n != 0 {
		t.Errorf("%d remembered after the sweep", n)
	}
}

func TestClientsOfAGoneServiceAreForgotten(t *testing.T) {
	for name, change := range map[string]func(*bench){
		"service gone":  func(b *bench) { b.sync() },
		"affinity gone": func(b *bench) { b.sync(service(ModeFullNAT, endpoint1, endpoint2)) },
	} {
		b := newBench(t, nil)
		b.sync(affine())
		b.goesTo(2000)
		change(b)
		b.mustSweep()
		if n := b.remembered(); n != 0 {
			t.Errorf("%s: %d remembered", name, n)
		}
	}
}

func TestClientMovesWhenItsEndpointTakesNoNewFlows(t *testing.T) {
	b := newBench(t, nil)
	b.sync(affine())
	first := b.goesTo(2000)
	s := affine()
	for i := range s.Endpoints {
		if s.Endpoints[i].Addr == first {
			s.Endpoints[i].State = EndpointDrain
		}
	}
	b.sync(s)
	second := b.goesTo(2001)
	if second == first {
		t.Fatal("a drained endpoint got a new flow")
	}
	b.sync(affine())
	if e := b.goesTo(2002); e != second {
		t.Errorf("the client came back to %s", e)
	}
}

// The second node would choose the other endpoint if it did not know.
func TestClientStaysAfterAFailover(t *testing.T) {
	for name, bring := range map[string]func(t *testing.T, a, b *bench){
		"by the record of the flow": func(t *testing.T, a, b *bench) { importAll(t, b.Dataplane, <-a.Events()) },
		"by a snapshot, without a live flow": func(t *testing.T, a, b *bench) {
			if _, err := a.Flush(context.Background(), 7); err != nil {
				t.Fatal(err)
			}
			all := records(t, a.Dataplane)
			if r := importAll(t, b.Dataplane, all); r != (ImportResult{Clients: 1}) {
				t.Errorf("import: %+v", r)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
			runDataplane(t, a.Dataplane)
			a.sync(affine())
			b.sync(affine())
			first := a.goesTo(2000)
			bring(t, a, b)
			for i := range 4 {
				if e := b.goesTo(uint16(3000 + i)); e != first {
					t.Errorf("at the second node it goes to %s, at the first it went to %s", e, first)
				}
			}
		})
	}
}

func TestAgeOfAffinityTravels(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	a.sync(affine())
	b.sync(affine())
	a.goesTo(2000)
	a.ageAffinities(40 * time.Minute)
	importAll(t, b.Dataplane, records(t, a.Dataplane))
	if b.remembered() != 1 {
		t.Fatal("nothing remembered")
	}
	b.ageAffinities(21 * time.Minute)
	importAll(t, b.Dataplane, records(t, a.Dataplane)) // 40 minutes old: younger than what is here
	b.ageAffinities(19 * time.Minute)
	b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, 2001), Dst: vipPort, Flags: bpftest.SYN})
	if n := b.Stats().Counters["affinity"]; n != 1 {
		t.Errorf("after 59 of 60 minutes: counted %d", n)
	}
}

func TestOlderAffinityDoesNotUndoAYoungerOne(t *testing.T) {
	b := newBench(t, nil)
	b.sync(affine())
	now, err := b.clock.now()
	if err != nil {
		t.Fatal(err)
	}
	first := b.goesTo(2000)
	other := uint16(7<<8 + 1)
	if first == endpoint1 {
		other = 7<<8 + 2
	}
	key := pontoonAffinityKey{Client: toAddr(client), Service: 7}
	value := pontoonAffinity{Endpoint: other, Used: now.created(time.Minute)}
	importAll(t, b.Dataplane, affinityRecord(nil, &key, &value, 5, now))
	if e := b.goesTo(2001); e != first {
		t.Errorf("it goes to %s now", e)
	}
}

func TestAffinityOfAServiceWithoutItIsNotKept(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	a.sync(affine())
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	a.goesTo(2000)
	importAll(t, b.Dataplane, records(t, a.Dataplane))
	if n := b.remembered(); n != 0 {
		t.Errorf("%d remembered", n)
	}
}

func TestAffinityRecordsAreChecked(t *testing.T) {
	now := instant{jiffies: 1 << 20, hz: 250}
	good := pontoonAffinityKey{Client: toAddr(client), Service: 7}
	value := pontoonAffinity{Endpoint: 9, Used: now.created(time.Minute)}
	r, err := parseRecord(affinityRecord(nil, &good, &value, 5, now))
	if err != nil || r.Service != 7 || r.EndpointId != 9 || r.IdleMs < 59_000 || r.IdleMs > 61_000 {
		t.Errorf("%+v, %v", r, err)
	}
	for name, change := range map[string]func(*pontoonFlowRecord){
		"no client":   func(r *pontoonFlowRecord) { r.Client = pontoonAddr{} },
		"no service":  func(r *pontoonFlowRecord) { r.Service = 0 },
		"no endpoint": func(r *pontoonFlowRecord) { r.EndpointId = 0 },
	} {
		bad := r
		change(&bad)
		if _, err := parseRecord(bad.append(nil)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
