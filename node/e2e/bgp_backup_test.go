package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/routertest"
	"pontoon/internal/lab/traffic"
)

// The silences that connections may feel behind a router. TCP repeats what is lost after about 0.2, 0.6, 1.4, 3, 6.4, 13 and
// 27 s, so a way that comes back between two of these is felt until the later one: a silence says how long the way was gone
// only within a factor of two, and these are limits between two steps, not measurements.
const (
	// unnoticed is for what costs no way: a move, a drain, a return.
	unnoticed = 3 * time.Second
	// withBFD is for a death that BFD finds, in a few hundred milliseconds. The kernel keeps packets for a neighbour that
	// does not answer for 3 s, and a sender in the same kernel does not repeat one that is kept (see oneLinkGap). It is below
	// the hold time of 9 s, after which a death is found in any case.
	withBFD = 8 * time.Second
	// withoutBFD is for what waits for the hold time, for a daemon or for a password: the claim is that connections survive it.
	withoutBFD = 60 * time.Second
)

// plain is without BFD: on a busy test machine a router's BFD takes a node for dead now and then, and most
// of what is tested here shows only when no session ends by itself.
var plain = routertest.Options{Form: routertest.Backup}

// One cluster with one master behind a router goes through what can happen to it, under connections with checked data
// in fullnat and in dnat. BGP_STEP names one of the steps.
func TestBGPKeepsConnections(t *testing.T) {
	eachRouter(t, func(t *testing.T, kind routertest.Kind) {
		r := newBGPLab(t, plain, kind)
		r.declare(t, "default", "rr")
		r.ranked(t, lab.RoutedVIP(0))
		r.forwards(t, 10*time.Second, lab.RoutedVIP(0), master(t, r.l, ""))
		conns := r.crowd(t, 50)
		for _, step := range []struct {
			name string
			run  func(*testing.T, *bgpLab, crowd)
		}{
			{"the marks of an instance", checkMarks},
			{"a move", checkMove},
			{"a drain", checkDrain},
			{"another hold time for all", checkResets},
			{"a restart of the daemon", checkGracefulRestart},
			{"no endpoint", checkNoEndpoint},
			{"restarts of the router", checkRouterRestarts},
			{"a restart of the daemon without grace", checkRestartWithoutGrace},
			{"power loss without BFD", checkSlowPowerLoss},
			{"power loss with BFD", checkPowerLoss},
			{"the daemon's death with BFD", checkDeadDaemon},
			{"a daemon that hangs with BFD", checkHungDaemon},
			{"passwords", checkPasswords},
			{"one AS", checkOneAS},
		} {
			if only := os.Getenv("BGP_STEP"); only != "" && only != step.name {
				continue
			}
			if ok := t.Run(step.name, func(t *testing.T) { step.run(t, r, conns) }); !ok {
				return // what follows would only tell of this again
			}
		}
	})
}

var firstVIP = lab.RoutedVIP(0)

// Prepending and communities reach the router's table, and no session is reset for them.
func checkMarks(t *testing.T, r *bgpLab, _ crowd) {
	flaps := r.flaps(t)
	cli(t, r.node(), "instance", "update", "default", "--as-prepend", "--community", "65000:100", "--community", "65000:1:2")
	names, err := succession(within(t, 5*time.Second), r.node(), "default")
	if err != nil {
		t.Fatal(err)
	}
	r.routers[0].AwaitPaths(t, single(firstVIP), "paths with marks", func(paths []routertest.Path) bool {
		for _, p := range paths {
			rank := slices.IndexFunc(names, func(n string) bool { return r.l.Node(n).Addr() == p.From })
			if rank < 0 || len(strings.Fields(p.ASPath)) != 1+rank || !marked(p, "65000", "100") || !marked(p, "65000", "1", "2") {
				return false
			}
		}
		return len(paths) == len(names)
	})
	cli(t, r.node(), "instance", "update", "default", "--as-prepend=false", "--no-community")
	r.routers[0].AwaitPaths(t, single(firstVIP), "plain paths", func(paths []routertest.Path) bool {
		return len(paths) == len(names) && !slices.ContainsFunc(paths, func(p routertest.Path) bool {
			return p.Communities != "" || len(strings.Fields(p.ASPath)) != 1
		})
	})
	if now := r.flaps(t); now != flaps {
		t.Errorf("%d sessions were reset by that", now-flaps)
	}
}

