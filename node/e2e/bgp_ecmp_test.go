package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/routertest"
)

// With an instance that has no master the router spreads connections over all nodes. Neither a node's death nor its
// return, a drain or a daemon's restart costs one of them, in fullnat and in dnat. BGP_CONNECTIONS is how many there
// are in each mode.
func TestActiveActiveKeepsConnections(t *testing.T) {
	eachRouter(t, func(t *testing.T, kind routertest.Kind) {
		o := routertest.Options{Form: routertest.ECMP, BFD: someBFD}
		r := newBGPLab(t, o, kind)
		cli(t, r.node(), "instance", "create", "wide", "--kind", "ecmp")
		r.declare(t, "wide", "maglev")
		all := r.l.Nodes()
		r.forwards(t, 20*time.Second, firstVIP, all...)
		conns := r.crowd(t, fromEnv("BGP_CONNECTIONS", 100))
		r.checkSpread(t)

		gateway := master(t, r.l, "")
		victim := others(r.l, gateway)[0]
		t.Run("power loss of a node", func(t *testing.T) { r.loseNode(t, conns, victim) })
		t.Run("power loss of the gateway's master", func(t *testing.T) { r.loseNode(t, conns, master(t, r.l, "")) })
		t.Run("a drain", func(t *testing.T) {
			victim := others(r.l, master(t, r.l, ""))[0]
			conns.through(t, unnoticed, func() {
				cli(t, r.node(), "node", "drain", victim.Name())
				r.forwards(t, 20*time.Second, firstVIP, others(r.l, victim)...)
				cli(t, r.node(), "node", "resume", victim.Name())
				r.forwards(t, 20*time.Second, firstVIP, all...)
			})
		})
		t.Run("a restart of a daemon", func(t *testing.T) {
			victim := others(r.l, master(t, r.l, ""))[0]
			conns.through(t, unnoticed, func() {
				r.restartDaemon(t, victim, time.Second)
				r.forwards(t, 20*time.Second, firstVIP, all...)
			})
		})
	})
}

// checkSpread wants every node to have a share of the connections. That of a third is off by less than that.
func (r *bgpLab) checkSpread(t *testing.T) {
	t.Helper()
	for _, n := range r.l.Nodes() {
		eventually(t, 10*time.Second, n.Name()+" to carry a share of the connections", func(ctx context.Context) error {
			s, err := n.Status(ctx)
			if err == nil && s.Flows.Owned == 0 {
				err = fmt.Errorf("it owns none of %d", s.Flows.Established)
			}
			return err
		})
	}
}

// loseNode takes a node's power and gives it back.
func (r *bgpLab) loseNode(t *testing.T, c crowd, victim *lab.Node) {
	t.Helper()
	r.whole(t)
	r.forwards(t, 20*time.Second, firstVIP, r.l.Nodes()...)
	waitSameFlows(t, r.l.Nodes(), len(c)) // a replica of each, whatever they are
	c.through(t, withBFD, func() {
		began := time.Now()
		r.off(t, victim)
		r.forwards(t, 20*time.Second, firstVIP, others(r.l, victim)...)
		t.Logf("the router has left %s after %s", victim.Name(), time.Since(began).Round(time.Millisecond))
	})
	c.through(t, unnoticed, func() {
		r.on(t, victim)
		r.forwards(t, 20*time.Second, firstVIP, r.l.Nodes()...)
	})
}

// The VIPs of an instance with floating next hops lead to an address, of each family, that moves with the master: a
// failover changes no route of the router, and connections follow.
func TestFloatingNextHopMovesAlone(t *testing.T) {
	eachRouter(t, func(t *testing.T, kind routertest.Kind) {
		r := newBGPLab(t, routertest.Options{Form: routertest.Floating, BFD: someBFD}, kind)
		var hops []string
		for _, f := range lab.Families() {
			cli(t, r.node(), "vip", "create", f.NextHopVIP().String())
			hops = append(hops, "--next-hop", f.NextHopVIP().String())
		}
		cli(t, r.node(), append([]string{"instance", "update", "default"}, hops...)...)
		r.declare(t, "default", "rr")
		cli(t, r.node(), "vip", "create", lab.RoutedVIP6(0).String(), "--announce", "bgp", "--on-no-endpoint", "keep")
		for _, f := range lab.Families() {
			r.throughHop(t, f.RoutedVIP(0), f.NextHopVIP())
			r.routers[0].AwaitPaths(t, single(f.RoutedVIP(0)), "three paths by the floating next hop", func(paths []routertest.Path) bool {
				for _, p := range paths {
					if p.NextHop != f.NextHopVIP() {
						return false
					}
				}
				return len(paths) == 3
			})
		}
		conns := r.crowd(t, 50)
		waitSameFlows(t, r.l.Nodes(), 100)
		stop := r.watchRoute(t, firstVIP)
		victim := master(t, r.l, "")
		conns.through(t, withBFD, func() {
			r.off(t, victim)
			waitOnlyHolder(t, 10*time.Second, r.l, master(t, r.l, victim.Name()).Name(), lab.IPv4.NextHopVIP())
		})
		conns.through(t, unnoticed, func() {
			to := others(r.l, victim, master(t, r.l, victim.Name()))[0]
			cli(t, r.node(), "instance", "move", "default", "--to", to.Name())
			waitOnlyHolder(t, 10*time.Second, r.l, to.Name(), lab.IPv4.NextHopVIP())
		})
		r.throughHop(t, firstVIP, lab.IPv4.NextHopVIP())
		if gap := stop(); gap > 0 {
			t.Errorf("the router had no route for %s", gap)
		}
	})
}

// throughHop waits until the router's kernel sends what is for the VIP to that address.
func (r *bgpLab) throughHop(t testing.TB, vip, hop netip.Addr) {
	t.Helper()
	table, err := r.l.Routers()[0].RouteTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	eventually(t, 20*time.Second, fmt.Sprintf("%s to be reached by %s", vip, hop), func(context.Context) error {
		got, err := table.To(vip)
		if err == nil && (len(got) != 1 || got[0] != hop) {
			err = fmt.Errorf("it is reached by %v", got)
		}
		return err
	})
}
