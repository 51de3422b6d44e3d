package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
	"pontoon/internal/lab/backend"
)

// The endpoints of the load: services of 256 at most, each with a port of its own on the same addresses.
const (
	loadServices = 40
	loadSecured  = 8 // services that are probed by https or grpc
	loadEach     = 250
	loadPort     = 20000 // of the first service; servers of https and grpc are 100 and 200 further on
	loadWindow   = 20 * time.Second
)

// loadNet holds the endpoints' addresses, all of one host.
var loadNet = netip.MustParsePrefix("10.77.0.0/24")

// probing is one way to probe all of them.
type probing struct {
	name  string
	probe map[string]any
	every time.Duration // each endpoint, 0 for never

	services int    // how many are probed so, the others not at all; 0: all of them
	ports    uint16 // beyond those of the services' own
}

// endpoints is how many are probed.
func (p probing) endpoints() int { return cmp.Or(p.services, loadServices) * loadEach }

func probings() []probing {
	return []probing{
		{name: "none", probe: map[string]any{"type": "none"}},
		{name: "tcp", probe: map[string]any{"type": "tcp"}, every: 2 * time.Second},
		{name: "http", probe: map[string]any{"type": "http"}, every: 2 * time.Second},
		{name: "https", probe: map[string]any{"type": "https"}, every: 2 * time.Second, services: loadSecured, ports: 100},
		{name: "grpc", probe: map[string]any{"type": "grpc"}, every: 2 * time.Second, services: loadSecured, ports: 200},
		{name: "grpc-tls", probe: map[string]any{"type": "grpc", "tls": true}, every: 2 * time.Second, services: loadSecured, ports: 300},
		{name: "tcp-flat-out", probe: map[string]any{"type": "tcp", "interval": "100ms", "timeout": "1s"}, every: 100 * time.Millisecond},
	}
}

// BenchmarkHealthLoad has one node probe 10 000 endpoints, 2000 by https and grpc, all well, and says what that takes of a
// processor. The probes are counted by the endpoints. BENCH_HEALTH_PROBES picks ways by name. At last the daemon is killed and
// started again: the endpoints count how many probes come in the busiest tenth of a second.
func BenchmarkHealthLoad(b *testing.B) {
	l := newCluster(b, lab.Config{Topology: lab.OneLeg, Nodes: 1, Endpoints: 1})
	n, ep := l.Nodes()[0], l.Endpoints()[0]
	cli(b, n, "vip", "create", lab.ServiceVIP().String())
	routeLoad(b, ep, n)
	var count atomic.Int64
	for i := range loadServices {
		answerProbes(b, ep, loadPort+uint16(i), &count)
	}
	secured := serveSecured(b, ep)
	counted := func() int64 {
		n := count.Load()
		for _, s := range secured {
			n += int64(s.Stats().Requests)
		}
		return n
	}
	table := bgpFigures{head: []string{"probe", "endpoints", "all found up after", "probes/s", "processors of the node", "of them for probes", "probes per processor second", "resident"}}
	for b.Loop() {
		idle := 0.0
		var usual *probing // one at the default interval
		for _, p := range pick(b, "BENCH_HEALTH_PROBES", probings(), func(p probing, name string) bool { return p.name == name }) {
			took := probeAll(b, n, p)
			before, from, began := usageOf(b, n), counted(), time.Now()
			pass(b, loadWindow)
			window := time.Since(began).Seconds()
			after := usageOf(b, n)
			rate, cpus := float64(counted()-from)/window, (after.cpu-before.cpu).Seconds()/window
			each := "–"
			if p.every == 0 {
				idle = cpus
			} else {
				each = fmt.Sprintf("%.0f", rate/max(cpus-idle, 0.001))
				b.ReportMetric(rate/max(cpus-idle, 0.001), "probes/cpu-s-"+p.name)
			}
			b.ReportMetric(cpus, "cpus-"+p.name)
			table.add(p.name, fmt.Sprint(p.endpoints()), took.Round(10*time.Millisecond).String(), fmt.Sprintf("%.0f", rate), fmt.Sprintf("%.3f", cpus), fmt.Sprintf("%.3f", cpus-idle), each,
				fmt.Sprintf("%d MB", after.rss>>20))
			if usual == nil && p.every == 2*time.Second && p.services == 0 {
				usual = &p
			}
		}
		b.Log("\n" + table.String())
		if usual != nil {
			probeAll(b, n, *usual)
			stormAfterRestart(b, n, *usual, &count)
		}
	}
}

