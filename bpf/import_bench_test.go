package bpf

import (
	"context"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// cpuTime is what this process has used so far: beside other work it says more than a clock.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// told returns records of n connections as slot 1 tells them, for the reason given.
func told(tb testing.TB, n int, reason uint8) []byte {
	tb.Helper()
	path := benchPaths()[0]
	all := make([]byte, 0, n*RecordSize)
	for i := range n {
		record := path.record(i)
		record.OwnerSlot, record.Op, record.Reason = 1, opUpdate, reason
		all = record.append(all)
	}
	return all
}

// clearFlows empties the flow table without the accounts' one by one.
func (b *bench) clearFlows() {
	b.tb.Helper()
	for part, err := range dump(context.Background(), b.maps.Flows) {
		if err != nil {
			b.tb.Fatal(err)
		}
		if err := deleteKeys(b.maps.Flows, part.keys); err != nil {
			b.tb.Fatal(err)
		}
	}
	if _, err := b.accounts.recount(context.Background(), b.maps.Flows); err != nil {
		b.tb.Fatal(err)
	}
}

// importInParts is how a stream delivers: 256 records a call.
func importInParts(tb testing.TB, d *Dataplane, all []byte) (written int) {
	tb.Helper()
	for at := 0; at < len(all); at += recordBatch * RecordSize {
		written += importAll(tb, d, all[at:min(at+recordBatch*RecordSize, len(all))]).Written
	}
	return written
}

// batchFloor writes the same connections by nothing but the kernel's batch call, 256 of them at a time.
func (b *bench) batchFloor(all []byte) time.Duration {
	b.tb.Helper()
	now, err := b.clock.now()
	if err != nil {
		b.tb.Fatal(err)
	}
	keys := make([]pontoonFlowKey, 0, 2*len(all)/RecordSize)
	values := make([]pontoonFlow, 0, cap(keys))
	for at := 0; at < len(all); at += RecordSize {
		r, err := parseRecord(all[at : at+RecordSize])
		if err != nil {
			b.tb.Fatal(err)
		}
		c := recordConnection(&r, now)
		keys = append(keys, c.key, otherKey(&c.key, &c.forward))
		values = append(values, c.forward, c.reply)
	}
	start := cpuTime(b.tb)
	for at := 0; at < len(keys); at += 2 * recordBatch {
		end := min(at+2*recordBatch, len(keys))
		if _, err := b.maps.Flows.BatchUpdate(keys[at:end], values[at:end], &ebpf.BatchOptions{}); err != nil {
			b.tb.Fatal(err)
		}
	}
	return cpuTime(b.tb) - start
}

// BenchmarkImport is what replication costs at its receiver: connections that are new, the same
// once more, and a whole snapshot into a table that has none or all of it. The floor is the kernel's batch
// call with the same entries, in the same round. All are rates for one second of CPU time.
func BenchmarkImport(b *testing.B) {
	const flows = 1 << 20
	bench := benchDataplane(b, flows)
	fresh, snap := told(b, flows, reasonNew), told(b, flows, reasonSnapshot)
	bench.SetOwnersAlive(map[uint8]bool{1: true})
	spent := map[string]time.Duration{}
	timed := func(name string, do func()) {
		start := cpuTime(b)
		do()
		spent[name] += cpuTime(b) - start
	}
	demand := func(n int) {
		if n != flows {
			b.Fatalf("%d connections", n)
		}
	}
	whole := func() {
		bench.BeginSnapshot(1)
		demand(importInParts(b, bench.Dataplane, snap))
		if removed, err := bench.EndSnapshot(context.Background(), 1); err != nil || removed != 0 {
			b.Fatalf("removed %d, %v", removed, err)
		}
	}
	for b.Loop() {
		spent["floor"] += bench.batchFloor(fresh)
		bench.clearFlows()
		timed("new", func() { demand(importInParts(b, bench.Dataplane, fresh)) })
		timed("same", func() { demand(importInParts(b, bench.Dataplane, fresh)) })
		timed("resync", whole)
		bench.clearFlows()
		timed("snapshot", whole)
		bench.clearFlows()
	}
	b.ReportMetric(0, "ns/op")
	for name, t := range spent {
		b.ReportMetric(float64(b.N)*flows/t.Seconds(), name+"/s")
	}
}

// BenchmarkRecords is what a snapshot costs at its sender; the floor is a dump of the same table. Both
// are rates for one second of CPU time.
func BenchmarkRecords(b *testing.B) {
	const flows = 1 << 20
	bench := benchDataplane(b, flows)
	bench.establish(flows, benchPaths()[0])
	var floor, whole time.Duration
	for b.Loop() {
		start := cpuTime(b)
		for _, err := range dump(context.Background(), bench.maps.Flows) {
			if err != nil {
				b.Fatal(err)
			}
		}
		floor += cpuTime(b) - start
		start = cpuTime(b)
		n := 0
		for part, err := range bench.Records(context.Background()) {
			if err != nil {
				b.Fatal(err)
			}
			n += len(part) / RecordSize
		}
		whole += cpuTime(b) - start
		if n != flows {
			b.Fatalf("%d records", n)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(b.N)*flows/floor.Seconds(), "floor/s")
	b.ReportMetric(float64(b.N)*flows/whole.Seconds(), "records/s")
}
