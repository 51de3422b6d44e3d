package bpf

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/gopacket/gopacket/layers"
)

// age makes every stamp of both flow maps older, as if time had passed without packets.
func (b *bench) age(by time.Duration, which func(*pontoonFlow) bool) {
	b.tb.Helper()
	now, err := b.clock.now()
	if err != nil {
		b.tb.Fatal(err)
	}
	back := uint32(now.ticks(by))
	for _, m := range b.flowTables() {
		for part, err := range m.dump(context.Background()) {
			if err != nil {
				b.tb.Fatal(err)
			}
			for i := range part.keys {
				if which != nil && !which(&part.values[i]) {
					continue
				}
				part.values[i].LastSeen -= back
				part.values[i].Created -= back >> createdShift
				b.put(m, part.keys[i], part.values[i])
			}
		}
	}
}

func (b *bench) mustSweep() {
	b.tb.Helper()
	if err := b.sweep(context.Background()); err != nil {
		b.tb.Fatal(err)
	}
}

func TestEveryStateHasItsTimeout(t *testing.T) {
	fin := func(b *bench, snat netip.AddrPort) {
		b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK})
	}
	for _, row := range []struct {
		name  string
		limit time.Duration
		make  func(b *bench)
	}{
		{"half-open", 10 * time.Second, func(b *bench) {
			b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
		}},
		{"established", 90 * time.Second, func(b *bench) { b.talk(clientPort, vipPort) }},
		{"fin", 30 * time.Second, func(b *bench) {
			snat, _ := b.talk(clientPort, vipPort)
			fin(b, snat)
		}},
		{"closed", 5 * time.Second, func(b *bench) {
			snat, _ := b.talk(clientPort, vipPort)
			fin(b, snat)
			b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.FIN | bpftest.ACK})
		}},
		{"one-way UDP", 30 * time.Second, func(b *bench) {
			b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Protocol: layers.IPProtocolUDP})
		}},
		{"two-way UDP", 120 * time.Second, func(b *bench) {
			_, out := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Protocol: layers.IPProtocolUDP})
			snat, endpoint := tuple(out)
			b.fromEndpoint(bpftest.Packet{Src: endpoint, Dst: snat, Protocol: layers.IPProtocolUDP})
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := newBench(t, nil)
			tcp, udp := service(ModeFullNAT, endpoint1), service(ModeFullNAT, endpoint1)
			tcp.IdleTimeout = 90 * time.Second
			udp.ID, udp.Protocol = 8, protoUDP
			b.sync(tcp, udp)
			row.make(b)
			b.age(row.limit-2*time.Second, nil)
			b.mustSweep()
			if n := len(b.flows()); n != 1 {
				t.Fatalf("%d flows two seconds before the timeout", n)
			}
			b.age(4*time.Second, nil)
			b.mustSweep()
			if n := len(b.flows()); n != 0 {
				t.Fatalf("%d flows two seconds after the timeout", n)
			}
			for _, m := range b.flowTables() {
				for part := range m.dump(context.Background()) {
					if len(part.keys) > 0 {
						t.Errorf("%d halves are left in %T", len(part.keys), m)
					}
				}
			}
		})
	}
}

func TestTrafficInOneDirectionKeepsBothHalves(t *testing.T) {
	for _, reply := range []bool{false, true} {
		b := newBench(t, nil)
		b.sync(service(ModeFullNAT, endpoint1))
		b.talk(clientPort, vipPort)
		b.age(24*time.Hour, func(f *pontoonFlow) bool { return f.reply() == reply })
		b.mustSweep()
		if n := entriesOf(t, b.Dataplane); n != 2 {
			t.Errorf("%d halves", n)
		}
	}
}

func TestExpiryOfOwnedFlowsIsReported(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	b.age(2*time.Hour, nil)
	b.mustSweep()
	batch := <-b.Events()
	r, err := parseRecord(batch)
	if err != nil || r.Op != opDelete || r.Reason != reasonExpire || r.ForwardPackets != 2 || r.ReplyPackets != 1 {
		t.Errorf("record %+v, %v", r, err)
	}
}

func TestNothingEstablishedExpiresBeforeTheFirstSync(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	b.age(10*time.Hour, nil)
	b.Dataplane = openTest(t, b.ns, b.opts)
	b.mustSweep()
	if n := len(b.flows()); n != 1 {
		t.Fatal("a restarted daemon took out a flow whose timeout it does not know")
	}
	b.sync(service(ModeFullNAT, endpoint1))
	b.mustSweep()
	if n := len(b.flows()); n != 0 {
		t.Errorf("%d flows", n)
	}
}

