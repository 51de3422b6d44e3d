package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// flooder sends one frame again and again, each time from another of 16 million sources.
type flooder struct {
	*bench
	program *ebpf.Program
	frame   []byte
	count   *ebpf.Map
}

// newFlooder takes its time for each packet in the kernel: the address is written, and the same
// sum taken out of the IP header by its identification.
func newFlooder(b *bench, protocol uint8) *flooder {
	frame := loopFrame(netip.AddrPortFrom(netip.AddrFrom4([4]byte{}), 5000), vipPort, bpftest.SYN)
	frame[23], frame[24], frame[25] = protocol, 0, 0
	binary.BigEndian.PutUint16(frame[24:], headerSum(frame[14:34]))
	f := &flooder{
		bench: b, frame: frame,
		count: mustMap(b.tb, &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}),
	}
	frames := mustMap(b.tb, &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: frameSize, MaxEntries: 1})
	target := mustMap(b.tb, &ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err := frames.Put(uint32(0), frame); err != nil {
		b.tb.Fatal(err)
	}
	if err := target.Put(uint32(0), b.programs.entry); err != nil {
		b.tb.Fatal(err)
	}
	f.program = mustProgram(b.tb, asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, frames.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.LoadMapPtr(asm.R1, f.count.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.Word),
		asm.And.Imm(asm.R1, 0xffffff),
		asm.Or.Imm(asm.R1, 0x20000000), // the source
		asm.Mov.Reg(asm.R2, asm.R1), asm.RSh.Imm(asm.R2, 16),
		asm.Mov.Reg(asm.R3, asm.R1), asm.And.Imm(asm.R3, 0xffff),
		asm.Add.Reg(asm.R2, asm.R3),
		asm.Mov.Reg(asm.R3, asm.R2), asm.RSh.Imm(asm.R3, 16), asm.And.Imm(asm.R2, 0xffff),
		asm.Add.Reg(asm.R2, asm.R3), asm.Xor.Imm(asm.R2, 0xffff),
		asm.HostTo(asm.BE, asm.R1, asm.Word), asm.StoreMem(asm.R7, 26, asm.R1, asm.Word),
		asm.HostTo(asm.BE, asm.R2, asm.Half), asm.StoreMem(asm.R7, 18, asm.R2, asm.Half),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, 0), asm.Mov.Reg(asm.R3, asm.R7),
		asm.Mov.Imm(asm.R4, frameSize), asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, target.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99).WithSymbol("out"),
		asm.Return(),
	})
	return f
}

// send runs n packets through the data plane.
func (f *flooder) send(n int) {
	f.tb.Helper()
	out := make([]byte, frameSize+64)
	var action uint32
	var err error
	f.ns.Do(func() {
		action, err = f.program.Run(&ebpf.RunOptions{Data: f.frame, DataOut: out, Repeat: uint32(n)})
	})
	if err != nil || action == 99 {
		f.tb.Fatalf("flood: action %d, %v", action, err)
	}
}

