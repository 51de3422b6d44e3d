package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// The endpoints of the test below. All three nodes probe them, two at a fifth of the rate.
const (
	stormServices = 2
	stormInterval = 4 * time.Second
	stormAll      = stormServices * loadEach
	stormUsual    = float64(stormAll) * (1 + 2*0.2) / float64(stormInterval/time.Second) // probes a second
)

// A daemon that is started again, and a node that takes over, have not heard of any endpoint for a while, and ask them in
// turn all the same: the endpoints never get half of all probes at once. And nobody is called dead for it.
func TestRestartsAndTakeOversMakeNoStormOfProbes(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 3, Endpoints: 1})
	ep := l.Endpoints()[0]
	routeLoad(t, ep, l.Nodes()...)
	cli(t, l.Nodes()[0], "vip", "create", lab.ServiceVIP().String())
	var count atomic.Int64
	for i := range stormServices {
		answerProbes(t, ep, loadPort+uint16(i), &count)
		args := []string{
			"service", "create", fmt.Sprintf("load%d", i), "--vip", lab.ServiceVIP().String(), "--port", fmt.Sprint(1000 + i),
			"--mode", "fullnat", "--probe", "tcp", "--probe-interval", stormInterval.String(), "--probe-timeout", "3s",
		}
		addr := loadNet.Addr()
		for range loadEach {
			addr = addr.Next()
			args = append(args, "--endpoint", netip.AddrPortFrom(addr, loadPort+uint16(i)).String())
		}
		cli(t, l.Nodes()[0], args...)
	}
	eventually(t, 30*time.Second, "all endpoints to be up", func(ctx context.Context) error { return stormCheck(ctx, l.Nodes()[0]) })
	old := master(t, l, "")
	for _, tc := range []struct {
		name string
		f    func(*testing.T)
	}{
		{"the daemon of the prober is killed and started again", func(t *testing.T) {
			if err := old.Kill(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			if err := old.Start(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
		}},
		{"another node takes over", func(t *testing.T) {
			waitHealthy(t, l)
			now := master(t, l, "")
			cli(t, now, "instance", "move", "default", "--to", others(l, now)[0].Name())
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.f(t)
			noStorm(t, &count)
		})
	}
	eventually(t, 10*time.Second, "all endpoints to be known as up", func(ctx context.Context) error {
		for _, n := range l.Nodes() {
			if err := stormCheck(ctx, n); err != nil {
				return err
			}
			list, err := events(ctx, n)
			if err != nil {
				return err
			}
			for _, e := range list {
				if e.Kind == "health" && strings.Contains(e.Text, "down") {
					t.Fatalf("%s tells: %s", n.Name(), e.Text)
				}
			}
		}
		return nil
	})
}

// noStorm counts probes for an interval and a half. What a machine that stands still for a moment brings together is
// in proportion to that moment.
func noStorm(t *testing.T, count *atomic.Int64) {
	t.Helper()
	most, first, began := int64(0), count.Load(), time.Now()
	for time.Since(began) < stormInterval*3/2 {
		from, at := count.Load(), time.Now()
		pass(t, 500*time.Millisecond)
		n, allowed := count.Load()-from, stormAll/2+2*stormUsual*time.Since(at).Seconds()
		if most = max(most, n); float64(n) > allowed {
			t.Errorf("%d probes within %s, of %d endpoints", n, time.Since(at), stormAll)
		}
	}
	if n := count.Load() - first; n < stormAll/4 {
		t.Errorf("%d probes in an interval and a half, of %d endpoints: nobody probes", n, stormAll)
	}
	t.Logf("at most %d probes in half a second; %.0f are usual", most, stormUsual/2)
}

// stormCheck says whether all endpoints are known, and up.
func stormCheck(ctx context.Context, n *lab.Node) error {
	list, err := endpointsSeen(ctx, n)
	if err != nil {
		return err
	}
	up := 0
	for _, e := range list {
		if e.Health == "up" {
			up++
		}
	}
	if up != stormAll {
		return fmt.Errorf("%s: %d of %d are", n.Name(), up, stormAll)
	}
	return nil
}
