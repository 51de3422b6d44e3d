package bpf

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// exact demands that the counts say what the flow table says.
func (b *bench) exact(when string) {
	b.tb.Helper()
	found := make(census, ids)
	for part, err := range dump(context.Background(), b.maps.Flows) {
		if err != nil {
			b.tb.Fatal(err)
		}
		for i := range part.values {
			found.count(&part.values[i])
		}
	}
	counts := b.accounts.read()
	if slices.Equal(counts, found) {
		return
	}
	for index, n := range found {
		if got := counts[index]; got != n {
			b.tb.Fatalf("%s: count %d is %d, the table says %d", when, index, got, n)
		}
	}
}

func (b *bench) connections() uint64 { return b.accounts.get(0) }

// Before, nothing in user space counted connections off: a node refused new ones after MaxFlows
// of them in total.
func TestEndedConnectionsMakeRoomForNewOnes(t *testing.T) {
	b := newBench(t, func(o *Options) { o.MaxFlows = 64 })
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	for round := range 4 {
		for i := range 60 {
			b.talk(netip.AddrPortFrom(client, uint16(2000+100*round+i)), vipPort)
		}
		if n := b.connections(); n != 60 {
			t.Fatalf("round %d: %d connections", round, n)
		}
		b.exact("established")
		if round%2 == 0 {
			b.age(2*time.Hour, nil)
			b.mustSweep()
		} else if _, err := b.Flush(context.Background(), 7); err != nil {
			t.Fatal(err)
		}
		b.exact("ended")
		if n := b.connections(); n != 0 {
			t.Fatalf("round %d: %d connections are left", round, n)
		}
	}
}

func TestCountsFollowAConnectionThroughItsLife(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	id := uint16(7<<8 + 1)
	expect := func(when string, all, open uint64) {
		t.Helper()
		b.exact(when)
		if b.connections() != all || b.accounts.get(id) != open {
			t.Fatalf("%s: %d connections, %d open", when, b.connections(), b.accounts.get(id))
		}
	}
	snat, _ := b.talk(clientPort, vipPort)
	expect("established", 1, 1)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK})
	expect("half closed", 1, 1)
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.FIN | bpftest.ACK})
	expect("closed", 1, 0)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	expect("replaced by a new SYN", 0, 0)
}

// What a node took over by records counts like what it saw itself, so "least connections" goes on
// from the same numbers.
func TestCountsAreExactAfterAFailover(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.Algorithm = AlgorithmLC
	a.sync(s)
	b.sync(s)
	for i := range 40 {
		a.talk(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
	}
	a.exact("at the first node")
	all := records(t, a.Dataplane)
	importAll(t, b.Dataplane, all)
	importAll(t, b.Dataplane, all)
	b.exact("after the same snapshot twice")
	for _, id := range []uint16{7<<8 + 1, 7<<8 + 2} {
		if n := b.accounts.get(id); n != 20 {
			t.Fatalf("%d connections of endpoint %d", n, id)
		}
	}
	b.SetOwnersAlive(map[uint8]bool{3: false, 5: true})
	b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, 2000), Dst: vipPort, Flags: bpftest.RST})
	b.exact("after a reset of an adopted one")
	// The least loaded one is the endpoint of the connection that was reset.
	_, first := b.talk(netip.AddrPortFrom(client, 3000), vipPort)
	b.talk(netip.AddrPortFrom(client, 3001), vipPort)
	if n, m := b.accounts.get(7<<8+1), b.accounts.get(7<<8+2); n+m != 41 || max(n, m) != 21 {
		t.Errorf("%d and %d connections, the first new one went to %s", n, m, first)
	}
	b.exact("after new ones")
}

