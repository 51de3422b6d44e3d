package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
)

// endpointView is what the tests look at of an endpoint.
type endpointView struct {
	Address     netip.AddrPort `json:"address"`
	Health      string         `json:"health"`
	HealthError string         `json:"health_error"`
	Flapping    bool           `json:"flapping"`
	Share       int            `json:"share"`
	Since       time.Time      `json:"health_since"`
	WhyOut      string         `json:"why_out"`
	FlowsLeft   int            `json:"drain_flows_left"`
}

func endpointsOf(ctx context.Context, n *lab.Node, service string) ([]endpointView, error) {
	var s struct {
		Endpoints []endpointView `json:"endpoints"`
	}
	err := n.Get(ctx, "/v1/services/"+service, &s)
	return s.Endpoints, err
}

// awaitHealth waits until every node says that the endpoints of web are in this health, in the order of the
// lab's; "" is any.
func awaitHealth(t testing.TB, l *lab.Lab, d time.Duration, want ...string) {
	t.Helper()
	awaitServiceHealth(t, l, d, "web", want...)
}

// awaitServiceHealth is awaitHealth for a service of the lab's first endpoints.
func awaitServiceHealth(t testing.TB, l *lab.Lab, d time.Duration, service string, want ...string) {
	t.Helper()
	for _, n := range l.Nodes() {
		if !n.Powered() {
			continue
		}
		eventually(t, d, fmt.Sprintf("%s to say %v of %s", n.Name(), want, service), func(ctx context.Context) error {
			all, err := endpointsOf(ctx, n, service)
			if err != nil {
				return err
			}
			for i, ep := range l.Endpoints()[:len(want)] {
				at := slices.IndexFunc(all, func(e endpointView) bool { return e.Address.Addr() == ep.Addr() || e.Address.Addr() == ep.Addr6() })
				if at < 0 || want[i] != "" && all[at].Health != want[i] {
					return fmt.Errorf("it says %+v", all)
				}
			}
			return nil
		})
	}
	waitApplied(t, l)
}

// dialWeb opens a connection through the service and closes it.
func dialWeb(t testing.TB, l *lab.Lab) error {
	t.Helper()
	c, err := l.Clients()[0].Dial(within(t, 5*time.Second), webVIP)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("x"))
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	return err
}

func expectWell(t testing.TB, l *lab.Lab, n int) {
	t.Helper()
	for range n {
		if err := dialWeb(t, l); err != nil {
			t.Errorf("a new connection: %v", err)
		}
	}
}

// takenBy dials n times and says how many of that each server got. Probes count as well, so only
// who is not probed well gets none.
func takenBy(t testing.TB, l *lab.Lab, all []*door, n int) []int64 {
	t.Helper()
	var before []int64
	for _, d := range all {
		before = append(before, d.taken.Load())
	}
	expectWell(t, l, n)
	for i, d := range all {
		before[i] = d.taken.Load() - before[i]
	}
	return before
}

// probedFast is how the tests have a service probed: a death is found within a second.
func probedFast() []string {
	return []string{"--probe", "tcp", "--probe-interval", "200ms", "--probe-timeout", "150ms"}
}

// One cluster for all of it: what is asked is what the cluster makes of probes.
func TestHealthOfEndpointsDecidesWhoIsUsed(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 3})
	servers := doors(t, l)
	declare(t, l, "fullnat", true)
	if out := cli(t, l.Nodes()[0], "service", "show", "web"); !strings.Contains(out, "tcp each 2s, for 1s; up after 2, down after 3") {
		t.Errorf("a service of which nobody said how is not probed by TCP:\n%s", out)
	}
	cli(t, l.Nodes()[0], append([]string{"service", "update", "web"}, probedFast()...)...)
	awaitHealth(t, l, 10*time.Second, "up", "up", "up")
	for _, part := range []struct {
		name string
		f    func(*testing.T, *lab.Lab, []*door)
	}{
		{"a server that is gone gets no new connections until it is back", checkDeath},
		{"its connections are kept, or reset, by the policy", checkOnDown},
		{"flows of every kind are kept, reset or moved, and refused, by the policies", checkEffects},
		{"a drain is told of when its last flow has ended", checkDrainEnds},
		{"a new master knows at once who is down", checkTakeOver},
		{"a prober that alone reaches nobody is not believed", checkSuspicion},
		{"when all are down the service is open, or closed, by the policy", checkAllDown},
		{"weight comes back in steps", checkSlowStart},
		{"a server that flaps is damped", checkFlapping},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.f(t, l, servers) }) {
			return
		}
	}
}