// marked says whether a path has a community, however the router writes it: 65000:100, (65000,100) or (65000, 1, 2).
func marked(p routertest.Path, parts ...string) bool {
	text := strings.NewReplacer("(", " ", ")", " ", ", ", ":", ",", ":").Replace(p.Communities)
	return slices.Contains(strings.Fields(text), strings.Join(parts, ":"))
}

// Mastership moves, the router follows, and no session and no connection notices.
func checkMove(t *testing.T, r *bgpLab, c crowd) {
	flaps := r.flaps(t)
	from := master(t, r.l, "")
	to := others(r.l, from)[0]
	c.through(t, unnoticed, func() {
		began := time.Now()
		cli(t, r.node(), "instance", "move", "default", "--to", to.Name())
		r.forwards(t, 10*time.Second, firstVIP, to)
		t.Logf("the router has followed the command after %s", time.Since(began).Round(time.Millisecond))
	})
	r.ranked(t, firstVIP)
	if now := r.flaps(t); now != flaps {
		t.Errorf("%d sessions were reset by that", now-flaps)
	}
}

// A node that is drained says so to the routers (RFC 8326), then takes its routes back, and is ranked
// again when it resumes.
func checkDrain(t *testing.T, r *bgpLab, c crowd) {
	flaps := r.flaps(t)
	old := master(t, r.l, "")
	c.through(t, unnoticed, func() {
		cli(t, r.node(), "node", "drain", old.Name())
		r.routers[0].AwaitPaths(t, single(firstVIP), "a farewell or no path of "+old.Name(), func(paths []routertest.Path) bool {
			return len(paths) > 0 && paths[0].From != old.Addr() && !slices.ContainsFunc(paths, func(p routertest.Path) bool {
				return p.From == old.Addr() && !marked(p, "65535", "0")
			})
		})
		r.routers[0].AwaitPaths(t, single(firstVIP), "no path of "+old.Name(), func(paths []routertest.Path) bool {
			return len(paths) == 2 && paths[0].From != old.Addr() && paths[1].From != old.Addr()
		})
		cli(t, r.node(), "node", "resume", old.Name())
		r.ranked(t, firstVIP)
	})
	if now := r.flaps(t); now != flaps {
		t.Errorf("%d sessions were reset by that", now-flaps)
	}
}

// A change of the entry for all nodes resets the sessions of all of them at the same moment. The router keeps the routes
// meanwhile.
func checkResets(t *testing.T, r *bgpLab, c crowd) {
	flaps := r.flaps(t)
	stop := r.watchRoute(t, firstVIP)
	c.through(t, time.Second, func() {
		r.addPeer(t, 0, "--hold", "6s")
		r.established(t)
		eventually(t, 20*time.Second, "the new hold time everywhere", func(ctx context.Context) error {
			for _, n := range r.l.Nodes() {
				out, err := n.CLI(ctx, "bgp", "peer", "list", "-o", "json")
				if err != nil {
					return err
				}
				if !strings.Contains(out, `"hold_s": 6`) {
					return fmt.Errorf("%s: %s", n.Name(), out)
				}
			}
			return nil
		})
		r.ranked(t, firstVIP)
	})
	if gap := stop(); gap > 0 {
		t.Errorf("the router had no route for %s", gap)
	}
	t.Logf("%d sessions were lost by that", r.flaps(t)-flaps)
	stop = r.watchRoute(t, firstVIP)
	r.addPeer(t, 0, "--hold", "9s")
	r.established(t)
	r.ranked(t, firstVIP)
	if gap := stop(); gap > 0 {
		t.Errorf("the router had no route for %s", gap)
	}
}

// watchRoute looks at the first router's kernel until stop is called, and says whether the VIP always
// had a next hop.
func (r *bgpLab) watchRoute(t testing.TB, vip netip.Addr) (stop func() (gap time.Duration)) {
	t.Helper()
	table, err := r.l.Routers()[0].RouteTable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan time.Duration)
	background(t, "route watch", func(context.Context) error {
		defer table.Close()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		var gap, since time.Duration
		for began := time.Now(); ; {
			hops, err := table.To(vip)
			switch now := time.Since(began); {
			case err != nil || len(hops) > 0:
				since = now
			default:
				gap = max(gap, now-since)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				done <- gap
				return nil
			}
		}
	})
	return func() time.Duration { cancel(); return <-done }
}

