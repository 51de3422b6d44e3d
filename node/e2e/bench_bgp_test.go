package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/routertest"
)

// kernelWatch sees every route and neighbour of the first router change, at the moment it does.
type kernelWatch struct {
	mu      sync.Mutex
	wanted  map[netip.Prefix]bool // destinations that are still to come
	hop     netip.Addr            // their next hop then
	hopAddr netip.Addr            // or the neighbour that is to get another MAC
	mac     string
	done    chan time.Time
}

// watchKernel begins to look until the test ends.
func watchKernel(b *testing.B, r *lab.Router) *kernelWatch {
	b.Helper()
	w := &kernelWatch{}
	listening := make(chan struct{})
	background(b, "kernel watch", func(ctx context.Context) error {
		return r.WatchKernel(ctx, func() { close(listening) }, w.see)
	})
	select {
	case <-listening:
	case <-within(b, 5*time.Second).Done():
		b.Fatal("the router's kernel is not watched")
	}
	return w
}

func (w *kernelWatch) see(c lab.KernelChange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.done == nil:
		return
	case w.hopAddr.IsValid() && c.Neighbour == w.hopAddr && c.MAC == w.mac:
	case w.wanted[c.To] && len(c.NextHops) == 1 && c.NextHops[0] == w.hop:
		delete(w.wanted, c.To)
		if len(w.wanted) > 0 {
			return
		}
	default:
		return
	}
	w.done <- c.At
	w.done = nil
}

// routes says when all these destinations have the next hop.
func (w *kernelWatch) routes(vips []netip.Addr, hop netip.Addr) <-chan time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wanted, w.hop, w.hopAddr, w.done = map[netip.Prefix]bool{}, hop, netip.Addr{}, make(chan time.Time, 1)
	for _, v := range vips {
		w.wanted[single(v)] = true
	}
	return w.done
}

// neighbour says when an address leads to this MAC.
func (w *kernelWatch) neighbour(a netip.Addr, mac string) <-chan time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wanted, w.hopAddr, w.mac, w.done = nil, a, mac, make(chan time.Time, 1)
	return w.done
}

// bgpFigures are the lines of the benchmark's tables.
type bgpFigures struct {
	head []string
	rows [][]string
}

func (f *bgpFigures) add(cells ...string) { f.rows = append(f.rows, cells) }

func (f *bgpFigures) String() string {
	var sb strings.Builder
	w := tabwriter.NewWriter(&sb, 0, 0, 1, ' ', 0)
	for _, cells := range append([][]string{f.head, slices.Repeat([]string{"---"}, len(f.head))}, f.rows...) {
		fmt.Fprintf(w, "| %s\t|\n", strings.Join(cells, "\t| "))
	}
	_ = w.Flush() // a strings.Builder takes everything
	return sb.String()
}

func sorted(values []time.Duration) []float64 {
	var out []float64
	for _, v := range values {
		out = append(out, ms(v))
	}
	slices.Sort(out)
	return out
}

// eachBenchRouter runs a benchmark behind every kind of router; BGP_ROUTERS names one.
func eachBenchRouter(b *testing.B, run func(b *testing.B, kind routertest.Kind)) {
	for _, kind := range pick(b, "BGP_ROUTERS", routertest.Kinds(), func(k routertest.Kind, name string) bool { return string(k) == name }) {
		b.Run(string(kind), func(b *testing.B) {
			for b.Loop() {
				run(b, kind)
			}
		})
	}
}