func checkDeath(t *testing.T, l *lab.Lab, servers []*door) {
	refused := watchRefused(t, l)
	servers[1].shut()
	awaitHealth(t, l, 5*time.Second, "up", "down", "up")
	expectWell(t, l, 30)
	last := refused()
	all, err := endpointsOf(within(t, 5*time.Second), l.Nodes()[2], "web")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.Address != servers[1].at {
			continue
		}
		if !strings.Contains(e.WhyOut, "connection refused") {
			t.Errorf("why it is out: %+v", e)
		}
		// The goal is 50 ms (make bench-health); this is what also a machine that stands still now and then keeps.
		late := last.Sub(e.Since)
		t.Logf("the last new connection that was sent to the dead began %s after the verdict", late.Round(time.Millisecond))
		if late > 2*time.Second { // less than nothing where this machine stood still from the death to the verdict
			t.Errorf("the last misdirected connection began at %s, the verdict was at %s", last, e.Since)
		}
	}
	expectHealthEvent(t, l, "endpoint "+servers[1].at.String()+" of service web is down: connection refused")
	servers[1].open(t)
	awaitHealth(t, l, 5*time.Second, "up", "up", "up")
	expectHealthEvent(t, l, "endpoint "+servers[1].at.String()+" of service web is up")
	eventually(t, 10*time.Second, "the server that is back to get connections", func(context.Context) error {
		// Three probes fit into the time of thirty connections at most.
		if got := takenBy(t, l, servers, 30); got[1] < 8 {
			return fmt.Errorf("of 30 new ones: %v", got)
		}
		return nil
	})
}

// watchRefused opens a new connection through the service every 20 ms. What it returns ends that, and says when the last one
// began that was refused.
func watchRefused(t testing.TB, l *lab.Lab) (last func() time.Time) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var at time.Time
	var g errgroup.Group
	g.Go(func() error {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			began := time.Now()
			c, err := l.Clients()[0].Dial(ctx, webVIP)
			if err == nil {
				c.Close()
			} else if errors.Is(err, syscall.ECONNREFUSED) {
				at = began
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
		return nil
	})
	return func() time.Time {
		cancel()
		_ = g.Wait() // it returns nil
		return at
	}
}

// expectHealthEvent waits until every node has the event in its log.
func expectHealthEvent(t testing.TB, l *lab.Lab, text string) {
	t.Helper()
	for _, n := range l.Nodes() {
		eventually(t, 5*time.Second, n.Name()+" to tell: "+text, func(ctx context.Context) error {
			var events []struct{ Kind, Text string }
			if err := n.Get(ctx, "/v1/events", &events); err != nil {
				return err
			}
			for _, e := range events {
				if e.Kind == "health" && strings.Contains(e.Text, text) {
					return nil
				}
			}
			return errors.New("it does not")
		})
	}
}

func checkOnDown(t *testing.T, l *lab.Lab, servers []*door) {
	conns := connectPinned(t, l, 6)
	of := func(d *door) (out []pinned) {
		for _, c := range conns {
			if c.endpoint == d.at.Addr() {
				out = append(out, c)
			}
		}
		return out
	}
	servers[0].shut()
	awaitHealth(t, l, 5*time.Second, "down", "up", "up")
	for _, c := range conns {
		expectTalking(t, c)
	}
	cli(t, l.Nodes()[1], "service", "update", "web", "--on-down", "reset")
	gone := of(servers[0])
	if len(gone) != 2 {
		t.Fatalf("%d of 6 connections at one of three endpoints", len(gone))
	}
	for _, c := range gone {
		expectReset(t, c)
	}
	for _, d := range servers[1:] {
		for _, c := range of(d) {
			expectTalking(t, c)
		}
	}
	servers[0].open(t)
	cli(t, l.Nodes()[1], "service", "update", "web", "--on-down", "keep")
	awaitHealth(t, l, 5*time.Second, "up", "up", "up")
}

