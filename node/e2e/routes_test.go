package e2e

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/routertest"
	"pontoon/internal/roottest"
)

// routed is a cluster in front of a router that knows the way to one VIP.
type routed struct {
	*lab.Lab
	router *routertest.Daemon
	table  *lab.RouteTable
	vip    netip.Addr
}

func (r routed) prefix() netip.Prefix { return netip.PrefixFrom(r.vip, r.vip.BitLen()) }

func call(t testing.TB, n *lab.Node, method, path string, body any) {
	t.Helper()
	if err := n.Call(within(t, 15*time.Second), method, path, body, nil); err != nil {
		t.Fatal(err)
	}
}

// newRouted makes it: three nodes that learn the way to the clients, BFD with the router, and a service on the VIP.
func newRouted(t testing.TB, kind routertest.Kind) routed {
	t.Helper()
	r := routed{Lab: newCluster(t, lab.Config{Nodes: 3, Endpoints: 1, Topology: lab.Routed, LearnRoutes: true, NodeArgs: longGrace()}), vip: lab.RoutedVIP(0)}
	const interval = 100 * time.Millisecond
	r.router = routertest.Start(t, kind, r.Routers()[0], 3, routertest.Options{Form: routertest.Backup, BFD: interval})
	var err error
	if r.table, err = r.Routers()[0].RouteTable(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.table.Close)
	n := r.Nodes()[0]
	call(t, n, http.MethodPut, "/v1/bgp", map[string]any{"import": []map[string]any{{"prefix": lab.IPv4.ClientNet()}}})
	call(t, n, http.MethodPut, "/v1/bgp/peers/"+r.Routers()[0].CoreAddr(lab.IPv4).String(),
		map[string]any{"address": r.Routers()[0].CoreAddr(lab.IPv4), "as": lab.RouterAS, "bfd": true, "bfd_interval": interval.String()})
	call(t, n, http.MethodPut, "/v1/vips/"+r.vip.String(), map[string]any{"address": r.vip, "announce": "bgp"})
	cli(t, n, "service", "create", "web", "--vip", r.vip.String(), "--port", "80", "--protocol", "tcp", "--mode", "fullnat",
		"--endpoint", endpointAt(r.Endpoints()[0], webPort), "--probe", "none") // nothing serves there, and the route is what counts
	for _, n := range r.Nodes() {
		r.awaitSessions(t, n)
	}
	return r
}

func (r routed) awaitSessions(t testing.TB, n *lab.Node) {
	t.Helper()
	eventually(t, 30*time.Second, n.Name()+" to have its sessions", func(ctx context.Context) error {
		s, err := n.Status(ctx)
		if err != nil {
			return err
		}
		return s.CheckBGP(1)
	})
}

// awaitRanks waits until the router has these ways and no others, in this order by their MED.
func (r routed) awaitRanks(t testing.TB, want ...string) {
	t.Helper()
	r.router.AwaitPaths(t, r.prefix(), fmt.Sprintf("ways by %v", want), func(paths []routertest.Path) bool {
		slices.SortFunc(paths, func(a, b routertest.Path) int { return int(a.MED) - int(b.MED) })
		for i, p := range paths {
			// The first is lower by one for each node without a place.
			if i >= len(want) || p.From != r.Node(want[i]).Addr() || p.MED > 10<<i || i > 0 && p.MED != 10<<i {
				return false
			}
		}
		return len(paths) == len(want)
	})
}

func (r routed) succession(t testing.TB) []string {
	t.Helper()
	var in struct {
		Succession []string `json:"succession"`
	}
	if err := r.Nodes()[0].Get(within(t, 5*time.Second), "/v1/instances/default", &in); err != nil {
		t.Fatal(err)
	}
	return in.Succession
}

// awaitAll waits until all nodes have a place, and the router knows it and follows.
func (r routed) awaitAll(t testing.TB) {
	t.Helper()
	eventually(t, 30*time.Second, "all nodes to be in the succession", func(context.Context) error {
		if in := r.succession(t); len(in) != len(r.Nodes()) {
			return fmt.Errorf("there are %v", in)
		}
		return nil
	})
	r.awaitRanks(t, r.succession(t)...)
	r.awaitHops(t, r.vip, r.Node(r.succession(t)[0]).Addr()) // the kernel follows its daemon
}

