package bpf

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Run with GODEBUG=asyncpreemptoff=1: Go's preemption signal breaks long test runs.

// frameSize is one size for all frames of the benchmarks, so that copying them costs the same: IPv6
// and TCP headers and six bytes.
const frameSize = 80

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

func newReplayer(b testing.TB, frames [][]byte) *replayer {
	b.Helper()
	return newReplayerFor(b, frames, ebpf.SchedCLS)
}

func newReplayerFor(b testing.TB, frames [][]byte, hook ebpf.ProgramType) *replayer {
	b.Helper()
	store := asm.FnSkbStoreBytes // a fifth argument is flags
	if hook == ebpf.XDP {
		store = asm.FnXdpStoreBytes
	}
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
	r.program = mustProgramOf(b, hook, asm.Instructions{
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
		store.Call(),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, r.target.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99).WithSymbol("out"),
		asm.Return(),
	})
	return r
}

func mustMap(b testing.TB, spec *ebpf.MapSpec) *ebpf.Map {
	b.Helper()
	m, err := ebpf.NewMap(spec)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = m.Close() })
	return m
}

func mustProgram(b testing.TB, code asm.Instructions) *ebpf.Program {
	b.Helper()
	return mustProgramOf(b, ebpf.SchedCLS, code)
}

func mustProgramOf(b testing.TB, hook ebpf.ProgramType, code asm.Instructions) *ebpf.Program {
	b.Helper()
	var flags uint32
	var attach ebpf.AttachType
	if hook == ebpf.XDP { // programs of one array agree in both
		flags, attach = unix.BPF_F_XDP_HAS_FRAGS, ebpf.AttachXDP
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: hook, AttachType: attach, Flags: flags, Instructions: code, License: "Dual BSD/GPL"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Close() })
	return p
}