func checkDrainEnds(t *testing.T, l *lab.Lab, servers []*door) {
	conns := connectPinned(t, l, 3)
	drained := servers[1]
	left := func(ctx context.Context) (int, error) {
		all, err := endpointsOf(ctx, master(t, l, ""), "web")
		for _, e := range all {
			if e.Address == drained.at {
				return e.FlowsLeft, err
			}
		}
		return 0, err
	}
	cli(t, l.Nodes()[2], "endpoint", "drain", "web", drained.at.String())
	waitApplied(t, l)
	if n, err := left(within(t, 5*time.Second)); n != 1 || err != nil {
		t.Errorf("%d flows left, %v: want that of one connection", n, err)
	}
	expectHealthEvent(t, l, "endpoint "+drained.at.String()+" of service web drains: 1 flow left")
	for _, c := range conns {
		if expectTalking(t, c); c.endpoint == drained.at.Addr() {
			c.Close()
		}
	}
	expectHealthEvent(t, l, "endpoint "+drained.at.String()+" of service web is drained: no flow is left")
	eventually(t, 5*time.Second, "no flow to be left", func(ctx context.Context) error {
		if n, err := left(ctx); n != 0 || err != nil {
			return fmt.Errorf("%d are left, error %v", n, err)
		}
		return nil
	})
	cli(t, l.Nodes()[2], "endpoint", "resume", "web", drained.at.String())
	awaitHealth(t, l, 5*time.Second, "up", "up", "up")
}

func checkTakeOver(t *testing.T, l *lab.Lab, servers []*door) {
	servers[2].shut()
	awaitHealth(t, l, 5*time.Second, "up", "up", "down")
	old := master(t, l, "")
	cli(t, old, "node", "drain", old.Name())
	now := master(t, l, old.Name())
	began := time.Now()
	for time.Since(began) < 2*time.Second {
		all, err := endpointsOf(within(t, 5*time.Second), now, "web")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			if down := e.Address == servers[2].at; (e.Health == "down") != down {
				t.Fatalf("after the move: %+v", all)
			}
		}
		expectWell(t, l, 1)
	}
	servers[2].open(t)
	awaitHealth(t, l, 5*time.Second, "up", "up", "up")
	cli(t, now, "node", "resume", old.Name())
	waitHealthy(t, l)
}

// checkSuspicion keeps the endpoints' answers to the master's own address away. The connections it forwards
// have the VIP as their source and go on.
func checkSuspicion(t *testing.T, l *lab.Lab, servers []*door) {
	m := master(t, l, "")
	var own netip.Addr
	for _, p := range m.Addrs() {
		if p.Contains(servers[0].at.Addr()) {
			own = p.Addr()
		}
	}
	if !own.IsValid() {
		t.Fatalf("%s has no address beside %s: %v", m.Name(), servers[0].at, m.Addrs())
	}
	away := &netlink.Route{Type: unix.RTN_BLACKHOLE, Dst: &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(32, 32)}}
	for _, ep := range l.Endpoints() {
		if err := ep.Do(func() error { return netlink.RouteAdd(away) }); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 10*time.Second, m.Name()+" to doubt its probes", func(ctx context.Context) error {
		if w := warnings(ctx, t, m); !strings.Contains(w, "reaches them") {
			return fmt.Errorf("warnings: %s", w)
		}
		return nil
	})
	for began := time.Now(); time.Since(began) < 6*time.Second; {
		all, err := endpointsOf(within(t, 5*time.Second), m, "web")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			if e.Health != "up" {
				t.Fatalf("believed: %+v", all)
			}
		}
		expectWell(t, l, 1)
	}
	for _, ep := range l.Endpoints() {
		if err := ep.Do(func() error { return netlink.RouteDel(away) }); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 10*time.Second, m.Name()+" to be without doubts", func(ctx context.Context) error {
		if w := warnings(ctx, t, m); strings.Contains(w, "probes") {
			return fmt.Errorf("warnings: %s", w)
		}
		return nil
	})
	awaitHealth(t, l, 5*time.Second, "up", "up", "up")
}