// restartDaemon stops a node's daemon in order, starts it again after pause, and waits until the cluster is whole.
func (r *bgpLab) restartDaemon(t testing.TB, n *lab.Node, pause time.Duration) {
	t.Helper()
	began := time.Now()
	so := func() time.Duration { return time.Since(began).Round(10 * time.Millisecond) }
	if err := n.Terminate(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	stopped := so()
	pass(t, pause)
	if err := n.Start(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitUp(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	up := so()
	waitHealthy(t, r.l)
	healthy := so()
	r.established(t)
	t.Logf("the daemon of %s had stopped after %s, answered after %s, the nodes were healthy after %s and had their sessions after %s",
		n.Name(), stopped, up, healthy, so())
}

// The only node that announces is restarted: the router keeps its route (RFC 4724), and nobody notices.
func checkGracefulRestart(t *testing.T, r *bgpLab, c crowd) {
	cli(t, r.node(), "instance", "update", "default", "--announce-policy", "master-only")
	only := master(t, r.l, "")
	r.routers[0].AwaitPaths(t, single(firstVIP), "one path", func(p []routertest.Path) bool { return len(p) == 1 && p[0].From == only.Addr() })
	stop := r.watchRoute(t, firstVIP)
	c.through(t, time.Second, func() {
		r.restartDaemon(t, only, 2*time.Second)
	})
	if gap := stop(); gap > 0 {
		t.Errorf("the router had no route for %s", gap)
	}
	if now := master(t, r.l, ""); now != only {
		t.Errorf("%s is master now", now.Name())
	}
	cli(t, r.node(), "instance", "update", "default", "--announce-policy", "ranked")
	r.ranked(t, firstVIP)
}

// The same without graceful restart on either side: connections stand still until the daemon is back.
func checkRestartWithoutGrace(t *testing.T, r *bgpLab, c crowd) {
	r.change(t, 0, routertest.Options{Form: routertest.Backup, NoGracefulRestart: true})
	cli(t, r.node(), "instance", "update", "default", "--announce-policy", "master-only")
	only := master(t, r.l, "")
	r.routers[0].AwaitPaths(t, single(firstVIP), "one path", func(p []routertest.Path) bool { return len(p) == 1 && p[0].From == only.Addr() })
	stop := r.watchRoute(t, firstVIP)
	felt := c.through(t, withoutBFD, func() {
		r.restartDaemon(t, only, time.Second)
		r.forwards(t, 20*time.Second, firstVIP, only)
	})
	gap := stop()
	t.Logf("the router was without a route for %s", gap.Round(time.Millisecond))
	if gap < time.Second/2 {
		t.Errorf("the router was without a route for %s only: the graceful twin proves nothing", gap)
	}
	for mode, silence := range felt {
		if silence < time.Second {
			t.Errorf("%s stood still for %s only: the graceful twin proves nothing", mode, silence)
		}
	}
	cli(t, r.node(), "instance", "update", "default", "--announce-policy", "ranked")
	r.change(t, 0, plain)
	r.ranked(t, firstVIP)
}

// The master dies. By BFD the router leaves it for the next of the succession before anybody is elected.
func checkPowerLoss(t *testing.T, r *bgpLab, c crowd) {
	r.change(t, 0, routertest.Options{Form: routertest.Backup, BFD: someBFD})
	r.ranked(t, firstVIP)
	waitSameFlows(t, r.l.Nodes(), 100)
	r.loseMaster(t, c, withBFD)
	r.change(t, 0, plain)
}

func (r *bgpLab) loseMaster(t *testing.T, c crowd, gap time.Duration) {
	t.Helper()
	victim := master(t, r.l, "")
	order, err := succession(within(t, 5*time.Second), victim, "default")
	if err != nil || len(order) < 2 {
		t.Fatal(order, err)
	}
	next := r.l.Node(order[1])
	c.through(t, gap, func() {
		began := time.Now()
		r.off(t, victim)
		r.forwards(t, gap, firstVIP, next)
		t.Logf("the router sends to %s, %s after %s's death", next.Name(), time.Since(began).Round(time.Millisecond), victim.Name())
		if now := master(t, r.l, victim.Name()); now != next {
			t.Errorf("the router was told that %s is next, and %s is master", next.Name(), now.Name())
		}
	})
	r.ranked(t, firstVIP)
	c.through(t, unnoticed, func() { r.on(t, victim) })
	r.ranked(t, firstVIP)
}

// Without BFD the death shows when the hold time is over.
func checkSlowPowerLoss(t *testing.T, r *bgpLab, c crowd) {
	waitSameFlows(t, r.l.Nodes(), 100)
	r.loseMaster(t, c, withoutBFD)
}

// The master's daemon dies, and its machine goes on forwarding. BFD has the router leave it, and the endpoints' answers go on
// arriving there, until the grace of a daemon is over: new connections are opened through the next node all the
// same, and no established one is lost.
//
// FRR stays: it sees the connection end before BFD does, and takes that for a restart; the routes it keeps then are
// not BFD's any more.
func checkDeadDaemon(t *testing.T, r *bgpLab, c crowd) {
	r.loseDaemon(t, c, r.routers[0].Kind() != routertest.FRR, func(n *lab.Node) {
		if err := n.Kill(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
	}, func(n *lab.Node) {
		if err := n.Start(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := n.WaitUp(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
	})
}

// The same with one that stands still, and comes to itself.
func checkHungDaemon(t *testing.T, r *bgpLab, c crowd) {
	signal := func(what func() error) {
		if err := what(); err != nil {
			t.Fatal(err)
		}
	}
	r.loseDaemon(t, c, true, func(n *lab.Node) { signal(n.Pause) }, func(n *lab.Node) { signal(n.Resume) })
}

// loseDaemon takes the master's daemon away and gives it back before anybody is elected in its place. moves says that the
// router is to turn to the next node meanwhile.
func (r *bgpLab) loseDaemon(t *testing.T, c crowd, moves bool, off, on func(*lab.Node)) {
	t.Helper()
	r.change(t, 0, routertest.Options{Form: routertest.Backup, BFD: someBFD})
	r.ranked(t, firstVIP)
	waitSameFlows(t, r.l.Nodes(), 100)
	victim := master(t, r.l, "")
	order, err := succession(within(t, 5*time.Second), victim, "default")
	if err != nil || len(order) < 2 {
		t.Fatal(order, err)
	}
	next := r.l.Node(order[1])
	late := stalls(t)
	probers := map[string]*traffic.Prober{}
	for mode, port := range modePorts {
		p, err := traffic.NewProber(traffic.ProberConfig{
			Dial: r.l.Clients()[0].Dial, Target: netip.AddrPortFrom(firstVIP, port), Interval: 20 * time.Millisecond, Timeout: 3 * time.Second,
		})
		if err != nil {
			t.Fatal(err)
		}
		background(t, "prober of "+mode, p.Run)
		if err := p.Succeeding(within(t, 10*time.Second), 5); err != nil {
			t.Fatal(err)
		}
		p.Window()
		probers[mode] = p
	}
	c.through(t, withBFD, func() {
		off(victim)
		if moves {
			r.forwards(t, 3*time.Second, firstVIP, next)
		}
		pass(t, 3*time.Second)
	})
	for mode, p := range probers {
		res := p.Result()
		t.Logf("%s: %d new connections, %d failed; none for %s at most", mode, res.OK+res.Failed, res.Failed, res.Outage.Round(time.Millisecond))
		if res.Failed > 0 || res.Outage > time.Second+late() {
			t.Errorf("%s: new connections had to wait for %s, %d failed: %s", mode, res.Outage, res.Failed, res.LastError)
		}
	}
	if now, err := succession(within(t, 5*time.Second), next, "default"); err != nil || now[0] != victim.Name() {
		t.Errorf("%v follow each other by now: the test has shown nothing: %v", now, err)
	}
	c.through(t, withBFD, func() {
		on(victim)
		r.whole(t)
		r.ranked(t, firstVIP)
	})
	r.change(t, 0, plain)
}

// A VIP that has nobody to send new flows to is withdrawn, unless it is to be kept, and comes back.
func checkNoEndpoint(t *testing.T, r *bgpLab, _ crowd) {
	gone, kept := lab.RoutedVIP(1), lab.RoutedVIP(2)
	cli(t, r.node(), "vip", "create", gone.String(), "--announce", "bgp")
	cli(t, r.node(), "vip", "create", kept.String(), "--announce", "bgp", "--on-no-endpoint", "keep")
	r.service(t, "gone", netip.AddrPortFrom(gone, 80), "fullnat", "rr")
	r.service(t, "kept", netip.AddrPortFrom(kept, 80), "fullnat", "rr")
	r.ranked(t, gone)
	r.ranked(t, kept)
	each := func(what string) {
		for _, service := range []string{"gone", "kept"} {
			for _, ep := range r.l.Endpoints() {
				cli(t, r.node(), "endpoint", what, service, endpointAt(ep, webPort))
			}
		}
	}
	each("drain")
	r.routers[0].AwaitPaths(t, single(gone), "no path", func(p []routertest.Path) bool { return len(p) == 0 })
	r.ranked(t, kept)
	each("resume")
	r.ranked(t, gone)
	for _, name := range []string{"gone", "kept"} {
		cli(t, r.node(), "service", "delete", name)
	}
	cli(t, r.node(), "vip", "delete", gone.String())
	cli(t, r.node(), "vip", "delete", kept.String())
	r.routers[0].AwaitPaths(t, single(kept), "no path", func(p []routertest.Path) bool { return len(p) == 0 })
}

// The router's software dies again and again and comes back: sessions and routes return, mastership rests, and the connections
// go on.
func checkRouterRestarts(t *testing.T, r *bgpLab, c crowd) {
	const times = 3
	before, flaps := epoch(t, r.node()), r.flaps(t)
	c.through(t, withoutBFD, func() {
		for range times {
			r.routers[0].Kill(t)
			r.routers[0].Restart(t)
			r.established(t)
			r.ranked(t, firstVIP)
		}
	})
	if now := r.flaps(t); now < flaps+times*len(r.l.Nodes()) {
		t.Errorf("the nodes tell of %d flaps, want %d", now-flaps, times*len(r.l.Nodes()))
	}
	if now := epoch(t, r.node()); now != before {
		t.Errorf("mastership was decided again: epoch %d, then %d", before, now)
	}
}

// A password that only one side has shows, in words, and the session comes up when both have it.
func checkPasswords(t *testing.T, r *bgpLab, c crowd) {
	o := routertest.Options{Form: routertest.Backup, Password: "secret-of-two"}
	router := r.l.Routers()[0].CoreAddr(lab.IPv4).String()
	c.through(t, withoutBFD, func() {
		r.routers[0].Change(t, o)
		for _, n := range r.l.Nodes() {
			eventually(t, 30*time.Second, n.Name()+" to say that something is wrong with the password", func(ctx context.Context) error {
				out, err := n.CLI(ctx, "bgp", "peer", "list")
				if err == nil && (!strings.Contains(out, "password") || !strings.Contains(out, router)) {
					err = errors.New(out)
				}
				return err
			})
		}
		r.options[0] = o
		r.addPeer(t, 0)
		r.established(t)
		r.ranked(t, firstVIP)
	})
	if out := cli(t, r.node(), "bgp", "peer", "list", "-o", "json"); strings.Contains(out, o.Password) {
		t.Errorf("the password is shown:\n%s", out)
	}
	r.change(t, 0, plain)
}

// In one AS the router prefers by local preference, which follows the ranks as well.
func checkOneAS(t *testing.T, r *bgpLab, _ crowd) {
	r.change(t, 0, routertest.Options{Form: routertest.Backup, IBGP: true})
	names, err := succession(within(t, 5*time.Second), r.node(), "default")
	if err != nil {
		t.Fatal(err)
	}
	r.routers[0].AwaitPaths(t, single(firstVIP), fmt.Sprintf("local preferences by the ranks of %v", names), func(paths []routertest.Path) bool {
		for _, p := range paths {
			rank := slices.IndexFunc(names, func(n string) bool { return r.l.Node(n).Addr() == p.From })
			if rank < 0 || p.LocalPref != uint32(200-10*rank) || p.ASPath != "" || p.Best != (rank == 0) {
				return false
			}
		}
		return len(paths) == len(names)
	})
	r.forwards(t, 10*time.Second, firstVIP, r.l.Node(names[0]))
	r.change(t, 0, plain)
}
