package bpf

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Run with GODEBUG=asyncpreemptoff=1: Go's preemption signal breaks long test runs.

// frameSize is one size for all frames of the benchmarks: headers and ten bytes.
const frameSize = 64

// rounds of floor and path are interleaved, and the median of each is reported, so that a busy
// moment of the machine hits both or neither.
const rounds = 5

// replayer is the outer program. A test run with repetition does not restore the packet, so a
// program that rewrites it would from the second time on measure its own output. The replayer
// puts the next of its frames into the packet and calls the program under test.
type replayer struct {
	program *ebpf.Program
	frames  *ebpf.Map
	target  *ebpf.Map
	state   *ebpf.Map
	input   []byte // decides what protocol the kernel takes the packet for
}

func newReplayer(b *testing.B, frames [][]byte) *replayer {
	b.Helper()
	r := &replayer{
		input:  frames[0],
		frames: mustMap(b, &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: frameSize, MaxEntries: uint32(len(frames))}),
		target: mustMap(b, &ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1}),
		state:  mustMap(b, &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}),
	}
	for i, frame := range frames {
		if err := r.frames.Put(uint32(i), frame); err != nil {
			b.Fatal(err)
		}
	}
	r.program = mustProgram(b, asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, r.state.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R8, asm.R0, 0, asm.Word),
		asm.Mov.Reg(asm.R9, asm.R8), asm.Add.Imm(asm.R9, 1),
		asm.StoreMem(asm.R0, 0, asm.R9, asm.Word),
		asm.And.Imm(asm.R8, int32(len(frames)-1)),
		asm.StoreMem(asm.RFP, -8, asm.R8, asm.Word),
		asm.LoadMapPtr(asm.R1, r.frames.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -8),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, 0), asm.Mov.Reg(asm.R3, asm.R0),
		asm.Mov.Imm(asm.R4, frameSize), asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, r.target.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99).WithSymbol("out"),
		asm.Return(),
	})
	return r
}

func mustMap(b *testing.B, spec *ebpf.MapSpec) *ebpf.Map {
	b.Helper()
	m, err := ebpf.NewMap(spec)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = m.Close() })
	return m
}

func mustProgram(b *testing.B, code asm.Instructions) *ebpf.Program {
	b.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: code, License: "Dual BSD/GPL"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Close() })
	return p
}

// measure returns the time of one pass through the program, and demands its answer.
func (r *replayer) measure(b *testing.B, bench *bench, program *ebpf.Program, repeat int, want uint32) time.Duration {
	b.Helper()
	if err := r.target.Put(uint32(0), program); err != nil {
		b.Fatal(err)
	}
	if err := r.state.Put(uint32(0), uint32(0)); err != nil {
		b.Fatal(err)
	}
	var action uint32
	var each time.Duration
	var err error
	bench.ns.Do(func() { action, each, err = r.program.Benchmark(r.input, repeat, nil) })
	if err != nil {
		b.Fatal(err)
	}
	if action != want {
		b.Fatalf("action %d, want %d; drops %v", action, want, bench.Stats().Drops)
	}
	return each
}

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Nanoseconds())
}

// benchClient is the i-th client.
func benchClient(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16 + byte(i>>16), byte(i >> 8), byte(i)}), 5000)
}

// establish writes n established flows and returns their keys.
func (b *bench) establish(n int, mode Mode) []connection {
	b.tb.Helper()
	now, err := b.clock.now()
	if err != nil {
		b.tb.Fatal(err)
	}
	all := make([]connection, n)
	keys, values := make([]pontoonFlowKey, 0, 2*n), make([]pontoonFlow, 0, 2*n)
	for i := range all {
		c, endpoint := benchClient(i), endpoint1
		if i >= 60000 {
			endpoint = endpoint2
		}
		snat := netip.AddrPortFrom(sourceOf(mode), uint16(1024+i%60000))
		if mode == ModeDNAT {
			snat = c
		}
		record := pontoonFlowRecord{
			Client: toAddr(c.Addr()), ClientPort: swap16(c.Port()), Vip: toAddr(vip), VipPort: swap16(80),
			Snat: toAddr(snat.Addr()), SnatPort: swap16(snat.Port()),
			Endpoint: toAddr(endpoint.Addr()), EndpointPort: swap16(endpoint.Port()),
			Service: 7, Proto: protoTCP, Mode: uint8(mode), State: uint8(StateEstablished), OwnerSlot: b.opts.Slot,
		}
		all[i] = recordConnection(&record, now)
		all[i].forward.Flags &^= flagReplica
		all[i].reply.Flags &^= flagReplica
		keys = append(keys, all[i].key, otherKey(&all[i].key, &all[i].forward))
		values = append(values, all[i].forward, all[i].reply)
	}
	if _, err := b.maps.Flows.BatchUpdate(keys, values, nil); err != nil {
		b.tb.Fatal(err)
	}
	return all
}

// loopFrame builds a frame for the loopback device, which test runs without a context come from.
func loopFrame(b *testing.B, src, dst netip.AddrPort, flags uint8) []byte {
	b.Helper()
	zero := make([]byte, 6)
	frame := bpftest.Packet{SrcMAC: zero, DstMAC: zero, Src: src, Dst: dst, Flags: flags, Payload: make([]byte, 10)}.Bytes(b)
	return frame[:frameSize]
}

