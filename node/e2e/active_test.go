package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/traffic"
)

// activePorts are the services of an instance without a master, by mode.
var activePorts = map[string]uint16{"fullnat": 80, "dnat": 81}

func activeAt(mode string) netip.AddrPort {
	return netip.AddrPortFrom(lab.RoutedVIP(0), activePorts[mode])
}

// newActive raises three nodes behind the product's own router, with services that all of them forward. What the
// endpoints answer comes back by the gateway, which one node holds: most connections pass two nodes.
func newActive(t testing.TB) *lab.Lab {
	t.Helper()
	l := newCluster(t, lab.Config{Topology: lab.Routed, Nodes: 3, Clients: 1, Endpoints: 2, Routers: 1})
	r := l.Routers()[0]
	if _, err := r.StartOwn(0); err != nil {
		t.Fatal(err)
	}
	n := l.Nodes()[0]
	cli(t, n, "bgp", "peer", "add", r.CoreAddr(lab.IPv4).String(), "--as", fmt.Sprint(lab.RouterAS))
	serve(t, l)
	for _, ep := range l.Endpoints() {
		echoDatagrams(t, ep, netip.AddrPortFrom(ep.Addr(), udpPort))
	}
	cli(t, n, "vip", "create", lab.GatewayVIP().String(), "--kind", "gateway")
	cli(t, n, "instance", "create", "active", "--kind", "ecmp")
	cli(t, n, "vip", "create", lab.RoutedVIP(0).String(), "--instance", "active", "--announce", "bgp")
	for mode, port := range activePorts {
		for _, protocol := range []string{"tcp", "udp"} {
			args := []string{
				"service", "create", mode + "-" + protocol, "--vip", lab.RoutedVIP(0).String(), "--port", fmt.Sprint(port),
				"--protocol", protocol, "--mode", mode, "--algorithm", "maglev",
			}
			at := map[string]uint16{"tcp": webPort, "udp": udpPort}[protocol]
			for _, ep := range l.Endpoints() {
				args = append(args, "--endpoint", netip.AddrPortFrom(ep.Addr(), at).String())
			}
			cli(t, n, args...)
		}
	}
	waitApplied(t, l)
	table, err := r.RouteTable()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	eventually(t, 30*time.Second, "the router to know three ways", func(context.Context) error {
		hops, err := table.To(lab.RoutedVIP(0))
		if err == nil && len(hops) != 3 {
			err = fmt.Errorf("its next hops are %s", hops)
		}
		return err
	})
	return l
}

// counted sums up a counter of the data plane over all nodes.
func counted(t testing.TB, l *lab.Lab, name string) (sum uint64) {
	t.Helper()
	for _, n := range l.Nodes() {
		var st struct {
			Counters map[string]uint64 `json:"counters"`
		}
		if err := get(within(t, 5*time.Second), n, "/v1/status", &st); err != nil {
			t.Fatal(err)
		}
		sum += st.Counters[name]
	}
	return sum
}

// Where every node gets packets, the answer to a client's first packet comes to another node than the packet
// itself, faster than any record. Nobody notices: no SYN is repeated, no datagram unanswered.
func TestNobodyNoticesThatConnectionsPassTwoNodes(t *testing.T) {
	l := newActive(t)
	dials := &slowDials{}
	var pings []*pings
	var probers []*traffic.Prober
	for mode := range activePorts {
		p, err := traffic.NewProber(traffic.ProberConfig{
			Dial: dials.dial(l.Clients()[0]), Target: activeAt(mode), Interval: 5 * time.Millisecond, Timeout: 8 * time.Second,
		})
		if err != nil {
			t.Fatal(err)
		}
		background(t, "prober of "+mode, p.Run)
		probers = append(probers, p)
		for range 6 { // of which some are answered past another node
			pings = append(pings, startPings(t, l.Clients()[0], activeAt(mode)))
		}
	}
	began := time.Now()
	pass(t, 8*time.Second)
	end := time.Now()
	pass(t, 100*time.Millisecond)
	for _, p := range probers {
		if r := p.Result(); r.Failed > 0 || r.OK < 200 {
			t.Errorf("%d of %d new connections failed: %s", r.Failed, r.OK+r.Failed, r.LastError)
		}
	}
	// A busy machine loses a packet now and then.
	if n := dials.count(); n > 2 {
		t.Errorf("%d connections repeated their SYN", n)
	}
	for i, p := range pings {
		if lost, sent := p.lost(began, end); lost > 2 || sent < 100 {
			t.Errorf("%d: %d of %d datagrams were not answered", i, lost, sent)
		}
	}
	brought, guests := counted(t, l, "brought"), counted(t, l, "guest")
	t.Logf("%d frames were brought, %d times a node became a guest, %d flows were adopted; slow dials: %d", brought, guests, counted(t, l, "adopted"), dials.count())
	if brought == 0 || guests == 0 {
		t.Error("every connection passed one node only: this says nothing")
	}
}

// Connections that pass two nodes cost no records while they go on, keep to one owner, and are the same at all.
func TestConnectionsThatPassTwoNodesKeepToTheirOwner(t *testing.T) {
	t.Parallel()
	l := newActive(t)
	var all []*traffic.Clients
	for mode := range activePorts {
		c, err := traffic.NewClients(traffic.ClientsConfig{Dial: l.Clients()[0].Dial, Target: activeAt(mode), Count: 60})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Open(within(t, 60*time.Second)); err != nil {
			t.Fatal(err)
		}
		background(t, "clients of "+mode, c.Run)
		all = append(all, c)
	}
	pass(t, 4*time.Second)
	adopted := counted(t, l, "adopted")
	pass(t, 12*time.Second) // a guest asks after its owner every 8 s
	// Its owner may fall silent for longer than a guest waits while a busy machine is late.
	if more := counted(t, l, "adopted") - adopted; more > 60 {
		t.Errorf("120 connections were taken over %d times in 12 seconds", more)
	} else {
		t.Logf("120 connections were taken over %d times in 12 seconds", more)
	}
	for i, c := range all {
		if n := c.Alive(); n != 60 {
			t.Errorf("%d: %d of 60 connections live", i, n)
		}
	}
}
