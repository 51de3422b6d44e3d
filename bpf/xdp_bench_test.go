package bpf

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// xdpBench is the name of the benchmark whose data planes have XDP attached.
const xdpBench = "BenchmarkEstablishedXDP"

// BenchmarkEstablishedXDP is BenchmarkEstablished at the other hook.
func BenchmarkEstablishedXDP(b *testing.B) {
	for _, path := range benchPaths() {
		for _, flows := range []int{1, 1 << 16, 1 << 20} {
			b.Run(fmt.Sprintf("%s/flows=%d", path.name, flows), func(b *testing.B) {
				bench := benchDataplane(b, uint32(max(flows, 1<<17)))
				bench.establish(flows, path)
				frames := path.frames(flows)
				r := newReplayerFor(b, frames, ebpf.XDP)
				empty := mustProgramOf(b, ebpf.XDP, asm.Instructions{asm.Mov.Imm(asm.R0, xdpRedirect), asm.Return()})
				repeat := max(flows, 200_000)
				bench.arriveAtLoopback()
				var floor, own []time.Duration
				for b.Loop() {
					for range rounds {
						floor = append(floor, r.measure(b, bench, empty, repeat, xdpRedirect))
						bench.knowNextHops(path)
						own = append(own, r.measure(b, bench, bench.programs.xdp, repeat, xdpRedirect))
					}
				}
				reportRatio(b, median(floor), median(own))
			})
		}
	}
}

// arriveAtLoopback makes loopback, from which test runs without a context come, an interface of
// the data plane.
func (b *bench) arriveAtLoopback() {
	b.tb.Helper()
	const loopback = 1
	if err := b.maps.Stations.Put(uint32(loopback), pontoonStation{Ifindex: loopback, Mtu: 65535}); err != nil {
		b.tb.Fatal(err)
	}
}

// knowNextHops does what TC would: XDP learns none by itself.
func (b *bench) knowNextHops(path benchPath) {
	b.tb.Helper()
	now, err := b.clock.now()
	if err != nil {
		b.tb.Fatal(err)
	}
	var block pontoonControlBlock
	if err := b.maps.Control.Lookup(uint32(0), &block); err != nil {
		b.tb.Fatal(err)
	}
	hop := pontoonNextHop{Ifindex: uint32(b.out.Index), Learned: uint32(now.jiffies), Generation: block.Generation, Mtu: 1500}
	copy(hop.Smac[:], b.out.MAC)
	copy(hop.Dmac[:], b.end.MAC)
	destinations := []netip.Addr{path.vip} // of DSR
	for _, end := range path.ends {
		destinations = append(destinations, end.Addr())
	}
	for _, to := range destinations {
		if err := b.maps.NextHops.Put(toAddr(to), hop); err != nil {
			b.tb.Fatal(err)
		}
	}
}