// watchNextHops looks at the router's way to the VIP, over and over, until stop is called, which returns the next
// hops it had in turn.
func (r routed) watchNextHops(t testing.TB) (stop func() []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan []string, 1)
	go func() {
		var seen []string
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			hops, err := r.table.To(r.vip)
			now := fmt.Sprint(hops)
			if err != nil {
				now = err.Error()
			}
			if len(seen) == 0 || seen[len(seen)-1] != now {
				seen = append(seen, now)
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
		done <- seen
	}()
	return func() []string {
		cancel()
		return <-done
	}
}

// learned holds that a node's kernel knows the way to the clients by the router, or does not.
func (r routed) awaitLearned(t testing.TB, n *lab.Node, want bool) {
	t.Helper()
	table, err := n.RouteTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	eventually(t, 10*time.Second, fmt.Sprintf("%s to know the way to the clients: %t", n.Name(), want), func(context.Context) error {
		all, err := table.NextHops(lab.IPv4)
		if hops := all[lab.IPv4.ClientNet()]; err == nil && slices.Contains(hops, r.Routers()[0].CoreAddr(lab.IPv4)) != want {
			err = fmt.Errorf("it has %v", hops)
		}
		return err
	})
}

// TestRoutesFollowTheClusterAndTheNode holds what a node announces, and what it does not.
func TestRoutesFollowTheClusterAndTheNode(t *testing.T) {
	roottest.Need(t)
	eachRouter(t, func(t *testing.T, kind routertest.Kind) {
		r := newRouted(t, kind)
		r.awaitAll(t)
		for _, sub := range []struct {
			name string
			run  func(*testing.T)
		}{
			{"a VIP without endpoints is withdrawn and comes back", r.withheld},
			{"learned routes are in the kernel", func(t *testing.T) {
				for _, n := range r.Nodes() {
					r.awaitLearned(t, n, true)
				}
			}},
			{"a node whose link fails withdraws at once", r.linkFails},
			{"a drained node parts", r.drained},
			{"a restart is not noticed", r.restarted},
			{"a node without a quorum withdraws what is bound to it", r.alone},
			{"a node that leaves says goodbye", r.leaves},
		} {
			if !t.Run(sub.name, sub.run) {
				t.FailNow()
			}
		}
	})
}

func (r routed) withheld(t *testing.T) {
	order := r.succession(t)
	cli(t, r.Nodes()[0], "endpoint", "drain", "web", endpointAt(r.Endpoints()[0], webPort))
	r.awaitRanks(t)
	cli(t, r.Nodes()[0], "endpoint", "resume", "web", endpointAt(r.Endpoints()[0], webPort))
	r.awaitRanks(t, order...)
	told := cli(t, r.Nodes()[0], "events", "--since", "1m")
	for _, want := range []string{"VIP 198.18.0.1 is not announced: no endpoint takes new connections", "VIP 198.18.0.1 is announced again"} {
		if !strings.Contains(told, want) {
			t.Errorf("no event says %q:\n%s", want, told)
		}
	}
}

// linkFails takes the link to the endpoints from the master: BGP goes on over the other one.
func (r routed) linkFails(t *testing.T) {
	order := r.succession(t)
	master := r.Node(order[0])
	began := time.Now()
	if err := master.SetLink(master.Interfaces()[1], false); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the router to turn away", func(context.Context) error {
		hops, err := r.table.To(r.vip)
		if err == nil && (len(hops) == 0 || slices.Contains(hops, master.Addr())) {
			err = fmt.Errorf("it goes to %v", hops)
		}
		return err
	})
	if took := time.Since(began); took > roottest.Patient(3*time.Second) {
		t.Errorf("the router turned away after %s", took)
	} else {
		t.Logf("the router turned away after %s", took)
	}
	r.awaitRanks(t, order[1:]...)
	if err := master.SetLink(master.Interfaces()[1], true); err != nil {
		t.Fatal(err)
	}
	r.awaitAll(t)
}

