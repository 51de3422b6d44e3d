package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
	"pontoon/internal/lab/traffic"
)

// kind is one way to carry a client's connection to an endpoint.
type kind struct {
	name  string
	vip   lab.Family // of the client and the VIP
	ep    lab.Family // of the endpoint
	flags []string
}

// twoLegKinds are those whose endpoints answer through the load balancer.
func twoLegKinds() []kind {
	v4, v6 := lab.IPv4, lab.IPv6
	return []kind{
		{"fullnat", v4, v4, []string{"--mode", "fullnat"}},
		{"fullnat6", v6, v6, []string{"--mode", "fullnat"}},
		{"nat64", v6, v4, []string{"--mode", "fullnat", "--algorithm", "maglev"}},
		{"nat46", v4, v6, []string{"--mode", "fullnat", "--algorithm", "lc"}},
		{"dnat", v4, v4, []string{"--mode", "dnat", "--algorithm", "lc"}},
		{"dnat6", v6, v6, []string{"--mode", "dnat", "--affinity", "client-ip"}},
		{"onearm", v4, v4, []string{"--mode", "onearm", "--affinity", "client-ip"}},
		{"onearm6", v6, v6, []string{"--mode", "onearm", "--algorithm", "maglev"}},
	}
}

// port is where the i-th kind's service listens: the first of a range of ten,
// of which clients use the third.
func port(i int) uint16 { return uint16(9000 + 100*i) }

const portInRange = 2

// serveKind answers on every endpoint where the service of the kind leads to.
func serveKind(t testing.TB, l *lab.Lab, i int, k kind, at func(h *lab.Host) netip.Addr) {
	t.Helper()
	for _, ep := range l.Endpoints() {
		s, err := traffic.NewServer(traffic.ServerConfig{Name: ep.Name()})
		if err != nil {
			t.Fatal(err)
		}
		ln, err := ep.Listen(netip.AddrPortFrom(at(ep), port(i)+portInRange))
		if err != nil {
			t.Fatal(err)
		}
		background(t, k.name+" server on "+ep.Name(), func(ctx context.Context) error { return s.Serve(ctx, ln) })
	}
}

// declareKind makes the service of the kind.
func declareKind(t testing.TB, l *lab.Lab, i int, k kind) {
	t.Helper()
	args := []string{
		"service", "create", k.name, "--vip", k.vip.ServiceVIP().String(),
		"--port", fmt.Sprintf("%d-%d", port(i), port(i)+9), "--protocol", "tcp",
	}
	for _, ep := range l.Endpoints() {
		args = append(args, "--endpoint", netip.AddrPortFrom(ep.AddrIn(k.ep), port(i)).String())
	}
	cli(t, l.Nodes()[0], append(args, k.flags...)...)
}

// connectKind opens connections to the third port of the kind's range.
func connectKind(t testing.TB, l *lab.Lab, i int, k kind, count int) *traffic.Clients {
	t.Helper()
	target := netip.AddrPortFrom(k.vip.ServiceVIP(), port(i)+portInRange)
	c, err := traffic.NewClients(traffic.ClientsConfig{Dial: l.Clients()[0].Dial, Target: target, Count: count})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Open(within(t, 60*time.Second)); err != nil {
		t.Fatalf("%s: %v", k.name, err)
	}
	background(t, k.name+" clients", c.Run)
	return c
}

// Every mode, IP family and algorithm carries real connections, to a port inside
// a range, and they live on when the master loses its power.
func TestConnectionsOfEveryKindSurviveTheMastersPowerLoss(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	n := l.Nodes()[0]
	for _, f := range lab.Families() {
		cli(t, n, "vip", "create", f.ServiceVIP().String())
		cli(t, n, "vip", "create", f.GatewayVIP().String(), "--kind", "gateway")
	}
	kinds := twoLegKinds()
	for i, k := range kinds {
		serveKind(t, l, i, k, func(h *lab.Host) netip.Addr { return h.AddrIn(k.ep) })
		declareKind(t, l, i, k)
	}
	waitApplied(t, l)
	survivePowerLoss(t, l, kinds)
}

// survivePowerLoss has connections of every kind, and takes the master's power.
func survivePowerLoss(t *testing.T, l *lab.Lab, kinds []kind) {
	t.Helper()
	const each = 10
	var all []*traffic.Clients
	for i, k := range kinds {
		c := connectKind(t, l, i, k, each)
		steady(t, c)
		all = append(all, c)
	}
	waitSameFlows(t, l.Nodes(), each*len(kinds))
	victim := master(t, l, "")
	late := stalls(t)
	var windows []*traffic.Window
	for _, c := range all {
		windows = append(windows, c.Window())
	}
	if err := victim.PowerOff(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	next := master(t, l, victim.Name())
	for i, w := range windows {
		t.Log(kinds[i].name)
		progressed(t, w, failoverGap, late)
	}
	t.Logf("%s follows and has adopted %d flows", next.Name(), status(t, next).Flows.Adopted)
}

// In DSR the endpoints hold the VIPs themselves, silently, and answer clients
// past the load balancer.
func TestDirectAnswersSurviveTheMastersPowerLoss(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	kinds := []kind{
		{"dsr", lab.IPv4, lab.IPv4, []string{"--mode", "dsr"}},
		{"dsr6", lab.IPv6, lab.IPv6, []string{"--mode", "dsr", "--algorithm", "maglev"}},
	}
	for _, f := range lab.Families() {
		cli(t, l.Nodes()[0], "vip", "create", f.ServiceVIP().String())
		for _, ep := range l.Endpoints() {
			holdSilently(t, ep, f.ServiceVIP())
		}
	}
	for i, k := range kinds {
		serveKind(t, l, i, k, func(*lab.Host) netip.Addr { return k.vip.ServiceVIP() })
		declareKind(t, l, i, k)
	}
	waitApplied(t, l)
	survivePowerLoss(t, l, kinds)
}

// holdSilently gives a host an address on its loopback interface that it does
// not answer ARP for. (Neighbour solicitations are answered only on the
// interface that has the address.)
func holdSilently(t testing.TB, h *lab.Host, addr netip.Addr) {
	t.Helper()
	err := h.Do(func() error {
		for name, value := range map[string]string{"arp_ignore": "1", "arp_announce": "2"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		nl, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer nl.Close()
		lo, err := nl.LinkByName("lo")
		if err != nil {
			return err
		}
		bits := addr.BitLen()
		return nl.AddrAdd(lo, &netlink.Addr{
			IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, bits)}, Flags: unix.IFA_F_NODAD,
		})
	})
	if err != nil {
		t.Fatalf("%s holds %s: %v", h.Name(), addr, err)
	}
}
