package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/traffic"
)

const (
	pingPort     = 81   // of the VIP
	pongPort     = 8081 // of the endpoints
	calmBefore   = 500 * time.Millisecond
	calmAfter    = 300 * time.Millisecond
	failoverWait = 20 * time.Second
)

var pingVIP = netip.AddrPortFrom(lab.ServiceVIP(), pingPort)

// failure is one way to fail, and what is needed for it and after it.
type failure struct {
	name string
	// leads says whether the victim, a master, has to be the Raft leader, too;
	// nil when that is all the same.
	leads *bool
	// hit brings it about, and heal ends it.
	hit, heal func(b *testing.B, l *lab.Lab, victim *lab.Node)
	// moves says that another node has to become master.
	moves bool
}

func failures() []failure {
	yes, no := true, false
	nothing := func(*testing.B, *lab.Lab, *lab.Node) {}
	try := func(b *testing.B, err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	off := func(b *testing.B, _ *lab.Lab, n *lab.Node) { try(b, n.PowerOff(within(b, 10*time.Second))) }
	on := func(b *testing.B, _ *lab.Lab, n *lab.Node) {
		try(b, n.PowerOn(within(b, 10*time.Second)))
		try(b, n.WaitUp(within(b, 20*time.Second)))
	}
	start := func(b *testing.B, n *lab.Node) {
		try(b, n.Start(within(b, 5*time.Second)))
		try(b, n.WaitUp(within(b, 20*time.Second)))
	}
	return []failure{
		{name: "none", hit: func(b *testing.B, _ *lab.Lab, _ *lab.Node) { pass(b, time.Second) }, heal: nothing},
		{name: "power", leads: &no, hit: off, heal: on, moves: true},
		{name: "power-leader", leads: &yes, hit: off, heal: on, moves: true},
		{
			name: "link", moves: true,
			hit:  func(b *testing.B, _ *lab.Lab, n *lab.Node) { try(b, n.LinksDown()) },
			heal: func(b *testing.B, _ *lab.Lab, n *lab.Node) { try(b, n.LinksUp()) },
		},
		{name: "stop", heal: nothing, hit: func(b *testing.B, _ *lab.Lab, n *lab.Node) {
			try(b, n.Terminate(within(b, 10*time.Second)))
			start(b, n)
		}},
		{name: "kill", heal: nothing, hit: func(b *testing.B, _ *lab.Lab, n *lab.Node) {
			try(b, n.Kill(within(b, 10*time.Second)))
			start(b, n)
		}},
		{name: "move", heal: nothing, moves: true, hit: func(b *testing.B, l *lab.Lab, n *lab.Node) {
			cli(b, n, "instance", "move", "default", "--to", others(l, n)[0].Name())
		}},
	}
}

// BenchmarkFailover fails in each way BENCH_FAILOVERS times (50) under
// BENCH_CONNECTIONS (1000) connections with checked payload, and prints tables of
// what clients felt and of what took how long. BENCH_FAILURES picks ways by name,
// like power,move. A connection that is lost fails it.
func BenchmarkFailover(b *testing.B) {
	l := newCluster(b, lab.Config{Topology: lab.OneLeg, Nodes: 3, Clients: 3, Endpoints: 2})
	serve(b, l)
	for _, ep := range l.Endpoints() {
		echoDatagrams(b, ep, netip.AddrPortFrom(ep.Addr(), pongPort))
	}
	declare(b, l, "fullnat", false)
	cli(b, l.Nodes()[0], "service", "create", "ping", "--vip", lab.ServiceVIP().String(), "--port", fmt.Sprint(pingPort),
		"--protocol", "udp", "--mode", "fullnat", "--endpoint", endpointAt(l.Endpoints()[0], pongPort))
	waitApplied(b, l)
	count := fromEnv("BENCH_CONNECTIONS", 1000)
	bench := &failoverBench{
		l: l, count: count, clients: connect(b, l, count),
		pings: startPings(b, l.Clients()[1], pingVIP), asker: startAsker(b, l.Clients()[2], lab.ServiceVIP()),
	}
	var all report
	for _, f := range pickFailures(b) {
		b.Run(f.name, func(b *testing.B) {
			for b.Loop() {
				row := row{name: f.name}
				for i := range fromEnv("BENCH_FAILOVERS", 50) {
					row.rounds = append(row.rounds, bench.round(b, f))
					b.Logf("%s %d: %s", f.name, i+1, row.rounds[i])
				}
				all = append(all, row)
				row.metrics(b)
			}
		})
	}
	b.Log("\n" + all.String())
}

func pickFailures(b *testing.B) []failure {
	return pick(b, "BENCH_FAILURES", failures(), func(f failure, name string) bool { return f.name == name })
}

type failoverBench struct {
	l       *lab.Lab
	count   int
	clients *traffic.Clients
	pings   *pings
	asker   *asker
}

// round fails once and waits until all is as before.
func (f *failoverBench) round(b *testing.B, how failure) round {
	b.Helper()
	waitHealthy(b, f.l)
	waitSameFlows(b, f.l.Nodes(), f.count)
	victim := f.place(b, how.leads)
	pass(b, calmBefore)
	f.pings.window()
	f.asker.window()
	w := f.clients.Window()
	pass(b, calmBefore)
	how.hit(b, f.l, victim)
	if how.moves {
		master(b, f.l, victim.Name())
	} else {
		waitHealthy(b, f.l)
	}
	w.Mark()
	if err := w.Wait(within(b, failoverWait)); err != nil {
		b.Error(err)
	}
	f.waitPings(b)
	pass(b, calmAfter)
	res := w.Result()
	r := round{udp: f.pings.felt(), arp: f.asker.felt(), tcp: w.Gaps(), lost: res.Connections - res.Survived}
	if r.lost > 0 {
		b.Errorf("%s: %+v", how.name, res)
	}
	if how.moves {
		r.parts = f.timeline(b, victim)
	}
	how.heal(b, f.l, victim)
	return r
}

// place makes a node master that leads, or one that does not, and returns it.
func (f *failoverBench) place(b *testing.B, leads *bool) *lab.Node {
	b.Helper()
	var found *lab.Node
	eventually(b, 60*time.Second, "a master in its place", func(ctx context.Context) error {
		m := master(b, f.l, "")
		s, err := m.Status(ctx)
		if err != nil {
			return err
		}
		leader := f.l.Node(s.Cluster.Leader)
		if leader == nil {
			return errors.New("there is no leader")
		}
		if leads == nil || (leader == m) == *leads {
			found = m
			return nil
		}
		to := leader
		if !*leads {
			to = others(f.l, leader)[0]
		}
		if _, err := m.CLI(ctx, "instance", "move", "default", "--to", to.Name()); err != nil {
			return err
		}
		return fmt.Errorf("%s leads and %s was master", leader.Name(), m.Name())
	})
	waitOnlyHolder(b, 10*time.Second, f.l, found.Name(), lab.ServiceVIP())
	return found
}

// waitPings waits until pings are answered again.
func (f *failoverBench) waitPings(b *testing.B) {
	b.Helper()
	eventually(b, failoverWait, "pings to be answered", func(context.Context) error {
		if o := f.pings.felt(); o.Open {
			return fmt.Errorf("%+v", o)
		}
		return nil
	})
}

// timeline reads what the cluster says of the instance's last move. It is told a
// moment after the move; nil if that never was.
func (f *failoverBench) timeline(b *testing.B, from *lab.Node) map[string]float64 {
	b.Helper()
	var st struct {
		Failovers []struct {
			From  string             `json:"from"`
			Parts map[string]float64 `json:"parts_ms"`
		} `json:"failovers"`
		Instances []struct {
			Epoch uint64 `json:"epoch"`
		} `json:"instances"`
	}
	asked := others(f.l, from)[0]
	err := lab.WaitFor(within(b, 5*time.Second), "the timeline", func(ctx context.Context) error {
		if err := get(ctx, asked, "/v1/status", &st); err != nil {
			return err
		}
		if len(st.Failovers) == 0 || st.Failovers[0].From != from.Name() {
			return errors.New("it is not told yet")
		}
		return nil
	})
	if err != nil {
		b.Log(err)
		return nil
	}
	return st.Failovers[0].Parts
}