func benchDataplane(b *testing.B) *bench {
	b.Helper()
	bench := newBench(b, func(o *Options) { o.MaxFlows, o.MaxHalfOpen = 1<<17, 1<<17 })
	bench.ns.Do(func() { bench.ns.Sysctl("net/ipv4/conf/lo/forwarding", "1") })
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.Endpoints[0].Sources, s.Endpoints[1].Sources = []netip.Addr{vip}, []netip.Addr{vip}
	bench.sync(s)
	return bench
}

// BenchmarkEstablished is the path of one more packet of an established connection, client to
// endpoint, beside an empty program in the same frame.
func BenchmarkEstablished(b *testing.B) {
	for _, mode := range []Mode{ModeFullNAT, ModeOneArm, ModeDNAT} {
		for _, flows := range []int{1, 65536} {
			b.Run(fmt.Sprintf("%s/flows=%d", mode, flows), func(b *testing.B) {
				bench := benchDataplane(b)
				frames := make([][]byte, flows)
				for i := range bench.establish(flows, mode) {
					frames[i] = loopFrame(b, benchClient(i), vipPort, bpftest.ACK)
				}
				report(b, bench, newReplayer(b, frames), max(flows, 200_000), actRedirect)
			})
		}
	}
}

// BenchmarkPassed is what a packet costs that is none of ours.
func BenchmarkPassed(b *testing.B) {
	bench := benchDataplane(b)
	frame := loopFrame(b, clientPort, netip.MustParseAddrPort("192.0.2.1:443"), bpftest.ACK)
	report(b, bench, newReplayer(b, [][]byte{frame}), 200_000, actPass)
}

func report(b *testing.B, bench *bench, r *replayer, repeat int, want uint32) {
	b.Helper()
	empty := mustProgram(b, asm.Instructions{asm.Mov.Imm(asm.R0, int32(want)), asm.Return()})
	r.measure(b, bench, bench.programs.entry, repeat, want) // warms up
	var floor, path []time.Duration
	for b.Loop() {
		for range rounds {
			floor = append(floor, r.measure(b, bench, empty, repeat, want))
			path = append(path, r.measure(b, bench, bench.programs.entry, repeat, want))
		}
	}
	reportRatio(b, median(floor), median(path))
}

func reportRatio(b *testing.B, floor, path float64) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(path, "ns/packet")
	b.ReportMetric(floor, "floor-ns/packet")
	b.ReportMetric(path-floor, "own-ns/packet")
	b.ReportMetric(path/floor, "x-floor")
}

// BenchmarkNewFlow is the first SYN of a connection (service, endpoint, source port, two
// half-open entries), and the ACK that completes it (two entries moved to the flow table).
func BenchmarkNewFlow(b *testing.B) {
	const flows = 8192
	bench := benchDataplane(b)
	syns, acks := make([][]byte, flows), make([][]byte, flows)
	for i := range syns {
		syns[i] = loopFrame(b, benchClient(i), vipPort, bpftest.SYN)
		acks[i] = loopFrame(b, benchClient(i), vipPort, bpftest.ACK)
	}
	syn, ack := newReplayer(b, syns), newReplayer(b, acks)
	empty := mustProgram(b, asm.Instructions{asm.Mov.Imm(asm.R0, actRedirect), asm.Return()})
	var floor, first, complete []time.Duration
	for b.Loop() {
		for range rounds {
			floor = append(floor, syn.measure(b, bench, empty, flows, actRedirect))
			first = append(first, syn.measure(b, bench, bench.programs.entry, flows, actRedirect))
			bench.markAccepted()
			complete = append(complete, ack.measure(b, bench, bench.programs.entry, flows, actRedirect))
			if _, err := bench.Flush(context.Background(), 7); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(first), "syn-ns")
	b.ReportMetric(median(complete), "ack-ns")
	b.ReportMetric(median(floor), "floor-ns")
}

// markAccepted does what the endpoints' SYN-ACKs would.
func (b *bench) markAccepted() {
	b.tb.Helper()
	for part, err := range dump(context.Background(), b.maps.HalfOpen) {
		if err != nil {
			b.tb.Fatal(err)
		}
		for i := range part.values {
			part.values[i].State = uint8(StateSynAck)
		}
		if _, err := b.maps.HalfOpen.BatchUpdate(part.keys, part.values, nil); err != nil {
			b.tb.Fatal(err)
		}
	}
}

// BenchmarkImport is what a snapshot costs at its receiver.
func BenchmarkImport(b *testing.B) {
	const flows = 65536
	bench := benchDataplane(b)
	bench.establish(flows, ModeFullNAT)
	all := records(b, bench.Dataplane)
	for at := 0; at < len(all); at += RecordSize {
		all[at+80], all[at+recordReason] = 1, byte(reasonNew) // told by another node, its owner
	}
	if _, err := bench.Flush(context.Background(), 7); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if r := importAll(b, bench.Dataplane, all); r.Written != flows {
			b.Fatalf("%+v", r)
		}
	}
	b.ReportMetric(float64(b.N)*flows/b.Elapsed().Seconds(), "flows/s")
}

// BenchmarkSweep is what expiry costs.
func BenchmarkSweep(b *testing.B) {
	const flows = 65536
	bench := benchDataplane(b)
	bench.establish(flows, ModeFullNAT)
	for b.Loop() {
		bench.mustSweep()
	}
	b.ReportMetric(float64(b.N)*flows/b.Elapsed().Seconds(), "flows/s")
}