// measure returns the time of one pass through the program, and demands its answer.
func (r *replayer) measure(b testing.TB, bench *bench, program *ebpf.Program, repeat int, want uint32) time.Duration {
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

// benchPath is one way to carry a connection.
type benchPath struct {
	name   string
	mode   uint8
	vip    netip.Addr
	client func(i int) netip.AddrPort
	ends   []netip.AddrPort // at least as many as 60 000 source ports do not suffice for
	source netip.Addr
}

func benchPaths() []benchPath {
	vip6, source6 := netip.MustParseAddr("2001:db8:9::100"), netip.MustParseAddr("2001:db8:8::1")
	ends4, ends6 := benchEnds(netip.MustParseAddr("10.8.0.21")), benchEnds(netip.MustParseAddr("2001:db8:8::21"))
	return []benchPath{
		{"fullnat/ipv4", uint8(ModeFullNAT), vip, benchClient, ends4, vip},
		{"fullnat/ipv6", uint8(ModeFullNAT), vip6, benchClient6, ends6, vip6},
		{"onearm/ipv4", uint8(ModeOneArm), vip, benchClient, ends4, lbAddress},
		{"onearm/ipv6", uint8(ModeOneArm), vip6, benchClient6, ends6, source6},
		{"dnat/ipv4", uint8(ModeDNAT), vip, benchClient, ends4, netip.Addr{}},
		{"dnat/ipv6", uint8(ModeDNAT), vip6, benchClient6, ends6, netip.Addr{}},
		{"dsr/ipv4", uint8(ModeDSR), vip, benchClient, ends4, netip.Addr{}},
		{"dsr/ipv6", uint8(ModeDSR), vip6, benchClient6, ends6, netip.Addr{}},
	}
}

// benchEnds are 20 endpoints: enough for a million flows at 60 000 source ports each.
func benchEnds(first netip.Addr) []netip.AddrPort {
	var ends []netip.AddrPort
	for a := first; len(ends) < 20; a = a.Next() {
		ends = append(ends, netip.AddrPortFrom(a, 8080))
	}
	return ends
}

// frames are one packet of each of n flows, in random order.
func (p benchPath) frames(n int) [][]byte {
	frames := make([][]byte, n)
	for i := range frames {
		frames[i] = loopFrame(p.client(i), netip.AddrPortFrom(p.vip, 80), bpftest.ACK)
	}
	random := rand.New(rand.NewPCG(1, 2))
	random.Shuffle(n, func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
	return frames
}

// benchClient6 is the i-th client over IPv6.
func benchClient6(i int) netip.AddrPort {
	a := netip.MustParseAddr("2001:db8:5::").As16()
	binary.BigEndian.PutUint32(a[12:], uint32(i))
	return netip.AddrPortFrom(netip.AddrFrom16(a), 5000)
}

// record is the i-th connection, established.
func (p benchPath) record(i int) pontoonFlowRecord {
	c, endpoint := p.client(i), p.ends[i/60000]
	snat := c
	if p.source.IsValid() {
		snat = netip.AddrPortFrom(p.source, uint16(1024+i%60000))
	}
	return pontoonFlowRecord{
		Client: toAddr(c.Addr()), ClientPort: swap16(c.Port()), Vip: toAddr(p.vip), VipPort: swap16(80),
		Snat: toAddr(snat.Addr()), SnatPort: swap16(snat.Port()),
		Endpoint: toAddr(endpoint.Addr()), EndpointPort: swap16(endpoint.Port()),
		Service: 7, EndpointId: uint16(1 + i/60000), Proto: protoTCP, Mode: p.mode, State: uint8(StateEstablished),
	}
}

// establish writes n established flows.
func (b *bench) establish(n int, path benchPath) {
	b.tb.Helper()
	now, err := b.clock.now()
	if err != nil {
		b.tb.Fatal(err)
	}
	const batch = 16384
	var keys []pontoonFlowKey
	var values []pontoonFlow
	for i := range n {
		record := path.record(i)
		record.OwnerSlot = b.opts.Slot
		c2 := recordConnection(&record, now)
		c2.forward.Flags &^= flagReplica
		c2.reply.Flags &^= flagReplica
		keys, values = append(keys, c2.key), append(values, c2.forward)
		if !c2.forward.oneHalf() {
			keys, values = append(keys, otherKey(&c2.key, &c2.forward)), append(values, c2.reply)
		}
		if len(keys) < batch && i < n-1 {
			continue
		}
		if _, err := b.maps.Flows.BatchUpdate(keys, values, nil); err != nil {
			b.tb.Fatal(err)
		}
		keys, values = keys[:0], values[:0]
	}
}

// loopFrame builds a frame for the loopback device, which test runs without a context come from. Its
// TCP checksum is nothing: nobody on the path looks at it.
func loopFrame(src, dst netip.AddrPort, flags uint8) []byte {
	frame := make([]byte, frameSize)
	l3 := frame[14:]
	l4 := l3[20:]
	if src.Addr().Is4() {
		binary.BigEndian.PutUint16(frame[12:], 0x0800)
		l3[0], l3[8], l3[9] = 0x45, 64, protoTCP
		binary.BigEndian.PutUint16(l3[2:], frameSize-14)
		copy(l3[12:], src.Addr().AsSlice())
		copy(l3[16:], dst.Addr().AsSlice())
		binary.BigEndian.PutUint16(l3[10:], headerSum(l3[:20]))
	} else {
		binary.BigEndian.PutUint16(frame[12:], 0x86dd)
		l4 = l3[40:]
		l3[0], l3[6], l3[7] = 0x60, protoTCP, 64
		binary.BigEndian.PutUint16(l3[4:], frameSize-14-40)
		copy(l3[8:], src.Addr().AsSlice())
		copy(l3[24:], dst.Addr().AsSlice())
	}
	binary.BigEndian.PutUint16(l4, src.Port())
	binary.BigEndian.PutUint16(l4[2:], dst.Port())
	l4[12], l4[13] = 5<<4, flags
	return frame
}

func benchDataplane(b *testing.B, maxFlows uint32) *bench {
	b.Helper()
	bench := newBench(b, func(o *Options) { o.MaxFlows, o.MaxHalfOpen = maxFlows, 1<<17 })
	bench.ns.Do(func() {
		bench.ns.Sysctl("net/ipv4/conf/lo/forwarding", "1")
		for _, name := range []string{"lo", "eth2"} {
			bench.ns.Sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "0")
			bench.ns.Sysctl("net/ipv6/conf/"+name+"/accept_dad", "0")
		}
		bench.ns.Sysctl("net/ipv6/conf/all/forwarding", "1")
	})
	bench.out.Address("2001:db8:8::1/64")
	for _, path := range benchPaths()[:2] {
		for _, end := range path.ends {
			bench.out.Neighbour(end.Addr().String(), bench.end.MAC)
		}
	}
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.Endpoints[0].Sources, s.Endpoints[1].Sources = []netip.Addr{vip}, []netip.Addr{vip}
	bench.sync(s)
	return bench
}

// BenchmarkEstablished is the path of one more packet of an established connection, client to
// endpoint, the flows taken uniformly at random, beside two floors in the same frame: an empty
// program, and one that only looks the packet's key up in the same map.
func BenchmarkEstablished(b *testing.B) {
	for _, path := range benchPaths() {
		for _, flows := range []int{1, 1 << 16, 1 << 20} {
			b.Run(fmt.Sprintf("%s/flows=%d", path.name, flows), func(b *testing.B) {
				bench := benchDataplane(b, uint32(max(flows, 1<<17)))
				bench.establish(flows, path)
				frames := path.frames(flows)
				report(b, bench, newReplayer(b, frames), max(flows, 200_000), actRedirect)
			})
		}
	}
}

// BenchmarkPassed is what a packet costs that is none of ours.
func BenchmarkPassed(b *testing.B) {
	bench := benchDataplane(b, 1<<17)
	frame := loopFrame(clientPort, netip.MustParseAddrPort("192.0.2.1:443"), bpftest.ACK)
	report(b, bench, newReplayer(b, [][]byte{frame}), 200_000, actPass)
}

func report(b *testing.B, bench *bench, r *replayer, repeat int, want uint32) {
	b.Helper()
	empty := mustProgram(b, asm.Instructions{asm.Mov.Imm(asm.R0, int32(want)), asm.Return()})
	r.measure(b, bench, bench.programs.entry, repeat, want) // warms up
	lookup := lookupProgram(b, bench.maps.Flows, want)
	var floor, once, path []time.Duration
	for b.Loop() {
		for range rounds {
			floor = append(floor, r.measure(b, bench, empty, repeat, want))
			once = append(once, r.measure(b, bench, lookup, repeat, want))
			path = append(path, r.measure(b, bench, bench.programs.entry, repeat, want))
		}
	}
	reportRatio(b, median(floor), median(path))
	b.ReportMetric(median(once), "lookup-ns/packet")
	b.ReportMetric(median(path)/median(once), "x-lookup")
}

// lookupProgram does nothing but the one lookup that every such path needs: the key is put
// together from the packet as it lies there.
func lookupProgram(b *testing.B, flows *ebpf.Map, want uint32) *ebpf.Program {
	b.Helper()
	const key, at = -40, -48 // on the stack: the key; four bytes of the packet
	code := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1), asm.Mov.Imm(asm.R2, 0)}
	for off := int16(key); off < 0; off += 8 {
		code = append(code, asm.StoreMem(asm.RFP, off, asm.R2, asm.DWord))
	}
	load := func(from int32, to int16, size int32) {
		code = append(code, asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, from),
			asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, int32(to)), asm.Mov.Imm(asm.R4, size), asm.FnSkbLoadBytes.Call())
	}
	code = append(code, asm.StoreMem(asm.RFP, at, asm.R2, asm.DWord))
	load(12, at, 2)
	code = append(code, asm.LoadMem(asm.R7, asm.RFP, at, asm.Half), asm.JNE.Imm(asm.R7, 0x0008, "v6"))
	load(26, key+12, 4)
	load(30, key+28, 4)
	load(34, key+32, 4)
	code = append(code, asm.StoreImm(asm.RFP, key+10, -1, asm.Half), asm.StoreImm(asm.RFP, key+26, -1, asm.Half),
		asm.Ja.Label("look"))
	v6 := len(code)
	load(22, key, 32)
	code[v6] = code[v6].WithSymbol("v6")
	load(54, key+32, 4)
	code = append(code, asm.StoreImm(asm.RFP, key+36, protoTCP, asm.Byte).WithSymbol("look"),
		asm.LoadMapPtr(asm.R1, flows.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key), asm.FnMapLookupElem.Call(),
		asm.Mov.Imm(asm.R0, int32(want)), asm.Return())
	return mustProgram(b, code)
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
	bench := benchDataplane(b, 1<<17)
	syns, acks := make([][]byte, flows), make([][]byte, flows)
	for i := range syns {
		syns[i] = loopFrame(benchClient(i), vipPort, bpftest.SYN)
		acks[i] = loopFrame(benchClient(i), vipPort, bpftest.ACK)
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
	for part, err := range b.half.dump(context.Background()) {
		if err != nil {
			b.tb.Fatal(err)
		}
		for i := range part.values {
			part.values[i].State = uint8(StateSynAck)
			b.put(&b.half, part.keys[i], part.values[i])
		}
	}
}

// BenchmarkSweep is what expiry costs.
func BenchmarkSweep(b *testing.B) {
	const flows = 65536
	bench := benchDataplane(b, 1<<17)
	bench.establish(flows, benchPaths()[0])
	for b.Loop() {
		bench.mustSweep()
	}
	b.ReportMetric(float64(b.N)*flows/b.Elapsed().Seconds(), "flows/s")
}

// BenchmarkFlowMemory is what the kernel charges for one connection of the flow table.
func BenchmarkFlowMemory(b *testing.B) {
	bench := benchDataplane(b, 1<<20)
	info, err := bench.maps.Flows.Info()
	if err != nil {
		b.Fatal(err)
	}
	bytes, ok := info.Memlock()
	if !ok {
		b.Fatal("the kernel does not tell")
	}
	for b.Loop() {
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(bytes)/(1<<20), "bytes/connection")
}