// A million sources that are never heard of again: who is connected notices nothing, who comes is
// let in at the second SYN, and the half-open table takes no more than the rate.
func TestFloodOfAMillionSourcesHurtsNobody(t *testing.T) {
	const rate = 2000
	b := newBench(t, func(o *Options) { o.MaxHalfOpen = 1 << 14 })
	b.ns.Do(func() { b.ns.Sysctl("net/ipv4/conf/lo/forwarding", "1") })
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.NewFlowRate = rate
	b.sync(s)
	snats := map[netip.AddrPort]netip.AddrPort{}
	for i := range 50 {
		c := netip.AddrPortFrom(client, uint16(40000+i))
		snats[c], _ = b.talk(c, vipPort)
	}
	syn := bpftest.Packet{Src: netip.AddrPortFrom(client, 50000), Dst: vipPort, Flags: bpftest.SYN}
	established := newReplayer(t, [][]byte{loopFrame(netip.AddrPortFrom(client, 40000), vipPort, bpftest.ACK)})
	cost := func() time.Duration {
		return established.measure(t, b, b.programs.entry, 20_000, actRedirect)
	}
	cost()
	before, during := cost(), []time.Duration{}
	f, total, wanted := newFlooder(b, protoTCP), 0, 1_000_000
	if testing.Short() {
		wanted = 100_000
	}
	start := time.Now()
	var first time.Time
	come := false
	for total < wanted || !come {
		f.send(20_000)
		total += 20_000
		if first.IsZero() {
			first = time.Now()
			if action, _ := b.fromClient(syn); action != actDrop || b.drops("flood") == 0 {
				t.Fatalf("first SYN in the flood: action %d, drops %v", action, b.Stats().Drops)
			}
			if action, _ := b.fromClient(syn); action != actDrop {
				t.Fatalf("SYN repeated at once: action %d", action)
			}
		}
		if !come && time.Since(first) >= time.Second { // what a client's stack waits
			snats[syn.Src], _ = b.talk(syn.Src, syn.Dst)
			come = true
		}
		for c, snat := range snats {
			_, out := b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.ACK})
			if src, _ := tuple(out); src != snat {
				t.Fatalf("%s left as %s, want %s", c, src, snat)
			}
		}
		if total%200_000 == 0 {
			during = append(during, cost())
		}
	}
	took := time.Since(start)
	if n := entriesOf(t, b.Dataplane); n != 2*51 {
		t.Errorf("%d halves in the flow table, want 102", n)
	}
	stats := b.Stats()
	most := uint64(rate*(int(took/time.Second)+3)) + 100
	if stats.Counters["flood_repeated"] == 0 || stats.Counters["created"] > most {
		t.Errorf("%d admitted as repeated, %d half-open made, at most %d expected", stats.Counters["flood_repeated"], stats.Counters["created"], most)
	}
	t.Logf("%d sources in %s: %d dropped, %d half-open made, %d let in as repeated; a packet of an established flow: %s before, %s between",
		total, took.Round(time.Millisecond), stats.Drops["flood"], stats.Counters["created"], stats.Counters["flood_repeated"], before, during)
}

// Without a limit a flood churns the half-open table many times over. A handshake the endpoint has
// answered has been looked up since it was made, others have not, and those are thrown out first.
func TestHandshakeUnderWaySurvivesAFlood(t *testing.T) {
	b := newBench(t, func(o *Options) { o.MaxHalfOpen = 1 << 12 })
	b.ns.Do(func() { b.ns.Sysctl("net/ipv4/conf/lo/forwarding", "1") })
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	f := newFlooder(b, protoTCP)
	f.send(20_000)
	const clients = 100
	var ports []netip.AddrPort
	for i := range clients {
		c := netip.AddrPortFrom(client, uint16(40000+i))
		_, out := b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.SYN})
		snat, endpoint := tuple(out)
		b.fromEndpoint(bpftest.Packet{Src: endpoint, Dst: snat, Flags: bpftest.SYN | bpftest.ACK})
		ports = append(ports, c)
	}
	f.send(200_000) // many times what the table takes
	done := 0
	for _, c := range ports {
		if action, _ := b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.ACK}); action == actRedirect {
			done++
		}
	}
	t.Logf("%d of %d handshakes completed; drops %v", done, clients, b.Stats().Drops)
	if done < clients*9/10 {
		t.Errorf("%d of %d handshakes completed", done, clients)
	}
}

func TestNewFlowRateIsExactInEverySecond(t *testing.T) {
	b := newBench(t, nil)
	b.ns.Do(func() { b.ns.Sysctl("net/ipv4/conf/lo/forwarding", "1") })
	s := service(ModeFullNAT, endpoint1)
	s.Protocol, s.NewFlowRate = protoUDP, 100
	b.sync(s)
	second := func() uint64 {
		now, err := b.clock.now()
		if err != nil {
			t.Fatal(err)
		}
		return now.jiffies / b.clock.hz
	}
	f, sent := newFlooder(b, protoUDP), 0
	start := second()
	for second() < start+2 {
		f.send(500)
		sent += 500
	}
	f.send(500)
	sent += 500
	windows, stats := second()-start+1, b.Stats()
	// More than was asked for may have been sent: a run that a signal ends is run again.
	if n := stats.Counters["created"]; n < 200 || n > 100*windows || n+stats.Drops["flood"] < uint64(sent) {
		t.Errorf("%d made, %d refused of %d in %d windows", n, stats.Drops["flood"], sent, windows)
	}
}
