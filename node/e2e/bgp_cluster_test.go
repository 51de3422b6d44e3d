package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/routertest"
	"pontoon/internal/lab/traffic"
)

// bgpLab is a cluster behind routers of other people.
type bgpLab struct {
	l       *lab.Lab
	routers []*routertest.Daemon
	options []routertest.Options
}

// someBFD is the distance of BFD packets here; 50 ms are documented, and more than a busy test machine bears.
const someBFD = 100 * time.Millisecond

// newBGPLab forms a cluster of three behind routers of these kinds, r1 and r2, that have a
// session with each node.
func newBGPLab(t testing.TB, o routertest.Options, kinds ...routertest.Kind) *bgpLab {
	t.Helper()
	l := newCluster(t, lab.Config{
		Topology: lab.Routed, Nodes: 3, Clients: len(kinds), Endpoints: 2, Routers: len(kinds), NodeArgs: longGrace(),
	})
	r := &bgpLab{l: l}
	for i, kind := range kinds {
		r.routers = append(r.routers, routertest.Start(t, kind, l.Routers()[i], len(l.Nodes()), o))
		r.options = append(r.options, o)
		r.addPeer(t, i)
	}
	r.established(t)
	return r
}

// addPeer tells the cluster of router i, or what has changed about it.
func (r *bgpLab) addPeer(t testing.TB, i int, more ...string) {
	t.Helper()
	o := r.options[i]
	as := lab.RouterAS
	if o.IBGP {
		as = lab.NodeAS
	}
	args := []string{"bgp", "peer", "add", r.l.Routers()[i].CoreAddr(lab.IPv4).String(), "--as", fmt.Sprint(as), fmt.Sprintf("--bfd=%v", o.BFD > 0)}
	if o.BFD > 0 {
		args = append(args, "--bfd-interval", o.BFD.String())
	}
	if o.Password != "" {
		args = append(args, "--password", o.Password)
	}
	if o.NoGracefulRestart {
		args = append(args, "--no-graceful-restart")
	}
	cli(t, r.node(), append(args, more...)...)
}

// change sets router i up anew, on both sides.
func (r *bgpLab) change(t testing.TB, i int, o routertest.Options) {
	t.Helper()
	cli(t, r.node(), "bgp", "peer", "remove", r.l.Routers()[i].CoreAddr(lab.IPv4).String())
	r.options[i] = o
	r.routers[i].Change(t, o)
	r.addPeer(t, i)
	r.established(t)
}

// node is one that runs.
func (r *bgpLab) node() *lab.Node {
	for _, n := range r.l.Nodes() {
		if n.Powered() {
			return n
		}
	}
	return nil
}

// established waits until every running node and every router say that all sessions are up.
func (r *bgpLab) established(t testing.TB) {
	t.Helper()
	var addrs []netip.Addr
	for _, n := range r.l.Nodes() {
		if !n.Powered() {
			continue
		}
		addrs = append(addrs, n.Addr())
		eventually(t, 30*time.Second, n.Name()+" to have its BGP sessions", func(ctx context.Context) error {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			return s.CheckBGP(len(r.routers))
		})
	}
	for _, d := range r.routers {
		d.AwaitEstablished(t, addrs...)
	}
}

// flaps is how often sessions of the nodes have ended so far.
func (r *bgpLab) flaps(t testing.TB) int {
	t.Helper()
	n := 0
	for _, node := range r.l.Nodes() {
		for _, p := range status(t, node).BGP {
			n += p.Flaps
		}
	}
	return n
}

// succession is who serves an instance, the master first, as a node knows it.
func succession(ctx context.Context, n *lab.Node, instance string) ([]string, error) {
	var st struct {
		Instances []struct {
			Name       string   `json:"name"`
			Succession []string `json:"succession"`
		} `json:"instances"`
	}
	if err := get(ctx, n, "/v1/status", &st); err != nil {
		return nil, err
	}
	for _, in := range st.Instances {
		if in.Name == instance {
			return in.Succession, nil
		}
	}
	return nil, errors.New("there is no instance " + instance)
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// checkRanked compares a router's ways to a VIP with the committed succession: all of them, the
// better the earlier.
func (r *bgpLab) checkRanked(ctx context.Context, d *routertest.Daemon, vip netip.Addr) error {
	want, err := succession(ctx, r.node(), "default")
	if err != nil {
		return err
	}
	paths, err := d.Paths(ctx, single(vip))
	if err != nil {
		return err
	}
	if len(paths) != len(want) || len(paths) == 0 {
		return fmt.Errorf("succession %v, paths %+v", want, paths)
	}
	for rank, name := range want {
		i := slices.IndexFunc(paths, func(p routertest.Path) bool { return p.From == r.l.Node(name).Addr() })
		// A master's is lower by one for each node without a place.
		if i < 0 || paths[i].MED > 10<<rank || rank > 0 && paths[i].MED != 10<<rank || paths[i].Best != (rank == 0) {
			return fmt.Errorf("succession %v: %s is to have MED %d: %+v", want, name, 10<<rank, paths)
		}
	}
	return nil
}

// ranked waits until every router's ways to the VIP are ranked as committed.
func (r *bgpLab) ranked(t testing.TB, vip netip.Addr) {
	t.Helper()
	for _, d := range r.routers {
		eventually(t, 20*time.Second, string(d.Kind())+" to have ranked paths", func(ctx context.Context) error {
			return r.checkRanked(ctx, d, vip)
		})
	}
}

// forwards waits until the kernel of each router sends what is for the VIP to exactly these nodes.
func (r *bgpLab) forwards(t testing.TB, d time.Duration, vip netip.Addr, to ...*lab.Node) {
	t.Helper()
	var want []netip.Addr
	for _, n := range to {
		if vip.Is6() {
			want = append(want, n.Addr6())
		} else {
			want = append(want, n.Addr())
		}
	}
	slices.SortFunc(want, netip.Addr.Compare)
	for _, router := range r.l.Routers() {
		eventually(t, d, fmt.Sprintf("%s to send %s to %v", router.Name(), vip, want), func(context.Context) error {
			table, err := router.RouteTable()
			if err != nil {
				return err
			}
			defer table.Close()
			got, err := table.To(vip)
			if err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("it goes to %v", got)
			}
			return err
		})
	}
}

