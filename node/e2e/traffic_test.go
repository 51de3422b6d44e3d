package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
	"pontoon/internal/lab/traffic"
)

// webPort is where the endpoints of the test service listen.
const webPort = 8080

// background runs f until the test ends.
func background(t testing.TB, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return f(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	})
}

// serve runs a checking server in each endpoint.
func serve(t testing.TB, l *lab.Lab) []*traffic.Server {
	t.Helper()
	var out []*traffic.Server
	for _, ep := range l.Endpoints() {
		s, err := traffic.NewServer(traffic.ServerConfig{Name: ep.Name()})
		if err != nil {
			t.Fatal(err)
		}
		ln, err := ep.Listen(netip.AddrPortFrom(ep.Addr(), webPort))
		if err != nil {
			t.Fatal(err)
		}
		background(t, "server on "+ep.Name(), func(ctx context.Context) error { return s.Serve(ctx, ln) })
		out = append(out, s)
	}
	return out
}

// declare makes the VIPs and a service called web in the given mode.
func declare(t testing.TB, l *lab.Lab, mode string, gateway bool) {
	t.Helper()
	n := l.Nodes()[0]
	cli(t, n, "vip", "create", lab.ServiceVIP().String())
	if gateway {
		cli(t, n, "vip", "create", lab.GatewayVIP().String(), "--kind", "gateway")
	}
	args := []string{
		"service", "create", "web", "--vip", lab.ServiceVIP().String(), "--port", "80",
		"--protocol", "tcp", "--mode", mode, "--algorithm", "rr",
	}
	for _, ep := range l.Endpoints() {
		args = append(args, "--endpoint", netip.AddrPortFrom(ep.Addr(), webPort).String())
	}
	cli(t, n, args...)
	waitApplied(t, l)
}

// waitApplied waits until every node's drivers have done what the first node
// knows to be committed now. A change is answered when it is committed; until
// the master has carried it out a new service still refuses.
func waitApplied(t testing.TB, l *lab.Lab) {
	t.Helper()
	want := status(t, l.Nodes()[0]).Cluster.Applied
	for _, n := range l.Nodes() {
		if !n.Powered() {
			continue
		}
		eventually(t, 10*time.Second, fmt.Sprintf("%s to carry out %d", n.Name(), want), func(ctx context.Context) error {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			if me, _ := s.Node(n.Name()); me.Applied < want {
				return fmt.Errorf("it is at %d", me.Applied)
			}
			return nil
		})
	}
}

var webVIP = netip.AddrPortFrom(lab.ServiceVIP(), 80)

// connect opens long-lived connections through the service.
func connect(t testing.TB, l *lab.Lab, count int) *traffic.Clients {
	t.Helper()
	c, err := traffic.NewClients(traffic.ClientsConfig{Dial: l.Clients()[0].Dial, Target: webVIP, Count: count})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Open(within(t, 60*time.Second)); err != nil {
		t.Fatal(err)
	}
	background(t, "clients", c.Run)
	return c
}

// master asks the nodes that run who is master of the default instance.
func master(t testing.TB, l *lab.Lab, not string) *lab.Node {
	t.Helper()
	var found *lab.Node
	err := lab.WaitFor(within(t, 30*time.Second), "a master other than "+not, func(ctx context.Context) error {
		for _, n := range l.Nodes() {
			if n.Name() == not || !n.Powered() {
				continue
			}
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			m := s.Master("default")
			if m == "" || m == not {
				return errors.New(n.Name() + " still names " + m)
			}
			found = l.Node(m)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestConnectionsSurviveTheMastersPowerLoss(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		topology lab.Topology
		mode     string
	}{
		{"fullnat in one subnet", lab.OneLeg, "fullnat"},
		{"fullnat across two subnets", lab.TwoLeg, "fullnat"},
		{"dnat across two subnets", lab.TwoLeg, "dnat"},
		{"onearm across two subnets", lab.TwoLeg, "onearm"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newCluster(t, lab.Config{Topology: tc.topology, Nodes: 3, Clients: 1, Endpoints: 2})
			serve(t, l)
			declare(t, l, tc.mode, tc.topology == lab.TwoLeg)
			clients := connect(t, l, 100)
			steady(t, clients)
			vips := []netip.Addr{lab.ServiceVIP()}
			if tc.topology == lab.TwoLeg {
				vips = append(vips, lab.GatewayVIP())
			}
			victim := master(t, l, "")
			late := stalls(t)
			w := clients.Window()
			if err := victim.PowerOff(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			next := takenOver(t, l, w, victim, failoverGap, late)
			waitOnlyHolder(t, releaseTime, l, next.Name(), vips...)
			adopted := status(t, next).Flows.Adopted
			t.Logf("%s died, %s follows and has adopted %d flows", victim.Name(), next.Name(), adopted)
			if adopted < 100 {
				t.Errorf("only %d flows count as adopted, want 100", adopted)
			}
		})
	}
}
