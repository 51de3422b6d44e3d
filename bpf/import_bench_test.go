package bpf

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
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

// batchFloor writes the same connections by nothing but the kernel's batch call, 256 of them at a time, and
// returns what the calls have cost.
func (b *bench) batchFloor(all []byte) (spent time.Duration) {
	b.tb.Helper()
	now, err := b.clock.now()
	if err != nil {
		b.tb.Fatal(err)
	}
	var keys []pontoonFlowKey
	var values []pontoonFlow
	for at := 0; at < len(all); at += RecordSize {
		r, err := parseRecord(all[at : at+RecordSize])
		if err != nil {
			b.tb.Fatal(err)
		}
		c := recordConnection(&r, now)
		keys = append(keys, c.key, otherKey(&c.key, &c.forward))
		values = append(values, c.forward, c.reply)
		if len(keys) < 2*recordBatch && at < len(all)-RecordSize {
			continue
		}
		start := cpuTime(b.tb)
		if _, err := b.maps.Flows.BatchUpdate(keys, values, &ebpf.BatchOptions{}); err != nil {
			b.tb.Fatal(err)
		}
		spent += cpuTime(b.tb) - start
		keys, values = keys[:0], values[:0]
	}
	return spent
}

// BenchmarkDigest is what the comparison of two nodes' tables costs each of them.
func BenchmarkDigest(b *testing.B) {
	const flows = 1 << 20
	bench := benchDataplane(b, flows)
	bench.establish(flows, benchPaths()[0])
	start := cpuTime(b)
	for b.Loop() {
		if _, err := bench.Digest(context.Background(), bench.opts.Slot); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric((cpuTime(b)-start).Seconds()/float64(b.N)*1e3, "cpu-ms")
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

// BenchmarkTelling is what it costs the packet that completes a connection that the other nodes are told
// of it: the same packets, of a service that is replicated and of one that is not, in turns.
func BenchmarkTelling(b *testing.B) {
	const flows = 8192
	bench := benchDataplane(b, 1<<17)
	reader, err := ringbuf.NewReader(bench.maps.Events)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	syns, acks := make([][]byte, flows), make([][]byte, flows)
	for i := range syns {
		syns[i] = loopFrame(benchClient(i), vipPort, bpftest.SYN)
		acks[i] = loopFrame(benchClient(i), vipPort, bpftest.ACK)
	}
	syn, ack := newReplayer(b, syns), newReplayer(b, acks)
	took := map[Replicate][]time.Duration{}
	for b.Loop() {
		for round := range 2 * rounds {
			how := []Replicate{ReplicateEstablished, ReplicateNone}[round%2]
			s := service(ModeFullNAT, endpoint1, endpoint2)
			s.Replicate = how
			bench.sync(s)
			syn.measure(b, bench, bench.programs.entry, flows, actRedirect)
			bench.markAccepted()
			took[how] = append(took[how], ack.measure(b, bench, bench.programs.entry, flows, actRedirect))
			drainRing(b, reader)
			if _, err := bench.Flush(context.Background(), 7); err != nil {
				b.Fatal(err)
			}
		}
	}
	if n := bench.Stats().Counters["ring_lost"]; n != 0 {
		b.Fatalf("%d records found no room", n)
	}
	told, quiet := median(took[ReplicateEstablished]), median(took[ReplicateNone])
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(told, "told-ns")
	b.ReportMetric(quiet, "untold-ns")
	b.ReportMetric(told-quiet, "telling-ns")
}

func drainRing(tb testing.TB, reader *ringbuf.Reader) {
	tb.Helper()
	var record ringbuf.Record
	for {
		reader.SetDeadline(time.Now().Add(20 * time.Millisecond))
		if err := reader.ReadInto(&record); errors.Is(err, os.ErrDeadlineExceeded) {
			return
		} else if err != nil {
			tb.Fatal(err)
		}
	}
}