// modePorts are the services on the first VIP of a routed cluster, by mode.
var modePorts = map[string]uint16{"fullnat": 80, "dnat": 81}

// declareRouted makes the VIPs and on the first routed one a service in each mode. The instance with the
// services is "default" or one of its own; the endpoints' gateway is always the default's.
func (r *bgpLab) declare(t testing.TB, instance, algorithm string) {
	t.Helper()
	serve(t, r.l)
	n := r.node()
	cli(t, n, "vip", "create", lab.RoutedVIP(0).String(), "--announce", "bgp", "--instance", instance)
	cli(t, n, "vip", "create", lab.GatewayVIP().String(), "--kind", "gateway")
	for mode, port := range modePorts {
		r.service(t, "web-"+mode, netip.AddrPortFrom(lab.RoutedVIP(0), port), mode, algorithm)
	}
	waitApplied(t, r.l)
}

func (r *bgpLab) service(t testing.TB, name string, at netip.AddrPort, mode, algorithm string) {
	t.Helper()
	args := []string{
		"service", "create", name, "--vip", at.Addr().String(), "--port", fmt.Sprint(at.Port()), "--protocol", "tcp",
		"--mode", mode, "--algorithm", algorithm,
	}
	for _, ep := range r.l.Endpoints() {
		args = append(args, "--endpoint", endpointAt(ep, webPort))
	}
	cli(t, r.node(), args...)
}

// crowd is connections through the services of every mode.
type crowd map[string]*traffic.Clients

// crowd opens so many connections in each mode from the first client.
func (r *bgpLab) crowd(t testing.TB, each int) crowd {
	t.Helper()
	c := crowd{}
	for mode, port := range modePorts {
		c[mode] = connectFrom(t, r.l.Clients()[0], netip.AddrPortFrom(lab.RoutedVIP(0), port), each)
	}
	for _, clients := range c {
		steady(t, clients)
	}
	return c
}

func connectFrom(t testing.TB, from *lab.Host, to netip.AddrPort, count int) *traffic.Clients {
	t.Helper()
	c, err := traffic.NewClients(traffic.ClientsConfig{Dial: from.Dial, Target: to, Count: count})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Open(within(t, 60*time.Second)); err != nil {
		t.Fatalf("to %s: %v", to, err)
	}
	background(t, "clients", c.Run)
	return c
}

// through checks that nothing is lost while something happens, and that no connection stands still for
// longer than gap. It returns the longest silence of each mode.
func (c crowd) through(t testing.TB, gap time.Duration, what func()) map[string]time.Duration {
	t.Helper()
	c.flows(t)
	late := stalls(t)
	windows := map[string]*traffic.Window{}
	for mode, clients := range c {
		windows[mode] = clients.Window()
	}
	what()
	felt := map[string]time.Duration{}
	for mode, w := range windows {
		w.Mark()
		if err := w.Wait(within(t, withoutBFD)); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
		res := w.Result()
		felt[mode] = res.Blackout
		t.Logf("%s: %d of %d survived, longest silence %s (p50 %s); this process was late by %s", mode, res.Survived, res.Connections,
			res.Blackout.Round(time.Millisecond), res.P50.Round(time.Millisecond), late().Round(time.Millisecond))
		if res.Survived != res.Connections {
			t.Errorf("%s: %d of %d connections survived: %v", mode, res.Survived, res.Connections, res.Errors)
		}
		if res.Blackout > gap+late() {
			t.Errorf("%s: a connection stood still for %s, want below %s", mode, res.Blackout, gap)
		}
	}
	return felt
}

// flows waits until every connection has an answer anew: after a longer silence TCP repeats what was lost
// only every few seconds, and that would count for what comes next.
func (c crowd) flows(t testing.TB) {
	t.Helper()
	for mode, clients := range c {
		w := clients.Window()
		w.Mark()
		if err := w.Wait(within(t, withoutBFD)); err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
	}
}

// off takes a node's power.
func (r *bgpLab) off(t testing.TB, n *lab.Node) {
	t.Helper()
	if err := n.PowerOff(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// on gives it back and waits until all is as it was.
func (r *bgpLab) on(t testing.TB, n *lab.Node) {
	t.Helper()
	if err := n.PowerOn(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	r.whole(t)
}

// whole waits until every node is healthy and has its sessions.
func (r *bgpLab) whole(t testing.TB) {
	t.Helper()
	waitHealthy(t, r.l)
	r.established(t)
}

// eachRouter runs a test behind every kind of router, beside each other, since most of it is waiting; BGP_ROUTERS names
// one.
func eachRouter(t *testing.T, run func(t *testing.T, kind routertest.Kind)) {
	for _, kind := range routertest.Kinds() {
		if only := os.Getenv("BGP_ROUTERS"); only != "" && only != string(kind) {
			continue
		}
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			run(t, kind)
		})
	}
}
