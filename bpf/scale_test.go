package bpf

import (
	"context"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// manyServices are n services of four endpoints each.
func manyServices(n int, algorithm Algorithm) Desired {
	want := Desired{VIPs: []netip.Addr{vip}}
	for i := range n {
		s := Service{
			ID: uint32(i + 1), VIP: netip.AddrPortFrom(vip, uint16(i+1)), Protocol: protoTCP, Mode: ModeFullNAT, Algorithm: algorithm, Seed: uint32(i),
		}
		for e := range 4 {
			var a [4]byte
			binary.BigEndian.PutUint32(a[:], 10<<24+uint32(4*i+e))
			s.Endpoints = append(s.Endpoints, Endpoint{ID: uint32(4*i + e + 1), Addr: netip.AddrPortFrom(netip.AddrFrom4(a), 80), Weight: 1, Sources: []netip.Addr{vip}})
		}
		want.Services = append(want.Services, s)
	}
	return want
}

func timed(t *testing.T, what string, d *Dataplane, want Desired) {
	t.Helper()
	start := time.Now()
	if err := d.Sync(context.Background(), want); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	t.Logf("%s: %s", what, time.Since(start).Round(time.Millisecond))
}

func TestTenThousandServicesOfFourEndpoints(t *testing.T) {
	b := newBench(t, nil)
	want := manyServices(10_000, AlgorithmMaglev)
	timed(t, "all new", b.Dataplane, want)
	timed(t, "no change", b.Dataplane, want)
	want.Services[5000].Endpoints[1].Weight = 3
	timed(t, "one change", b.Dataplane, want)
	if n := len(b.tables.services); n != 10_000 {
		t.Errorf("%d services", n)
	}
}

func TestFullTableIsNamedAndTheRestIsDone(t *testing.T) {
	b := newBench(t, nil)
	b.tables.blocks.size = 1024
	err := b.Sync(context.Background(), manyServices(20, AlgorithmMaglev))
	if err == nil || !strings.Contains(err.Error(), "the selection table is full") {
		t.Fatalf("error is %v", err)
	}
	if fit := len(b.tables.services); fit != 8 {
		t.Errorf("%d services fit", fit)
	}
	for key, entry := range b.tables.services {
		var value pontoonService
		if err := b.maps.Services.Lookup(key, &value); err != nil || value != entry.value || value.TableLen != 509 {
			t.Fatalf("%+v is %+v, %v", entry.value, value, err)
		}
	}
	timed(t, "back to what fits", b.Dataplane, manyServices(8, AlgorithmMaglev))
}
