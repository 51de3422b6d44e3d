package bpf

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// newFlowRun is one data plane of a comparison: what an object file holds, and what it cost.
type newFlowRun struct {
	*bench
	name       string
	syn, ack   *replayer
	syns, acks []time.Duration
}

// BenchmarkNewFlowObjects is BenchmarkNewFlow for several builds of the programs in turn, so that a
// busy moment of the machine hits all of them: PONTOON_BENCH_OBJECTS lists object files that
// differ from the committed one in the bodies of programs only.
func BenchmarkNewFlowObjects(b *testing.B) {
	list := os.Getenv("PONTOON_BENCH_OBJECTS")
	if list == "" {
		b.Skip("PONTOON_BENCH_OBJECTS names no object files")
	}
	const flows = 8192
	syns, acks := make([][]byte, flows), make([][]byte, flows)
	for i := range syns {
		syns[i] = loopFrame(benchClient(i), vipPort, bpftest.SYN)
		acks[i] = loopFrame(benchClient(i), vipPort, bpftest.ACK)
	}
	var runs []*newFlowRun
	for _, name := range strings.Split(list, ",") {
		runs = append(runs, &newFlowRun{
			bench: objectDataplane(b, name), name: strings.TrimSuffix(filepath.Base(name), ".o"),
			syn: newReplayer(b, syns), ack: newReplayer(b, acks),
		})
	}
	order := slices.Clone(runs)
	for b.Loop() {
		for _, r := range order { // who comes first changes
			r.once(b, flows)
		}
		slices.Reverse(order)
	}
	b.ReportMetric(0, "ns/op")
	base := runs[0]
	for _, r := range runs {
		syn, ack := median(slices.Clone(r.syns)), median(slices.Clone(r.acks))
		fmt.Printf("%-16s syn %5.0f ack %5.0f sum %5.0f  least %5d %5d  ratio syn %.3f ack %.3f sum %.3f\n", r.name, syn, ack, syn+ack, slices.Min(r.syns), slices.Min(r.acks),
			paired(r.syns, base.syns), paired(r.acks, base.acks), paired(both(r.syns, r.acks), both(base.syns, base.acks)))
	}
}

// objectDataplane is benchDataplane with the programs of an object file.
func objectDataplane(b *testing.B, name string) *bench {
	b.Helper()
	object, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	committed := _PontoonBytes
	_PontoonBytes = object
	defer func() { _PontoonBytes = committed }()
	return benchDataplane(b, 1<<17)
}

func (r *newFlowRun) once(b *testing.B, flows int) {
	b.Helper()
	r.syns = append(r.syns, r.any(b, r.syn, flows))
	if os.Getenv("PONTOON_BENCH_SYN") == "" {
		r.markAccepted()
		r.acks = append(r.acks, r.any(b, r.ack, flows))
	} else {
		r.acks = append(r.acks, 1)
	}
	if _, err := r.Flush(context.Background(), 7); err != nil {
		b.Fatal(err)
	}
}

// any is measure for a program whose answer does not matter.
func (r *newFlowRun) any(b *testing.B, through *replayer, flows int) time.Duration {
	b.Helper()
	if err := through.target.Put(uint32(0), r.programs.entry); err != nil {
		b.Fatal(err)
	}
	if err := through.state.Put(uint32(0), uint32(0)); err != nil {
		b.Fatal(err)
	}
	var each time.Duration
	var err error
	r.ns.Do(func() { _, each, err = through.program.Benchmark(through.input, flows, nil) })
	if err != nil {
		b.Fatal(err)
	}
	return each
}

func both(a, b []time.Duration) []time.Duration {
	sum := make([]time.Duration, len(a))
	for i := range a {
		sum[i] = a[i] + b[i]
	}
	return sum
}

// paired is the median of the ratios of measurements that were taken next to each other.
func paired(a, b []time.Duration) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = float64(a[i]) / float64(b[i])
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}