func (r routed) drained(t *testing.T) {
	order := r.succession(t)
	master := r.Node(order[0])
	stop := r.watchNextHops(t)
	cli(t, r.Nodes()[0], "node", "drain", master.Name())
	r.router.AwaitPaths(t, r.prefix(), "a way that is about to go", func(paths []routertest.Path) bool {
		return slices.ContainsFunc(paths, func(p routertest.Path) bool {
			asks := strings.Contains(p.Communities, "65535,0") || strings.Contains(p.Communities, "graceful-shutdown") || strings.Contains(p.Communities, "gracefulShutdown")
			return p.From == master.Addr() && p.MED == math.MaxUint32 && asks && !p.Best
		})
	})
	r.awaitRanks(t, order[1:]...)
	if seen := stop(); slices.Contains(seen, "[]") || len(seen) != 2 {
		t.Errorf("the router went to %v", seen)
	}
	cli(t, r.Nodes()[0], "node", "resume", master.Name())
	r.awaitAll(t)
}

// restarted stops the master's daemon in order and starts it again: the router keeps the way to it all the time.
func (r routed) restarted(t *testing.T) {
	master := r.Node(r.succession(t)[0])
	stop := r.watchNextHops(t)
	if err := master.Terminate(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	r.router.AwaitPaths(t, r.prefix(), "a way that is kept", func(paths []routertest.Path) bool {
		return slices.ContainsFunc(paths, func(p routertest.Path) bool { return p.From == master.Addr() && p.Best })
	})
	r.awaitLearned(t, master, true)
	if err := errors.Join(master.Start(within(t, 10*time.Second)), master.WaitUp(within(t, 30*time.Second))); err != nil {
		t.Fatal(err)
	}
	r.awaitSessions(t, master)
	r.awaitAll(t)
	r.awaitLearned(t, master, true)
	if seen := stop(); len(seen) != 1 {
		t.Errorf("the router went to %v", seen)
	}
	if now := r.succession(t)[0]; now != master.Name() {
		t.Errorf("the master became %s", now)
	}
}

// alone stops the daemons of two nodes: BFD takes their routes, and the third one's lease runs out.
func (r routed) alone(t *testing.T) {
	held := lab.RoutedVIP(1)
	call(t, r.Nodes()[0], http.MethodPut, "/v1/vips/"+held.String(), map[string]any{"address": held, "announce": "bgp", "on_quorum_loss": "hold", "on_no_endpoint": "keep"})
	last := r.Node(r.succession(t)[2])
	r.awaitHops(t, held, r.Node(r.succession(t)[0]).Addr())
	for _, name := range r.succession(t)[:2] {
		n := r.Node(name)
		if err := n.Pause(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := n.Resume(); err != nil {
				t.Error(err)
			}
		}()
	}
	r.awaitHops(t, r.vip)
	r.awaitHops(t, held, last.Addr())
}

// awaitHops waits until the router's kernel sends an address there, and nowhere if nothing is named.
func (r routed) awaitHops(t testing.TB, to netip.Addr, want ...netip.Addr) {
	t.Helper()
	eventually(t, 15*time.Second, fmt.Sprintf("the router to send %s to %v", to, want), func(context.Context) error {
		hops, err := r.table.To(to)
		if err == nil && !slices.Equal(hops, want) {
			err = fmt.Errorf("it sends it to %v", hops)
		}
		return err
	})
}

func (r routed) leaves(t *testing.T) {
	for _, n := range r.Nodes() {
		r.awaitSessions(t, n)
	}
	r.awaitAll(t)
	master := r.Node(r.succession(t)[0])
	stop := r.watchNextHops(t)
	if out := cli(t, master, "leave"); !strings.Contains(out, "routers") {
		t.Errorf("leave does not say that it waits for routers:\n%s", out)
	}
	r.router.AwaitPaths(t, r.prefix(), "no way by "+master.Name(), func(paths []routertest.Path) bool {
		return len(paths) == 2 && !slices.ContainsFunc(paths, func(p routertest.Path) bool { return p.From == master.Addr() })
	})
	if seen := stop(); slices.Contains(seen, "[]") || len(seen) != 2 {
		t.Errorf("the router went to %v", seen)
	}
	r.awaitLearned(t, master, false)
}