func TestReopenedDataplaneCountsAnew(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	for i := range 10 {
		b.talk(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
	}
	b.accounts.add(0, 500)
	b.accounts.add(7<<8+1, -3)
	b.accounts.add(99, 4)
	b.Dataplane = openTest(t, b.ns, b.opts)
	b.exact("opened again")
}

func TestSweepMendsWhatTwoLooksFindWrong(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	for i := range 10 {
		b.talk(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
	}
	b.accounts.add(0, 5)
	b.accounts.add(7<<8+1, -2)
	b.mustSweep()
	if n := b.connections(); n != 15 {
		t.Errorf("%d connections after one look", n)
	}
	b.mustSweep()
	b.exact("after two looks")
}

func TestAuditLeavesRoomForWhatCameMeanwhile(t *testing.T) {
	for _, row := range []struct {
		found, before, after, busy uint64
		want                       int64
	}{
		{5, 5, 5, 0, 0},
		{7, 5, 5, 0, 2},
		{3, 5, 5, 0, -2},
		{5, 4, 6, 0, 0},
		{8, 4, 6, 0, 0},
		{9, 4, 6, 0, 1},
		{2, 6, 4, 0, 0},
		{1, 6, 4, 0, -1},
		{7, 5, 5, 2, 0},
		{9, 5, 5, 2, 2},
		{0, 5, 5, 9, 0},
	} {
		if got := beyond(row.found, row.before, row.after, row.busy); got != row.want {
			t.Errorf("%+v: %d", row, got)
		}
	}
	if smaller(3, 5) != 3 || smaller(-3, -5) != -3 || smaller(3, -5) != 0 || smaller(3, 0) != 0 {
		t.Error("wrong smaller difference")
	}
}

// Whatever is done to flows in whatever order, the counts stay those of the table.
func TestCountsStayExactUnderRandomOperations(t *testing.T) {
	a, b := newBench(t, func(o *Options) { o.MaxFlows = 64 }), newBench(t, func(o *Options) { o.Slot, o.MaxFlows = 5, 64 })
	one, two := service(ModeFullNAT, endpoint1, endpoint2), service(ModeDNAT, endpoint1)
	two.ID, two.VIP = 8, netip.AddrPortFrom(vip, 81)
	nodes := []*bench{a, b}
	for _, n := range nodes {
		n.sync(one, two)
	}
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	for step := range 1500 {
		n := nodes[random.IntN(2)]
		what := n.randomOperation(random, nodes)
		for _, n := range nodes {
			n.exact(fmt.Sprintf("step %d, %s", step, what))
		}
	}
	if a.Stats().Counters["promoted"] < 50 || b.Stats().Counters["adopted"] < 10 {
		t.Errorf("little happened: %+v", a.Stats())
	}
}

func (b *bench) randomOperation(random *rand.Rand, nodes []*bench) string {
	c := netip.AddrPortFrom(client, uint16(2000+random.IntN(90)))
	v := netip.AddrPortFrom(vip, uint16(80+random.IntN(2)))
	switch kind := random.IntN(40); {
	case kind < 16:
		action, out := b.fromClient(bpftest.Packet{Src: c, Dst: v, Flags: bpftest.SYN})
		if action == actRedirect {
			snat, endpoint := tuple(out)
			b.fromEndpoint(bpftest.Packet{Src: endpoint, Dst: snat, Flags: bpftest.SYN | bpftest.ACK})
			b.fromClient(bpftest.Packet{Src: c, Dst: v, Flags: bpftest.ACK})
		}
		return "talk"
	case kind < 30:
		flags := []uint8{bpftest.ACK, bpftest.FIN | bpftest.ACK, bpftest.RST}[random.IntN(3)]
		action, out := b.fromClient(bpftest.Packet{Src: c, Dst: v, Flags: flags})
		if action == actRedirect && random.IntN(2) == 0 {
			snat, endpoint := tuple(out)
			b.fromEndpoint(bpftest.Packet{Src: endpoint, Dst: snat, Flags: flags})
		}
		return "packet"
	case kind < 36:
		to := nodes[random.IntN(2)]
		to.tb.Helper()
		all := records(to.tb, b.Dataplane)
		for at := recordOp; at < len(all); at += RecordSize {
			if random.IntN(8) == 0 {
				all[at] = opDelete
			}
		}
		importAll(to.tb, to.Dataplane, append(all, all...))
		return "import"
	case kind < 38:
		b.age(time.Duration(random.IntN(20))*time.Second, func(*pontoonFlow) bool { return random.IntN(2) == 0 })
		b.mustSweep()
		return "sweep"
	case kind < 39:
		b.BeginSnapshot(3)
		if _, err := b.EndSnapshot(context.Background(), 3); err != nil {
			b.tb.Fatal(err)
		}
		return "snapshot"
	default:
		if _, err := b.Flush(context.Background(), uint32(7+random.IntN(2))); err != nil {
			b.tb.Fatal(err)
		}
		return "flush"
	}
}