// BenchmarkBGPMove moves the mastership of 1, 100 and 1000 VIPs, BENCH_MOVES times each (20), first with each node as the
// next hop of its routes and then with a floating one, and says how long after the request was sent, and after it was
// committed, the router's kernel sent packets for the last of them to the new master.
func BenchmarkBGPMove(b *testing.B) {
	eachBenchRouter(b, func(b *testing.B, kind routertest.Kind) {
		table := bgpFigures{head: []string{"router", "VIPs", "next hop", "since the request", "since the commit", "of which until the sessions had it"}}
		r := newBGPLab(b, routertest.Options{Form: routertest.Backup}, kind)
		w := watchKernel(b, r.l.Routers()[0])
		var vips []netip.Addr
		for _, count := range []int{1, 100, 1000} {
			r.putMany(b, "default", len(vips), count-len(vips))
			for i := len(vips); i < count; i++ {
				vips = append(vips, lab.RoutedVIP(i))
			}
			r.all(b, time.Minute, 0, count, master(b, r.l, "").Addr())
			took := r.moves(b, func(to *lab.Node) <-chan time.Time { return w.routes(vips, to.Addr()) })
			table.add(append([]string{string(kind), fmt.Sprint(count), "each node"}, took.cells()...)...)
		}
		hop := lab.IPv4.NextHopVIP()
		cli(b, r.node(), "vip", "create", hop.String())
		cli(b, r.node(), "instance", "update", "default", "--next-hop", hop.String())
		r.all(b, time.Minute, 0, len(vips), hop)
		useNeighbour(b, r, hop)
		took := r.moves(b, func(to *lab.Node) <-chan time.Time { return w.neighbour(hop, to.MACs()[0].String()) })
		table.add(append([]string{string(kind), fmt.Sprint(len(vips)), "floating"}, took.cells()...)...)
		b.Log("\n" + table.String() + "\np50 / p90 / p99 / max in milliseconds.\n")
	})
}

// useNeighbour keeps packets going to an address by way of the router, so that its kernel knows the neighbour. They are pings of the
// first VIP that nobody answers for.
func useNeighbour(b *testing.B, r *bgpLab, hop netip.Addr) {
	b.Helper()
	c := dialUDP(b, r.l.Clients()[0], netip.AddrPortFrom(firstVIP, 9))
	background(b, "packets to "+hop.String(), func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				_, _ = c.Write([]byte("x")) // refused at times, and wanted on its way only
			}
		}
	})
}

// moveTimes are the times of several moves.
type moveTimes struct {
	asked, committed, announced []time.Duration // since the request; since the commit; from the commit to the sessions
}

func (m moveTimes) cells() []string {
	return []string{spread(sorted(m.asked)), spread(sorted(m.committed)), spread(sorted(m.announced))}
}

// moves moves the default instance again and again, and says how long it took until the awaited moment.
func (r *bgpLab) moves(b *testing.B, await func(to *lab.Node) <-chan time.Time) (m moveTimes) {
	b.Helper()
	for range fromEnv("BENCH_MOVES", 20) {
		from := master(b, r.l, "")
		to := others(r.l, from)[0]
		pass(b, calmBefore)
		come := await(to)
		began := time.Now()
		err := from.Call(within(b, 10*time.Second), http.MethodPost, "/v1/instances/default/move", map[string]string{"to": to.Name()}, nil)
		if err != nil {
			b.Fatal(err)
		}
		select {
		case at := <-come:
			m.asked = append(m.asked, at.Sub(began))
			if parts := timelineTo(b, r.l, from, to); parts != nil {
				commit := time.Duration(parts["committed"] * float64(time.Millisecond))
				m.committed = append(m.committed, max(0, at.Sub(began)-commit))
				m.announced = append(m.announced, time.Duration(parts["announced"]*float64(time.Millisecond))-commit)
			}
		case <-within(b, 20*time.Second).Done():
			b.Fatalf("the router did not follow from %s to %s", from.Name(), to.Name())
		}
	}
	return m
}

// timelineTo is what the cluster says of the last move, nil if it says nothing.
func timelineTo(b *testing.B, l *lab.Lab, from, to *lab.Node) map[string]float64 {
	b.Helper()
	var parts map[string]float64
	err := lab.WaitFor(within(b, 5*time.Second), "the timeline", func(ctx context.Context) error {
		s, err := to.Status(ctx)
		if err != nil {
			return err
		}
		if len(s.Failovers) == 0 || s.Failovers[0].From != from.Name() || s.Failovers[0].To != to.Name() {
			return errors.New("it is not told yet")
		}
		parts = s.Failovers[0].Parts
		return nil
	})
	if err != nil {
		b.Log(err)
	}
	return parts
}

