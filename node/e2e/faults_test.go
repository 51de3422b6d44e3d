package e2e

import (
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/traffic"
)

// failoverGap is what a connection may feel when its master is lost. TCP repeats what is lost after about 0.2, 0.6, 1.4, 3
// and 6.4 s, so a failover that takes up to three seconds on a busy machine is within it, and a longer one is not. How long
// each step takes is told, and checked, by the timelines.
const failoverGap = 5 * time.Second

// oneLinkGap is the same for the loss of one of two links, in a lab whose hosts
// share one kernel: up to TCP's next step, which waits until the kernel has let go of the packet.
const oneLinkGap = 8 * time.Second

// releaseTime is how soon a former master that hears again holds no VIP.
const releaseTime = 3 * time.Second

// takenOver waits for a new master, then for the connections to go on by it.
func takenOver(t testing.TB, l *lab.Lab, w *traffic.Window, old *lab.Node, gap time.Duration, late func() time.Duration) *lab.Node {
	t.Helper()
	next := master(t, l, old.Name())
	progressed(t, w, gap, late)
	return next
}

// returned checks what the end of a failure must bring: one holder of each
// VIP soon, everybody healthy, the new master still master, nothing lost.
func returned(t testing.TB, l *lab.Lab, w *traffic.Window, next *lab.Node, late func() time.Duration) {
	t.Helper()
	waitOnlyHolder(t, releaseTime, l, next.Name(), lab.ServiceVIP(), lab.GatewayVIP())
	waitHealthy(t, l)
	progressed(t, w, failoverGap, late)
	if m := master(t, l, ""); m != next {
		t.Errorf("%s took the mastership back", m.Name())
	}
}

func TestAMasterThatLosesItsLinksIsReplacedAndReturns(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 100)
	probeOften(t, l)
	for _, tc := range []struct {
		name string
		gap  time.Duration
		set  func(n *lab.Node, up bool) error
	}{
		{"all links", failoverGap, func(n *lab.Node, up bool) error {
			if up {
				return n.LinksUp()
			}
			return n.LinksDown()
		}},
		// With one link lost the other still brings packets. What the old master
		// had accepted waits 3 s there for a neighbour that cannot answer, and a
		// sender in the same kernel does not repeat a packet that still waits
		// somewhere (TCPSpuriousRtxHostQueues). Machines of their own do not share
		// that fate. Up to 3.4 s were seen.
		{"the link to the endpoints", oneLinkGap, func(n *lab.Node, up bool) error { return n.SetLink("eth2", up) }},
		{"the link to clients and cluster", oneLinkGap, func(n *lab.Node, up bool) error { return n.SetLink("eth1", up) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			steady(t, clients)
			old := master(t, l, "")
			waitSameFlows(t, l.Nodes(), 100)
			late := stalls(t)
			w := clients.Window()
			if err := tc.set(old, false); err != nil {
				t.Fatal(err)
			}
			next := takenOver(t, l, w, old, tc.gap, late)
			w = clients.Window()
			if err := tc.set(old, true); err != nil {
				t.Fatal(err)
			}
			returned(t, l, w, next, late)
		})
	}
	expectNoDeaths(t, l)
}

// probeOften has the endpoints of the service web called dead in 0.2 s if they refuse, and in little more than one if they are silent.
func probeOften(t *testing.T, l *lab.Lab) {
	t.Helper()
	cli(t, l.Nodes()[0], "service", "update", "web", "--probe-interval", "100ms", "--probe-timeout", "1s", "--probe-fall", "2")
	awaitHealth(t, l, 10*time.Second, "up", "up")
}

// expectNoDeaths holds that no endpoint was called dead: it was the nodes that could not reach them.
func expectNoDeaths(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, n := range l.Nodes() {
		list, err := events(within(t, 5*time.Second), n)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if e.Kind == "health" && strings.Contains(e.Text, "is down") {
				t.Errorf("%s tells: %s", n.Name(), e.Text)
			}
		}
	}
}

func TestAStoppedDaemonIsLeftAloneForItsGrace(t *testing.T) {
	t.Parallel()
	const grace = 5 * time.Second
	l := newCluster(t, lab.Config{
		Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2, NodeArgs: []string{"--agent-grace", grace.String()},
	})
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 100)
	prober := probe(t, l)
	old := master(t, l, "")
	waitSameFlows(t, l.Nodes(), 100)
	before := epoch(t, old)
	late := stalls(t)

	t.Run("shorter than the grace nothing happens", func(t *testing.T) {
		w := clients.Window()
		prober.Window()
		if err := old.Pause(); err != nil {
			t.Fatal(err)
		}
		pass(t, 3*time.Second)
		if err := old.Resume(); err != nil {
			t.Fatal(err)
		}
		waitHealthy(t, l)
		pass(t, time.Second)
		progressed(t, w, restartGap, late)
		if r := prober.Result(); r.Failed > 0 {
			t.Errorf("new connections meanwhile: %+v", r)
		}
		if after := epoch(t, old); after != before {
			t.Errorf("epoch %d became %d", before, after)
		}
	})
	t.Run("longer than the grace the mastership moves", func(t *testing.T) {
		w := clients.Window()
		began := time.Now()
		if err := old.Pause(); err != nil {
			t.Fatal(err)
		}
		next := takenOver(t, l, w, old, failoverGap, late)
		if took := time.Since(began); took < grace-time.Second/2 { // it counts from when the daemon was heard of last
			t.Errorf("%s took over after %s already", next.Name(), took)
		}
		if err := prober.Succeeding(within(t, 5*time.Second), 5); err != nil {
			t.Error(err)
		}
		w = clients.Window()
		prober.Window()
		if err := old.Resume(); err != nil {
			t.Fatal(err)
		}
		returned(t, l, w, next, late)
		pass(t, time.Second)
		if r := prober.Result(); r.Failed > 0 {
			t.Errorf("new connections after its waking: %+v", r)
		}
	})
}

func TestAForeignHandOnTheVIPsIsMended(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 1})
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 20)
	m := master(t, l, "")
	waitOnlyHolder(t, 5*time.Second, l, m.Name(), lab.ServiceVIP(), lab.GatewayVIP())
	var backup *lab.Node
	for _, n := range l.Nodes() {
		if n != m {
			backup = n
		}
	}
	late := stalls(t)
	w := clients.Window()
	for _, v := range []vipOn{{"eth1", lab.ServiceVIP()}, {"eth2", lab.GatewayVIP()}} {
		v.del(t, m)
		waitOnlyHolder(t, releaseTime, l, m.Name(), v.addr)
		v.add(t, backup)
		waitOnlyHolder(t, releaseTime, l, m.Name(), v.addr)
	}
	progressed(t, w, failoverGap, late)

	w = clients.Window()
	if err := m.PowerOff(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	next := takenOver(t, l, w, m, failoverGap, late)
	waitOnlyHolder(t, releaseTime, l, next.Name(), lab.ServiceVIP(), lab.GatewayVIP())
	w = clients.Window()
	if err := m.PowerOn(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitUp(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	// Never again, at no moment of its return, may the old one hold a VIP.
	returning(t, l, next, lab.ServiceVIP(), lab.GatewayVIP())
	progressed(t, w, failoverGap, late)

	waitSameFlows(t, l.Nodes(), 20)
	w = clients.Window()
	cli(t, backup, "instance", "move", "default", "--to", m.Name())
	waitOnlyHolder(t, releaseTime, l, m.Name(), lab.ServiceVIP(), lab.GatewayVIP())
	progressed(t, w, restartGap, late)
}