func TestReplicaAgesOnlyOnceItsOwnerIsDead(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	a.sync(service(ModeFullNAT, endpoint1))
	s := service(ModeFullNAT, endpoint1)
	s.IdleTimeout = time.Hour
	b.sync(s)
	a.talk(clientPort, vipPort)
	importAll(t, b.Dataplane, records(t, a.Dataplane))
	b.age(10*time.Hour, nil)
	check := func(when string, want int) {
		t.Helper()
		b.mustSweep()
		if n := len(b.flows()); n != want {
			t.Fatalf("%s: %d flows", when, n)
		}
	}
	check("owner not known", 1)
	b.SetOwnersAlive(map[uint8]bool{3: true, 5: true})
	check("owner alive", 1)
	b.SetOwnersAlive(map[uint8]bool{3: false, 5: true})
	check("owner just died", 1)
	died := b.owners.died[3]
	died.jiffies -= died.ticks(2 * time.Hour)
	b.owners.died[3] = died
	check("owner died two hours ago", 0)
	select {
	case batch := <-b.Events():
		t.Errorf("expiry of a replica was reported: %x", batch)
	default:
	}
}

func TestOrphanedHalfIsRemoved(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	key := pontoonFlowKey{
		Saddr: toAddr(client), Daddr: toAddr(vip), Sport: swap16(clientPort.Port()), Dport: swap16(80), Proto: protoTCP,
	}
	if err := b.maps.Flows.Delete(key); err != nil {
		t.Fatal(err)
	}
	b.mustSweep()
	if n := entriesOf(t, b.Dataplane); n != 1 {
		t.Fatalf("%d halves", n)
	}
	b.age(2*time.Hour, nil)
	b.mustSweep()
	if n := entriesOf(t, b.Dataplane); n != 0 {
		t.Errorf("%d halves", n)
	}
}

func TestFlushRemovesOnlyItsService(t *testing.T) {
	b := newBench(t, nil)
	one, two := service(ModeFullNAT, endpoint1), service(ModeFullNAT, endpoint1)
	two.ID, two.VIP = 8, netip.AddrPortFrom(vip, 81)
	b.sync(one, two)
	for i := range 5 {
		b.talk(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
	}
	b.talk(clientPort, two.VIP)
	b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, 3000), Dst: vipPort, Flags: bpftest.SYN})
	n, err := b.Flush(context.Background(), 7)
	if err != nil || n != 6 {
		t.Errorf("flushed %d, %v", n, err)
	}
	if f := b.flows(); len(f) != 1 || f[0].Service != 8 {
		t.Errorf("flows: %+v", f)
	}
}

func TestStatsAddUp(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	runDataplane(t, b.Dataplane)
	for i := range 4 {
		b.talk(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
	}
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	eventually(t, "figures", func() error {
		b.mustSweep()
		s := b.Stats()
		e := s.Services[7].Endpoints[endpoint1]
		if s.Established != 4 || s.HalfOpen != 1 || s.Owned != 4 || s.Replica != 0 || e.Flows != 2 || e.New != 2 || e.Active != 2 || e.Forward.Packets != 5 || e.Reply.Packets != 2 || e.Forward.Bytes == 0 || s.Services[7].New != 4 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	b.age(2*time.Hour, nil)
	b.mustSweep()
	if e := b.Stats().Services[7].Endpoints[endpoint1]; e.Flows != 0 || e.Active != 0 || e.Forward.Packets != 5 || e.New != 2 {
		t.Errorf("after the end of the flows: %+v", e)
	}
}

func TestClockCountsAcrossTheWrap(t *testing.T) {
	for _, jiffies := range []uint64{1 << 33, 1<<33 + 5, 1<<33 - 5, 1<<32 + 100} {
		now := instant{jiffies: jiffies, hz: 250}
		for _, want := range []time.Duration{0, 4 * time.Millisecond, time.Second, 10 * 24 * time.Hour} {
			if got := now.idle(now.stamp(want)); got != want {
				t.Errorf("at %d: stamped %s ago, read as %s", jiffies, want, got)
			}
		}
		if got := now.idle(uint32(jiffies + 3)); got != 0 {
			t.Errorf("stamp of a moment later: %s", got)
		}
		for _, want := range []time.Duration{0, time.Hour} {
			if got := now.age(now.created(want)); got < want-time.Second || got > want+time.Second {
				t.Errorf("at %d: born %s ago, read as %s", jiffies, want, got)
			}
		}
	}
	old := instant{jiffies: 250 * 3600 * 24 * 365 * 3, hz: 250}
	if ms := milliseconds(old.age(old.created(2 * 365 * 24 * time.Hour))); ms != math.MaxUint32 {
		t.Errorf("two years are %d ms, want saturation", ms)
	}
}

func TestTickRateIsNamed(t *testing.T) {
	for hz, jiffies := range map[uint64]uint64{100: 8, 250: 21, 300: 24, 1000: 80} {
		for _, off := range []uint64{0, 1} {
			if got := tickRate(jiffies-off, 80e6); got != hz {
				t.Errorf("%d in 80 ms: %d Hz, want %d", jiffies-off, got, hz)
			}
		}
	}
}