// BenchmarkBGPSession takes the neighbour away from three nodes and gives it back, BENCH_SESSIONS times (10), and says how long after the
// command each node had its session, with an established one's route in the router's kernel as the measure of the last.
func BenchmarkBGPSession(b *testing.B) {
	eachBenchRouter(b, func(b *testing.B, kind routertest.Kind) {
		r := newBGPLab(b, routertest.Options{Form: routertest.Backup}, kind)
		w := watchKernel(b, r.l.Routers()[0])
		r.putMany(b, "default", 0, 1)
		m := master(b, r.l, "")
		var took []time.Duration
		for range fromEnv("BENCH_SESSIONS", 10) {
			r.all(b, time.Minute, 0, 1, m.Addr())
			cli(b, r.node(), "bgp", "peer", "remove", r.l.Routers()[0].CoreAddr(lab.IPv4).String())
			r.forwards(b, 20*time.Second, firstVIP)
			pass(b, calmBefore)
			come := w.routes([]netip.Addr{firstVIP}, m.Addr())
			began := time.Now()
			r.addPeer(b, 0)
			select {
			case at := <-come:
				took = append(took, at.Sub(began))
			case <-within(b, 30*time.Second).Done():
				b.Fatal("the router has no route again")
			}
		}
		b.Logf("%s: from `bgp peer add` to the master's route in the router's kernel: %s ms", kind, spread(sorted(took)))
	})
}

// BenchmarkBGPPowerLoss takes the master's power BENCH_FAILOVERS times (20) with the router's BFD at 3 x 50 and 3 x 300 ms, and says how long pings,
// one a millisecond, were not answered.
func BenchmarkBGPPowerLoss(b *testing.B) {
	eachBenchRouter(b, func(b *testing.B, kind routertest.Kind) {
		table := bgpFigures{head: []string{"router", "BFD", "power losses", "network blackout", "pings lost"}}
		r := newBGPLab(b, routertest.Options{Form: routertest.Backup, BFD: 50 * time.Millisecond}, kind)
		for _, ep := range r.l.Endpoints() {
			echoDatagrams(b, ep, netip.AddrPortFrom(ep.Addr(), pongPort))
		}
		n := r.node()
		cli(b, n, "vip", "create", firstVIP.String(), "--announce", "bgp")
		cli(b, n, "vip", "create", lab.GatewayVIP().String(), "--kind", "gateway")
		cli(b, n, "service", "create", "ping", "--vip", firstVIP.String(), "--port", fmt.Sprint(pingPort),
			"--protocol", "udp", "--mode", "fullnat", "--endpoint", endpointAt(r.l.Endpoints()[0], pongPort))
		waitApplied(b, r.l)
		p := startPings(b, r.l.Clients()[0], netip.AddrPortFrom(firstVIP, pingPort))
		for _, interval := range []time.Duration{50 * time.Millisecond, 300 * time.Millisecond} {
			r.change(b, 0, routertest.Options{Form: routertest.Backup, BFD: interval})
			var blackout []time.Duration
			var lost []float64
			for range fromEnv("BENCH_FAILOVERS", 20) {
				felt := r.powerLossRound(b, p)
				blackout, lost = append(blackout, felt.Blackout), append(lost, float64(felt.Lost))
			}
			slices.Sort(lost)
			table.add(string(kind), fmt.Sprintf("3 × %d ms", interval.Milliseconds()), fmt.Sprint(len(lost)), spread(sorted(blackout)), spread(lost))
		}
		b.Log("\n" + table.String() + "\np50 / p90 / p99 / max, in milliseconds where not a count.\n")
	})
}

// powerLossRound takes the master's power and gives it back.
func (r *bgpLab) powerLossRound(b *testing.B, p *pings) outage {
	b.Helper()
	r.whole(b)
	r.ranked(b, firstVIP)
	victim := master(b, r.l, "")
	pass(b, calmBefore)
	p.window()
	pass(b, calmBefore)
	r.off(b, victim)
	next := master(b, r.l, victim.Name())
	r.forwards(b, 30*time.Second, firstVIP, next)
	eventually(b, failoverWait, "pings to be answered", func(context.Context) error {
		if o := p.felt(); o.Open {
			return fmt.Errorf("%+v", o)
		}
		return nil
	})
	pass(b, calmAfter)
	felt := p.felt()
	b.Logf("%s died, %s follows: %.1f ms, %d of %d pings lost", victim.Name(), next.Name(), ms(felt.Blackout), felt.Lost, felt.Sent)
	r.on(b, victim)
	return felt
}
