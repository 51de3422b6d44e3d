package node

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/bpf"
	"pontoon/bpf/bpftest"
	"pontoon/fsm"
	"pontoon/node/announce"
	"pontoon/node/host"
)

// BenchmarkTakeUp is what a new master does from the moment its state machine has the verdict until
// the last frame about its VIPs is out: the plan, leases, addresses and announcements, on two links of a
// namespace of its own. The times are of the whole; giving up again is not counted.
func BenchmarkTakeUp(b *testing.B) {
	bpftest.RequirePrivilege(b)
	for _, six := range []bool{false, true} {
		for _, vips := range []int{1, 100} {
			b.Run(fmt.Sprintf("six=%t/vips=%d", six, vips), func(b *testing.B) { benchTakeUp(b, six, vips) })
		}
	}
}

func benchTakeUp(b *testing.B, six bool, vips int) {
	d := newTakeUp(b)
	mine := takeUpState(b, six, vips)
	lost, err := mine.Apply(mine.Index()+1, fsm.MoveInstance{Name: fsm.DefaultInstance, To: "lb2"})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	carry := func(s *fsm.State) time.Duration { return timedTurn(b, d, s) }
	carry(lost)
	var all []time.Duration
	for b.Loop() {
		next, err := lost.Apply(lost.Index()+1, fsm.MoveInstance{Name: fsm.DefaultInstance, To: "lb1"})
		if err != nil {
			b.Fatal(err)
		}
		before := d.m.l2.Stats().Sent
		all = append(all, carry(next))
		frames := 2 * vips
		if six {
			frames = vips
		}
		if n := d.m.l2.Stats().Sent - before; n != uint64(frames) {
			b.Fatalf("%d frames, want %d", n, frames)
		}
		if lost, err = next.Apply(next.Index()+1, fsm.MoveInstance{Name: fsm.DefaultInstance, To: "lb2"}); err != nil {
			b.Fatal(err)
		}
		carry(lost)
	}
	slices.Sort(all)
	b.ReportMetric(millis(all[0]), "ms-least")
	b.ReportMetric(millis(all[len(all)/2]), "ms-median")
	b.ReportMetric(millis(all[len(all)*9/10]), "ms-p90")
}

// takeUp is a driver on a machine of its own, without a cluster behind it.
type takeUp struct {
	*driver
	ns *bpftest.NS
}

// timedTurn is how long the driver takes to make the machine what s says.
func timedTurn(b *testing.B, d *takeUp, s *fsm.State) (took time.Duration) {
	b.Helper()
	var err error
	d.ns.Do(func() {
		began := time.Now()
		err = d.carryOut(b.Context(), s, true)
		took = time.Since(began)
	})
	if err != nil {
		b.Fatal(err)
	}
	return took
}

func newTakeUp(tb testing.TB) *takeUp {
	tb.Helper()
	ns, peer := bpftest.NewNS(tb), bpftest.NewNS(tb)
	ns.EnableSix()
	for i, subnet := range []string{"192.168.80.11/24", "10.2.0.11/16"} {
		at, _ := bpftest.Veth(ns, fmt.Sprintf("eth%d", i+1), peer, fmt.Sprintf("far%d", i+1))
		at.Address(subnet)
		at.AddressSix([]string{"fd00:80::11/64", "fd00:2::11/64"}[i])
	}
	m := &member{
		cfg:    Config{Name: "lb1", DataDir: tb.TempDir(), DataPlane: DataPlaneConfig{Interfaces: []string{"eth1", "eth2"}}, Failover: defaultFailover()},
		logger: slog.New(slog.DiscardHandler), reports: newReportTable(),
	}
	m.routing = newRouting(m)
	var err error
	ns.Do(func() {
		if m.host, err = host.New(nil); err != nil {
			return
		}
		if _, err = m.host.Prepare(m.cfg.DataPlane.Interfaces); err != nil {
			return
		}
		m.dp, err = bpf.Open(bpf.Options{PinDir: bpftest.PinDir(tb), Interfaces: m.cfg.DataPlane.Interfaces, MaxFlows: 1024, MaxHalfOpen: 4096})
		if err != nil {
			return
		}
		m.l2, err = announce.NewL2(announce.L2Config{Router: true})
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		for _, c := range []func() error{m.l2.Close, m.dp.Close, m.host.Close} {
			if err := c(); err != nil {
				tb.Error(err)
			}
		}
	})
	now, err := bpf.Boottime()
	if err != nil {
		tb.Fatal(err)
	}
	m.lease.until = now + time.Hour
	return &takeUp{&driver{m: m, routesKnown: true}, ns}
}

// takeUpState has two nodes that can be master, lb1 being it, and VIPs on both links.
func takeUpState(tb testing.TB, six bool, vips int) *fsm.State {
	tb.Helper()
	cmds := oneNode(
		fsm.CreateToken{Token: fsm.Token{ID: "t", Hash: make([]byte, 32), Role: fsm.RoleLB, Expires: t0.Add(time.Minute)}, Now: t0},
		fsm.JoinNode{TokenID: "t", SecretHash: make([]byte, 32), Node: fsm.Node{
			Name: "lb2", Role: fsm.RoleLB, Address: "192.168.80.12:7400", GossipPort: 7401, Key: make([]byte, fsm.KeySize),
		}, Now: t0},
		fsm.NodeVerdict{Node: "lb2", Alive: true},
		fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true},
		fsm.NodeReport{Node: "lb2", Ready: true, LinksUp: true, InSync: true},
	)
	for i := range vips {
		a := netip.AddrFrom4([4]byte{192, 168, 80, byte(100 + i)})
		if i%2 == 1 {
			a = netip.AddrFrom4([4]byte{10, 2, 0, byte(100 + i)})
		}
		if six {
			a = netip.AddrFrom16([16]byte{0: 0xfd, 3: []byte{0x80, 0x02}[i%2], 14: 1, 15: byte(i)})
		}
		cmds = append(cmds, fsm.PutVIP{VIP: fsm.VIP{Address: a}})
	}
	s := fsm.New()
	for _, c := range cmds {
		next, err := s.Apply(s.Index()+1, c)
		if err != nil {
			tb.Fatal(err)
		}
		s = next
	}
	return s
}
