package bpf

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
)

// Packets on every CPU while the whole list of 256 endpoints is replaced, by endpoints with ids of
// their own, again and again: no packet sees a part of a table or an endpoint that is half written.
func TestWholeListIsReplacedUnderTraffic(t *testing.T) {
	for name, algorithm := range map[string]Algorithm{"rr": AlgorithmRR, "maglev": AlgorithmMaglev, "lc": AlgorithmLC} {
		t.Run(name, func(t *testing.T) { replaceUnderTraffic(t, algorithm) })
	}
}

func replaceUnderTraffic(t *testing.T, algorithm Algorithm) {
	const size, changes = 256, 200
	b := newBench(t, func(o *Options) { o.MaxHalfOpen = 1 << 18 })
	all := b.many(2*size, 1)
	for i := range all {
		all[i].ID = uint32(i + 1)
	}
	replace := func(i int) {
		s := service(ModeFullNAT)
		s.Algorithm, s.Seed = algorithm, uint32(i)
		s.Endpoints = all[i%2*size:][:size]
		if err := b.Sync(context.Background(), Desired{VIPs: []netip.Addr{vip}, Services: []Service{s}}); err != nil {
			t.Error(err)
		}
	}
	replace(0)
	var stop atomic.Bool
	var wait sync.WaitGroup
	var sent [2]int
	for cpu := range sent {
		wait.Go(func() { sent[cpu] = b.knock(cpu, &stop) })
	}
	for i := range changes {
		replace(i + 1)
	}
	stop.Store(true)
	wait.Wait()
	for reason, n := range b.Stats().Drops {
		if n > 0 {
			t.Errorf("%d dropped for %s", n, reason)
		}
	}
	got := map[netip.AddrPort]int{}
	there := b.flows() // but for the few that others have pushed out of their bucket
	for _, f := range there {
		got[f.Endpoint]++
	}
	total := 0
	for _, e := range all {
		total += got[e.Addr]
	}
	t.Logf("%d and %d packets while the list was replaced %d times", sent[0], sent[1], changes)
	if total != len(there) || total < (sent[0]+sent[1])*9/10 {
		t.Errorf("%d of %d flows to endpoints of the two lists, for %d packets", total, len(there), sent[0]+sent[1])
	}
	if algorithm != AlgorithmRR {
		return
	}
	// Each list was there as often as the other; within one, nobody gets two more than another.
	for _, part := range [][]Endpoint{all[:size], all[size:]} {
		least, most := total, 0
		for _, e := range part {
			least, most = min(least, got[e.Addr]), max(most, got[e.Addr])
		}
		if most-least > changes {
			t.Errorf("one endpoint got %d, another %d", least, most)
		}
	}
}

// knock sends SYNs, each from another source, and demands that every one is passed on.
func (b *bench) knock(cpu int, stop *atomic.Bool) int {
	n, out := 0, make([]byte, 512)
	b.ns.Do(func() {
		for ; !stop.Load(); n++ {
			source := netip.AddrFrom4([4]byte{172, byte(16 + cpu), byte(n >> 8), byte(n)})
			p := bpftest.Packet{
				SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: netip.AddrPortFrom(source, uint16(5000+n>>16)), Dst: vipPort, Flags: bpftest.SYN,
			}
			action, err := b.programs.entry.Run(&ebpf.RunOptions{Data: p.Bytes(b.tb), DataOut: out, Context: skBuff{Ifindex: uint32(b.in.Index)}})
			if err != nil || action != actRedirect {
				b.tb.Errorf("SYN %d of CPU %d: action %d, %v", n, cpu, action, err)
				return
			}
		}
	})
	return n
}
