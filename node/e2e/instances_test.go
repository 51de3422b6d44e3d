package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"pontoon/internal/lab"
)

// spreadInstance is one of the instances of the test: a VIP with a service, and what
// brings the endpoint's answers back to the instance's master: a gateway of its own,
// or a source address of its own.
type spreadInstance struct {
	name, vip, mode, kind, inner string
	endpoint                     int
}

func spreadInstances() []spreadInstance {
	out := []spreadInstance{
		{name: "i1", vip: "192.168.80.201", mode: "dnat", kind: "gateway", inner: lab.GatewayVIP().String(), endpoint: 0},
		{name: "i2", vip: "192.168.80.202", mode: "dnat", kind: "gateway", inner: "10.2.0.2", endpoint: 1},
	}
	for i := 3; i <= 6; i++ {
		out = append(out, spreadInstance{
			name: fmt.Sprintf("i%d", i), vip: fmt.Sprintf("192.168.80.20%d", i), mode: "fullnat", kind: "snat",
			inner: fmt.Sprintf("10.2.0.20%d", i), endpoint: 2,
		})
	}
	return out
}

func (i spreadInstance) addresses() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(i.vip), netip.MustParseAddr(i.inner)}
}

// routeBy gives a host another default route.
func routeBy(t testing.TB, h *lab.Host, gateway string) {
	t.Helper()
	err := h.Do(func() error {
		return netlink.RouteReplace(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: net.ParseIP(gateway)})
	})
	if err != nil {
		t.Fatalf("route of %s: %v", h.Name(), err)
	}
}

// tenure is who is master of an instance, and since which epoch.
type tenure struct {
	Master string
	Epoch  uint64
}

func tenures(t testing.TB, n *lab.Node) map[string]tenure {
	t.Helper()
	out := map[string]tenure{}
	for _, in := range status(t, n).Instances {
		out[in.Name] = tenure{in.Master, in.Epoch}
	}
	delete(out, "default") // it has nothing, and moves as it likes
	return out
}

// another is a node that is not the one named.
func another(l *lab.Lab, not string) *lab.Node {
	for _, n := range l.Nodes() {
		if n.Name() != not {
			return n
		}
	}
	return nil
}

// even holds that no node is master of more than the six instances allow.
func even(t testing.TB, l *lab.Lab, when string) {
	t.Helper()
	count := map[string]int{}
	for _, in := range tenures(t, l.Nodes()[0]) {
		count[in.Master]++
	}
	for _, n := range l.Nodes() {
		if count[n.Name()] != 2 {
			t.Errorf("%s: masters %v, want two for each node", when, count)
			return
		}
	}
}

func TestADeadNodeMovesItsOwnInstancesOnly(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 3})
	serve(t, l)
	routeBy(t, l.Endpoints()[1], "10.2.0.2")
	instances := spreadInstances()
	for k, in := range instances {
		n := l.Nodes()[k%len(l.Nodes())]
		cli(t, n, "instance", "create", in.name)
		cli(t, n, "vip", "create", in.vip, "--instance", in.name)
		cli(t, n, "vip", "create", in.inner, "--instance", in.name, "--kind", in.kind)
		cli(t, n, "service", "create", "s"+in.name, "--vip", in.vip, "--port", "80", "--mode", in.mode,
			"--endpoint", netip.AddrPortFrom(l.Endpoints()[in.endpoint].Addr(), webPort).String())
	}
	waitApplied(t, l)
	even(t, l, "after their creation")
	c := crowd{}
	for _, in := range instances {
		c[in.name] = connectFrom(t, l.Clients()[0], netip.AddrPortFrom(netip.MustParseAddr(in.vip), 80), 10)
	}
	for _, victim := range l.Nodes() {
		t.Run(victim.Name()+" dies and comes back", func(t *testing.T) { loseOne(t, l, instances, c, victim) })
		if t.Failed() {
			return
		}
	}
}

// loseOne takes a node's power and gives it back.
func loseOne(t *testing.T, l *lab.Lab, instances []spreadInstance, c crowd, victim *lab.Node) {
	t.Helper()
	even(t, l, "before")
	before, asked := tenures(t, another(l, victim.Name())), another(l, victim.Name())
	waitSameFlows(t, l.Nodes(), 10*len(instances))
	c.through(t, failoverGap, func() {
		if err := victim.PowerOff(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "the instances of "+victim.Name()+" to move", func(ctx context.Context) error {
			s, err := asked.Status(ctx)
			if err != nil {
				return err
			}
			for _, in := range instances {
				if m := s.Master(in.name); m == victim.Name() || m == "" {
					return fmt.Errorf("%s has master %q", in.name, m)
				}
			}
			return nil
		})
	})
	after := tenures(t, asked)
	for name, was := range before {
		if is := after[name]; was.Master != victim.Name() && is != was {
			t.Errorf("%s was of %+v, and is of %+v: %s died, not its master", name, was, is, victim.Name())
		}
	}
	holdEach(t, l, instances, after)
	comeBack(t, l, instances, c, victim, after)
}

// comeBack gives a node its power back: nothing moves by that. Then everything is
// spread anew.
func comeBack(t *testing.T, l *lab.Lab, instances []spreadInstance, c crowd, victim *lab.Node, after map[string]tenure) {
	t.Helper()
	c.through(t, failoverGap, func() {
		if err := victim.PowerOn(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		waitHealthy(t, l)
	})
	for name, is := range tenures(t, l.Nodes()[0]) {
		if is != after[name] {
			t.Errorf("%s moved from %+v to %+v because %s came back", name, after[name], is, victim.Name())
		}
	}
	waitSameFlows(t, l.Nodes(), 10*len(instances))
	c.through(t, failoverGap, func() {
		t.Log(cli(t, l.Nodes()[0], "instance", "rebalance"))
		waitApplied(t, l)
	})
	even(t, l, "after the rebalance")
	holdEach(t, l, instances, tenures(t, l.Nodes()[0]))
}

// holdEach holds that each instance's addresses, gateways too, are with its master
// and with nobody else.
func holdEach(t *testing.T, l *lab.Lab, instances []spreadInstance, masters map[string]tenure) {
	t.Helper()
	for _, in := range instances {
		waitOnlyHolder(t, releaseTime+failoverGap, l, masters[in.name].Master, in.addresses()...)
	}
}
