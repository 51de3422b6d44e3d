package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/traffic"
)

// restartGap is what a connection may feel when a daemon dies or is stopped
// while its kernel goes on. One send interval of the clients is in it, and that a busy machine loses one packet, which TCP
// repeats after 0.2 s; a way that is gone for longer is felt for 0.7 s.
const restartGap = 500 * time.Millisecond

// probe opens new connections all the time.
func probe(t testing.TB, l *lab.Lab) *traffic.Prober {
	t.Helper()
	p, err := traffic.NewProber(traffic.ProberConfig{Dial: l.Clients()[0].Dial, Target: webVIP})
	if err != nil {
		t.Fatal(err)
	}
	background(t, "prober", p.Run)
	if err := p.Succeeding(within(t, 10*time.Second), 3); err != nil {
		t.Fatal(err)
	}
	return p
}

// progressed waits until each connection of the window has carried something
// new, and checks that all are there and none waited longer than gap, plus
// what this process was late by itself.
func progressed(t testing.TB, w *traffic.Window, gap time.Duration, late func() time.Duration) {
	t.Helper()
	w.Mark()
	if err := w.Wait(within(t, max(15*time.Second, gap))); err != nil {
		t.Error(err)
	}
	r := w.Result()
	t.Logf("%+v; this process was late by %s", r, late())
	if r.Survived != r.Connections {
		t.Errorf("%d of %d connections survived: %v", r.Survived, r.Connections, r.Errors)
	}
	if r.Blackout > gap+late() {
		t.Errorf("a connection stood still for %s, want below %s", r.Blackout, gap)
	}
}

// steady waits until the connections flow undisturbed.
func steady(t testing.TB, c *traffic.Clients) {
	t.Helper()
	if err := c.Window().Wait(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// missing names the first of want that have does not hold, "" for none.
func missing(have, want []string) string {
	for _, k := range want {
		if _, ok := slices.BinarySearch(have, k); !ok {
			return k
		}
	}
	return ""
}

func TestNobodyNoticesTheDeathOfADaemon(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 3, Clients: 1, Endpoints: 2, NodeArgs: longGrace()})
	serve(t, l)
	declare(t, l, "fullnat", false)
	clients := connect(t, l, 200)
	prober := probe(t, l)
	victim := master(t, l, "")
	before, owned := epoch(t, victim), ownedFlows(t, victim)
	steady(t, clients)

	late := stalls(t)
	w := clients.Window()
	prober.Window()
	if err := victim.Kill(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	pass(t, 2*time.Second)
	fresh := connect(t, l, 30) // accepted while nobody could replicate them
	if r := prober.Result(); r.Failed > 0 || r.OK < 20 {
		t.Errorf("new connections while the daemon was away: %+v", r)
	}
	progressed(t, w, restartGap, late)

	w = clients.Window()
	if err := victim.Start(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	waitEvent(t, victim, "data_plane", "adopted")
	waitHealthy(t, l)
	if err := prober.Succeeding(within(t, 10*time.Second), 10); err != nil {
		t.Error(err)
	}
	if r := prober.Result(); r.Failed > 0 {
		t.Errorf("new connections over death and return of the daemon: %+v", r)
	}
	progressed(t, w, restartGap, late)
	if m := master(t, l, ""); m != victim {
		t.Errorf("%s became master although only %s's daemon died", m.Name(), victim.Name())
	}
	if after := epoch(t, victim); after != before {
		t.Errorf("epoch %d became %d", before, after)
	}
	if k := missing(ownedFlows(t, victim), owned); k != "" {
		t.Errorf("the restarted daemon lost a flow it owned: %s", k)
	}
	steady(t, fresh)
	waitSameFlows(t, l.Nodes(), 230)
}

// identity is what must not change over a restart.
type identity struct {
	id    string
	slots map[string]string
}

func identities(t testing.TB, n *lab.Node) identity {
	t.Helper()
	var s struct {
		Cluster struct {
			ID string `json:"id"`
		} `json:"cluster"`
		Nodes []struct {
			Name    string `json:"name"`
			Slot    uint8  `json:"slot"`
			Joined  uint64 `json:"joined"`
			Address string `json:"address"`
		} `json:"nodes"`
	}
	eventually(t, 5*time.Second, "a status", func(ctx context.Context) error { return get(ctx, n, "/v1/status", &s) })
	out := identity{id: s.Cluster.ID, slots: map[string]string{}}
	for _, n := range s.Nodes {
		out.slots[n.Name] = fmt.Sprintf("slot %d at %s since %d", n.Slot, n.Address, n.Joined)
	}
	return out
}

func TestAllNodesRestartedAtOnceComeBackByThemselves(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2, NodeArgs: longGrace()})
	serve(t, l)
	declare(t, l, "fullnat", true)
	prober := probe(t, l)
	wantID := fmt.Sprint(identities(t, l.Nodes()[1]))
	wantServices := cli(t, l.Nodes()[1], "service", "show", "web", "-o", "yaml")

	check := func(t *testing.T) {
		t.Helper()
		for _, n := range l.Nodes() {
			if err := n.WaitUp(within(t, 20*time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		waitHealthy(t, l)
		m := master(t, l, "")
		waitOnlyHolder(t, 10*time.Second, l, m.Name(), lab.ServiceVIP(), lab.GatewayVIP())
		if err := prober.Succeeding(within(t, 15*time.Second), 10); err != nil {
			t.Error(err)
		}
		for _, n := range l.Nodes() {
			if got := fmt.Sprint(identities(t, n)); got != wantID {
				t.Errorf("%s knows %s, want %s", n.Name(), got, wantID)
			}
			if got := cli(t, n, "service", "show", "web", "-o", "yaml"); configOnly(got) != configOnly(wantServices) {
				t.Errorf("%s has the service\n%s\nwant\n%s", n.Name(), got, wantServices)
			}
		}
	}
	everyNode := func(t *testing.T, act func(context.Context, *lab.Node) error) {
		t.Helper()
		errs := make(chan error, len(l.Nodes()))
		for _, n := range l.Nodes() {
			go func() { errs <- act(within(t, 20*time.Second), n) }()
		}
		for range l.Nodes() {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("daemons by SIGTERM", func(t *testing.T) {
		prober.Window()
		before := epoch(t, l.Nodes()[0])
		everyNode(t, func(ctx context.Context, n *lab.Node) error { return n.Terminate(ctx) })
		everyNode(t, func(ctx context.Context, n *lab.Node) error { return n.Start(ctx) })
		check(t)
		if after := epoch(t, l.Nodes()[0]); after != before {
			t.Errorf("the mastership moved: epoch %d became %d", before, after)
		}
		if r := prober.Result(); r.Failed > 0 {
			t.Errorf("the data planes went on alone, and yet: %+v", r)
		}
	})
	t.Run("machines by power loss", func(t *testing.T) {
		everyNode(t, func(ctx context.Context, n *lab.Node) error { return n.PowerOff(ctx) })
		everyNode(t, func(ctx context.Context, n *lab.Node) error { return n.PowerOn(ctx) })
		check(t)
	})
}

// configOnly leaves out what a node counts by itself, and what was found out about endpoints meanwhile.
func configOnly(yaml string) string {
	counted := regexp.MustCompile(`^\s*(flows|drain_flows_left|traffic|active|new|\w+_packets|\w+_bytes|health|health_\w+|flapping|why_out|latency_\w+):`)
	var out strings.Builder
	for line := range strings.Lines(yaml) {
		if !counted.MatchString(line) {
			out.WriteString(line)
		}
	}
	return out.String()
}