// routeLoad makes the endpoint host take what goes to all addresses of the load, and the nodes send it there.
func routeLoad(t testing.TB, ep *lab.Host, nodes ...*lab.Node) {
	t.Helper()
	to := &net.IPNet{IP: loadNet.Addr().AsSlice(), Mask: net.CIDRMask(loadNet.Bits(), 32)}
	add := func(h *lab.Host, r func(*netlink.Handle) (*netlink.Route, error)) error {
		return h.Do(func() error {
			nl, err := netlink.NewHandle()
			if err != nil {
				return err
			}
			defer nl.Close()
			route, err := r(nl)
			if err != nil {
				return err
			}
			return nl.RouteAdd(route)
		})
	}
	err := add(ep, func(nl *netlink.Handle) (*netlink.Route, error) {
		lo, err := nl.LinkByName("lo")
		if err != nil {
			return nil, err
		}
		return &netlink.Route{Dst: to, LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}, nil
	})
	for _, n := range nodes {
		err = errors.Join(err, add(n.Host, func(*netlink.Handle) (*netlink.Route, error) {
			return &netlink.Route{Dst: to, Gw: ep.Addr().AsSlice()}, nil
		}))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// answerProbes accepts at a port of all addresses, counts, and answers who asks something as an HTTP server would.
func answerProbes(t testing.TB, ep *lab.Host, port uint16, count *atomic.Int64) {
	t.Helper()
	ln, err := ep.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	if err != nil {
		t.Fatal(err)
	}
	background(t, fmt.Sprintf("endpoints at %d", port), func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { ln.Close() })()
		var conns errgroup.Group
		for {
			c, err := ln.Accept()
			if ctx.Err() != nil {
				return conns.Wait()
			}
			if err != nil {
				return errors.Join(err, conns.Wait())
			}
			count.Add(1)
			conns.Go(func() error {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Second))
				if _, err := c.Read(make([]byte, 1024)); err == nil {
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")
				}
				return nil // who only connects ends it with a reset
			})
		}
	})
}

// serveSecured are the servers that are asked by https and grpc.
func serveSecured(b *testing.B, ep *lab.Host) (all []*backend.Server) {
	b.Helper()
	for i := range uint16(loadSecured) {
		for k, cfg := range []backend.Config{{Kind: backend.HTTPS}, {Kind: backend.GRPC}, {Kind: backend.GRPC, TLS: true}} {
			at := netip.AddrPortFrom(netip.IPv4Unspecified(), loadPort+100*uint16(k+1)+i)
			all = append(all, serveBackend(b, ep, cfg, at))
		}
	}
	return all
}

// probeAll has all endpoints probed so, and returns how long it took until all were found up.
func probeAll(b *testing.B, n *lab.Node, p probing) time.Duration {
	b.Helper()
	began := time.Now()
	for i := range loadServices {
		var endpoints []map[string]any
		addr, probe := loadNet.Addr(), p.probe
		if p.services > 0 && i >= p.services {
			probe = map[string]any{"type": "none"}
		}
		for range loadEach {
			addr = addr.Next()
			endpoints = append(endpoints, map[string]any{"address": netip.AddrPortFrom(addr, loadPort+p.ports+uint16(i)).String(), "weight": 1})
		}
		name := fmt.Sprintf("load%d", i)
		_, err := put(within(b, 10*time.Second), n, "/v1/services/"+name, map[string]any{
			"name": name, "vip": lab.ServiceVIP().String(), "port": 1000 + i, "protocol": "tcp", "mode": "fullnat",
			"endpoints": endpoints, "probe": probe,
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	if p.every > 0 {
		awaitAllUp(b, n, p.endpoints())
	}
	return time.Since(began)
}

// awaitAllUp waits until so many endpoints are up; the question is not cheap and is asked every half second.
func awaitAllUp(b *testing.B, n *lab.Node, want int) {
	b.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; pass(b, 500*time.Millisecond) {
		var services []lab.ServiceStatus
		if err := n.Get(within(b, 10*time.Second), "/v1/services", &services); err != nil {
			b.Fatal(err)
		}
		up, example := 0, ""
		for _, s := range services {
			for _, e := range s.Endpoints {
				if e.Health == "up" {
					up++
				} else {
					example = fmt.Sprintf("%s of %s is %s: %s", e.Address, s.Name, e.Health, e.Error)
				}
			}
		}
		if up == want {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d are up; %s", up, want, example)
		}
	}
}

// stormAfterRestart kills the daemon, starts it again, and says how many probes came at once.
func stormAfterRestart(b *testing.B, n *lab.Node, p probing, count *atomic.Int64) {
	b.Helper()
	if err := n.Kill(within(b, 10*time.Second)); err != nil {
		b.Fatal(err)
	}
	if err := n.Start(within(b, 10*time.Second)); err != nil {
		b.Fatal(err)
	}
	// A moment in which this process, too, did not run is longer than a step, and counts for as many.
	const step = 100 * time.Millisecond
	first, began := count.Load(), time.Now()
	most, from, at := 0.0, first, began
	for time.Since(began) < 100*step {
		pass(b, step)
		now, then := count.Load(), time.Now()
		most = max(most, float64(now-from)*float64(step)/float64(then.Sub(at)))
		from, at = now, then
	}
	usual := float64(p.endpoints()) * float64(step) / float64(p.every)
	b.Logf("after the daemon was killed and started again: %d probes in 10 s, %.0f in the busiest 100 ms; evenly spread it were %.0f (%s)",
		from-first, most, usual, p.name)
	b.ReportMetric(most, "probes-busiest-100ms")
}
