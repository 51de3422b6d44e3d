package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
	"pontoon/internal/lab/routertest"
)

// putMany makes the routed VIPs from first on, so many, with several requests under way at a time. They are announced although
// nothing is served on them. A busy machine may change leaders meanwhile; what is then in doubt is said again.
func (r *bgpLab) putMany(t testing.TB, instance string, first, count int) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(8)
	ctx := within(t, 2*time.Minute)
	for i := range count {
		g.Go(func() error {
			vip := lab.RoutedVIP(first + i).String()
			return lab.WaitFor(ctx, "VIP "+vip, func(ctx context.Context) error {
				_, err := put(ctx, r.node(), "/v1/vips/"+vip, map[string]any{
					"address": vip, "instance": instance, "kind": "service", "announce": "bgp", "on_no_endpoint": "keep",
				})
				return err
			})
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// all waits until the kernel of each router has so many routes of the VIPs from first on to a next hop.
func (r *bgpLab) all(t testing.TB, d time.Duration, first, count int, hop netip.Addr) {
	t.Helper()
	for _, router := range r.l.Routers() {
		table, err := router.RouteTable()
		if err != nil {
			t.Fatal(err)
		}
		defer table.Close()
		eventually(t, d, fmt.Sprintf("%s to have %d routes by %s", router.Name(), count, hop), func(context.Context) error {
			routes, err := table.NextHops(lab.IPv4)
			if err != nil {
				return err
			}
			right := 0
			for i := range count {
				if hops := routes[single(lab.RoutedVIP(first+i))]; len(hops) == 1 && hops[0] == hop {
					right++
				}
			}
			if right < count {
				return fmt.Errorf("%d are right", right)
			}
			return nil
		})
	}
}

// BIRD and FRR at once, each the router of clients of its own, carry a thousand VIPs, and a node's death moves all of
// them in both.
func TestAThousandVIPsBehindTwoRouters(t *testing.T) {
	const count = 1000
	r := newBGPLab(t, routertest.Options{Form: routertest.Backup, BFD: someBFD}, routertest.BIRD, routertest.FRR)
	r.declare(t, "default", "rr")
	conns := r.crowd(t, 20)
	second := connectFrom(t, r.l.Clients()[1], netip.AddrPortFrom(firstVIP, modePorts["fullnat"]), 20)
	steady(t, second)
	conns["behind the second router"] = second
	began := time.Now()
	r.putMany(t, "default", 1, count)
	r.all(t, 60*time.Second, 1, count, master(t, r.l, "").Addr())
	t.Logf("%d VIPs were in both routers' kernels %s after they were asked for", count, time.Since(began).Round(time.Millisecond))
	waitSameFlows(t, r.l.Nodes(), 60)
	victim := master(t, r.l, "")
	conns.through(t, withoutBFD, func() {
		began := time.Now()
		r.off(t, victim)
		r.all(t, 60*time.Second, 0, count+1, master(t, r.l, victim.Name()).Addr())
		t.Logf("%d VIPs were at the next node %s after the master's death", count+1, time.Since(began).Round(time.Millisecond))
	})
}