func warnings(ctx context.Context, t testing.TB, n *lab.Node) string {
	t.Helper()
	var s struct{ Warnings []string }
	if err := n.Get(ctx, "/v1/status", &s); err != nil {
		return err.Error()
	}
	return strings.Join(s.Warnings, "; ")
}

func checkAllDown(t *testing.T, l *lab.Lab, servers []*door) {
	n := l.Nodes()[0]
	for _, d := range servers {
		d.shut()
	}
	awaitHealth(t, l, 15*time.Second, "down", "down", "down")
	// They take long to be up again, so for now the policy alone decides.
	cli(t, n, "service", "update", "web", "--probe-rise", "100")
	for _, d := range servers {
		d.open(t)
	}
	waitApplied(t, l)
	awaitHealth(t, l, 5*time.Second, "down", "down", "down")
	expectWell(t, l, 10)
	cli(t, n, "service", "update", "web", "--all-down", "closed")
	waitApplied(t, l)
	for range 5 {
		if err := dialWeb(t, l); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("while closed: %v", err)
		}
	}
	cli(t, n, "service", "update", "web", "--all-down", "open", "--probe-rise", "2")
	awaitHealth(t, l, 10*time.Second, "up", "up", "up")
}

func checkSlowStart(t *testing.T, l *lab.Lab, servers []*door) {
	n := l.Nodes()[0]
	cli(t, n, "service", "update", "web", "--slow-start", "5s")
	servers[1].shut()
	awaitHealth(t, l, 5*time.Second, "up", "down", "up")
	servers[1].open(t)
	var seen []int
	eventually(t, 20*time.Second, "the whole weight", func(ctx context.Context) error {
		all, err := endpointsOf(ctx, n, "web")
		if err != nil {
			return err
		}
		for _, e := range all {
			if e.Address != servers[1].at || e.Health != "up" {
				continue
			}
			if len(seen) == 0 || seen[len(seen)-1] != e.Share {
				seen = append(seen, e.Share)
			}
			if e.Share == 100 {
				return nil
			}
		}
		return errors.New("not yet")
	})
	if len(seen) < 4 || !slices.IsSorted(seen) || seen[0] > 60 { // 10 in every half second, if this machine does not stand still
		t.Errorf("shares seen: %v", seen)
	}
	cli(t, n, "service", "update", "web", "--slow-start", "0s")
}

func checkFlapping(t *testing.T, l *lab.Lab, servers []*door) {
	n := l.Nodes()[0]
	cli(t, n, "service", "update", "web", "--probe-interval", "100ms", "--probe-timeout", "90ms", "--probe-rise", "1", "--probe-fall", "1")
	awaitHealth(t, l, 10*time.Second, "up", "up", "up")
	tick := time.NewTicker(100 * time.Millisecond) // that is, 5 Hz
	defer tick.Stop()
	flapping := func() bool {
		all, err := endpointsOf(within(t, 5*time.Second), n, "web")
		return err == nil && slices.ContainsFunc(all, func(e endpointView) bool { return e.Address == servers[2].at && e.Flapping })
	}
	found := false
	for i := 0; i < 150 && !found; i++ {
		if <-tick.C; i%2 == 0 {
			servers[2].shut()
		} else {
			servers[2].open(t)
			found = flapping()
		}
	}
	servers[2].shut()
	if !found {
		t.Fatal("15 s at 5 Hz are not called flapping")
	}
	awaitHealth(t, l, 5*time.Second, "", "", "down")
	servers[2].open(t)
	var listed []map[string]any
	if err := json.Unmarshal([]byte(cli(t, n, "endpoint", "list", "-o", "json")), &listed); err != nil || len(listed) != len(servers) {
		t.Errorf("endpoint list: %v, %v", listed, err)
	}
}
