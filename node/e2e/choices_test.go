package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
)

// introduce has a host say its name and port to whoever connects, and then send
// back what it gets.
func introduce(t testing.TB, h *lab.Host, port uint16) {
	t.Helper()
	ln, err := h.Listen(netip.AddrPortFrom(h.Addr(), port))
	if err != nil {
		t.Fatal(err)
	}
	background(t, fmt.Sprintf("%s at %d", h.Name(), port), func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { ln.Close() })()
		var g errgroup.Group
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return g.Wait()
			}
			if err != nil {
				return err
			}
			g.Go(func() error {
				defer context.AfterFunc(ctx, func() { c.Close() })()
				defer c.Close()
				if _, err := fmt.Fprintf(c, "%s:%d\n", h.Name(), port); err == nil {
					_, _ = io.Copy(c, c) // ends with a reset as the test wants it
				}
				return nil
			})
		}
	})
}

// introduced is a connection to a host that has said who it is.
type introduced struct {
	net.Conn
	who string // name:port
}

func (i introduced) host() string { return strings.SplitN(i.who, ":", 2)[0] }

// dialIntroduced connects from a client to a port of the service VIP.
func dialIntroduced(t testing.TB, from *lab.Host, port uint16) introduced {
	t.Helper()
	c, err := from.Dial(within(t, 10*time.Second), netip.AddrPortFrom(lab.ServiceVIP(), port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	who, err := bufio.NewReaderSize(c, 16).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return introduced{Conn: c, who: strings.TrimSpace(who)}
}

// several connects count times and counts where to.
func several(t testing.TB, from *lab.Host, port uint16, count int) (all []introduced, hosts map[string]int) {
	t.Helper()
	hosts = map[string]int{}
	for range count {
		c := dialIntroduced(t, from, port)
		all = append(all, c)
		hosts[c.host()]++
	}
	return all, hosts
}

// serviceOf makes a TCP service on both endpoints.
func serviceOf(t testing.TB, l *lab.Lab, name string, port uint16, flags ...string) {
	t.Helper()
	args := []string{
		"service", "create", name, "--vip", lab.ServiceVIP().String(), "--port", fmt.Sprint(port),
		"--protocol", "tcp", "--mode", "fullnat",
	}
	for _, ep := range l.Endpoints() {
		introduce(t, ep, port)
		args = append(args, "--endpoint", endpointAt(ep, port))
	}
	cli(t, l.Nodes()[0], append(args, flags...)...)
	waitApplied(t, l)
}

func endpointAt(ep *lab.Host, port uint16) string {
	return netip.AddrPortFrom(ep.Addr(), port).String()
}

// carried waits until the master carries so many connections of the service.
func carried(t testing.TB, l *lab.Lab, service string, want int) {
	t.Helper()
	m := master(t, l, "")
	eventually(t, 10*time.Second, fmt.Sprintf("%s to carry %d connections of %s", m.Name(), want, service), func(ctx context.Context) error {
		var list []flow
		if err := get(ctx, m, "/v1/flows?service="+service, &list); err != nil {
			return err
		}
		n := 0
		for _, f := range list {
			if f.State == "established" {
				n++
			}
		}
		if n != want {
			return fmt.Errorf("it carries %d", n)
		}
		return nil
	})
}

// What a service's settings promise is seen by clients that connect.
func TestClientsGetWhatTheServicePromises(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 2, Endpoints: 2})
	cli(t, l.Nodes()[0], "vip", "create", lab.ServiceVIP().String())
	cli(t, l.Nodes()[0], "vip", "create", lab.ServiceVIP6().String())
	cli(t, l.Nodes()[0], "vip", "create", lab.GatewayVIP().String(), "--kind", "gateway")
	waitApplied(t, l)
	for _, row := range []struct {
		name string
		test func(*testing.T, *lab.Lab)
	}{
		{"VIPs answer echo requests", vipsAnswer},
		{"ports of a range keep their place", rangeKeepsPlaces},
		{"the endpoint with the fewest connections is next", fewestIsNext},
		{"weights are shares, and 0 is none", weightsAreShares},
		{"removed endpoints' clients hear what was asked for", removedAsAskedFor},
		{"connections are listed, counted and flushed", listedCountedFlushed},
		{"what passes is counted for service and endpoint", passedIsCounted},
		{"new flows beyond the rate come a second later", rateIsHeld},
		{"a client stays with its endpoint at the next master", clientStays}, // it takes the master's power
	} {
		t.Run(row.name, func(t *testing.T) { row.test(t, l) })
	}
}

func vipsAnswer(t *testing.T, l *lab.Lab) {
	for _, row := range []struct {
		network, from string
		to            netip.Addr
		request       []byte
		answer        byte
	}{
		{"ip4:icmp", "0.0.0.0", lab.ServiceVIP(), []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}, 0},
		{"ip6:ipv6-icmp", "::", lab.ServiceVIP6(), []byte{128, 0, 0, 0, 0, 1, 0, 1}, 129}, // the kernel sums it up
	} {
		var c net.PacketConn
		err := l.Clients()[0].Do(func() (err error) {
			c, err = net.ListenPacket(row.network, row.from)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		eventually(t, 10*time.Second, row.to.String()+" to answer", func(context.Context) error {
			if _, err := c.WriteTo(row.request, &net.IPAddr{IP: row.to.AsSlice()}); err != nil {
				return err
			}
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			for got := make([]byte, 128); ; {
				n, from, err := c.ReadFrom(got)
				if err != nil {
					return err
				}
				if n >= 8 && got[0] == row.answer && from.String() == row.to.String() {
					return nil
				}
			}
		})
	}
}

func rangeKeepsPlaces(t *testing.T, l *lab.Lab) {
	const first, last = 9000, 9009
	for _, ep := range l.Endpoints() {
		introduce(t, ep, 7000)
		introduce(t, ep, 7009)
	}
	cli(t, l.Nodes()[0], "service", "create", "range", "--vip", lab.ServiceVIP().String(), "--port", fmt.Sprintf("%d-%d", first, last),
		"--protocol", "tcp", "--mode", "fullnat", "--endpoint", endpointAt(l.Endpoints()[0], 7000), "--endpoint", endpointAt(l.Endpoints()[1], 7000))
	waitApplied(t, l)
	for dialled, reached := range map[uint16]string{first: ":7000", last: ":7009"} {
		if c := dialIntroduced(t, l.Clients()[0], dialled); !strings.HasSuffix(c.who, reached) {
			t.Errorf("port %d leads to %s", dialled, c.who)
		}
	}
	for _, outside := range []uint16{first - 1, last + 1} {
		_, err := l.Clients()[0].Dial(within(t, 5*time.Second), netip.AddrPortFrom(lab.ServiceVIP(), outside))
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("port %d: %v, want a refusal", outside, err)
		}
	}
}

func fewestIsNext(t *testing.T, l *lab.Lab) {
	serviceOf(t, l, "fewest", 7100, "--algorithm", "lc")
	all, hosts := several(t, l.Clients()[0], 7100, 6)
	if hosts["ep1"] != 3 || hosts["ep2"] != 3 {
		t.Fatalf("six connections went %v", hosts)
	}
	for _, c := range all {
		if c.host() == "ep1" {
			_ = c.Close()
		}
	}
	carried(t, l, "fewest", 3)
	if _, hosts = several(t, l.Clients()[0], 7100, 3); hosts["ep1"] != 3 {
		t.Errorf("when ep1 had none, the next three went %v", hosts)
	}
}

func weightsAreShares(t *testing.T, l *lab.Lab) {
	serviceOf(t, l, "shares", 7200, "--algorithm", "rr")
	one, two := endpointAt(l.Endpoints()[0], 7200), endpointAt(l.Endpoints()[1], 7200)
	cli(t, l.Nodes()[1], "service", "update", "shares", "--endpoint", one+",weight=3", "--endpoint", two+",weight=1")
	waitApplied(t, l)
	old, hosts := several(t, l.Clients()[0], 7200, 8)
	if hosts["ep1"] != 6 || hosts["ep2"] != 2 {
		t.Errorf("with weights 3 and 1, eight connections went %v", hosts)
	}
	cli(t, l.Nodes()[1], "service", "update", "shares", "--endpoint", one+",weight=0", "--endpoint", two+",weight=1")
	waitApplied(t, l)
	if _, hosts := several(t, l.Clients()[0], 7200, 4); hosts["ep2"] != 4 {
		t.Errorf("with weights 0 and 1, four connections went %v", hosts)
	}
	for _, c := range old {
		expectTalking(t, c)
	}
}

func removedAsAskedFor(t *testing.T, l *lab.Lab) {
	for i, row := range []struct {
		policy string
		expect func(testing.TB, net.Conn)
	}{{"reset", expectReset}, {"drop", expectSilence}, {"keep", expectTalking}} {
		port := uint16(7300 + i)
		serviceOf(t, l, "on-remove-"+row.policy, port, "--algorithm", "rr", "--on-remove", row.policy)
		all, hosts := several(t, l.Clients()[0], port, 4)
		if hosts["ep1"] != 2 {
			t.Fatalf("four connections went %v", hosts)
		}
		cli(t, l.Nodes()[2], "service", "update", "on-remove-"+row.policy, "--remove-endpoint", endpointAt(l.Endpoints()[0], port))
		waitApplied(t, l)
		if row.policy != "keep" {
			carried(t, l, "on-remove-"+row.policy, 2)
		}
		for _, c := range all {
			if c.host() == "ep1" {
				row.expect(t, c)
			} else {
				expectTalking(t, c)
			}
		}
	}
}

// expectSilence demands that nothing comes back, not even a reset.
func expectSilence(t testing.TB, c net.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Write([]byte("anybody?"))
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: %v, want silence", c.LocalAddr(), err)
	}
}

func listedCountedFlushed(t *testing.T, l *lab.Lab) {
	serviceOf(t, l, "kept", 7400)
	serviceOf(t, l, "flushed", 7401)
	m := master(t, l, "")
	kept, _ := several(t, l.Clients()[0], 7400, 2)
	gone, _ := several(t, l.Clients()[1], 7401, 3)
	listed := func(flags ...string) (list []flow) {
		if err := json.Unmarshal([]byte(cli(t, m, append([]string{"conntrack", "list", "-o", "json"}, flags...)...)), &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	for _, row := range []struct {
		flags []string
		want  int
	}{
		{[]string{"--service", "kept"}, 2},
		{[]string{"--service", "flushed"}, 3},
		{[]string{"--service", "flushed", "--client", l.Clients()[1].Addr().String()}, 3},
		{[]string{"--service", "flushed", "--client", l.Clients()[0].Addr().String()}, 0},
		{[]string{"--service", "flushed", "--limit", "1"}, 1},
	} {
		if list := listed(row.flags...); len(list) != row.want {
			t.Errorf("conntrack list %v: %d connections, want %d: %+v", row.flags, len(list), row.want, list)
		}
	}
	var counts struct{ Established, Owned uint64 }
	eventually(t, 10*time.Second, "the count", func(context.Context) error {
		err := json.Unmarshal([]byte(cli(t, m, "conntrack", "count", "-o", "json")), &counts)
		if err == nil && (counts.Established < 5 || counts.Owned < 5) {
			err = fmt.Errorf("%+v", counts)
		}
		return err
	})
	waitSameFlows(t, l.Nodes(), 5)
	cli(t, l.Nodes()[0], "conntrack", "flush", "--service", "flushed")
	for _, n := range l.Nodes() { // a copy that stays would come back with the next failover
		var list []flow
		if err := get(within(t, 5*time.Second), n, "/v1/flows?service=flushed", &list); err != nil || len(list) != 0 {
			t.Errorf("%s still holds %d, %v", n.Name(), len(list), err)
		}
	}
	for _, c := range gone {
		expectSilence(t, c)
	}
	for _, c := range kept {
		expectTalking(t, c)
	}
	expectTalking(t, dialIntroduced(t, l.Clients()[1], 7401))
}

func passedIsCounted(t *testing.T, l *lab.Lab) {
	serviceOf(t, l, "figures", 7450, "--algorithm", "rr")
	all, _ := several(t, l.Clients()[0], 7450, 4)
	for _, c := range all {
		expectTalking(t, c)
	}
	type traffic struct {
		Active, New    uint64
		ForwardPackets uint64 `json:"forward_packets"`
		ForwardBytes   uint64 `json:"forward_bytes"`
		ReplyPackets   uint64 `json:"reply_packets"`
		ReplyBytes     uint64 `json:"reply_bytes"`
	}
	var shown struct {
		Traffic   traffic
		Endpoints []struct{ Traffic traffic }
	}
	if err := json.Unmarshal([]byte(cli(t, master(t, l, ""), "service", "show", "figures", "-o", "json")), &shown); err != nil {
		t.Fatal(err)
	}
	var sum traffic
	for _, e := range shown.Endpoints {
		if e.Traffic.New != 2 || e.Traffic.Active != 2 {
			t.Errorf("an endpoint of two with four connections: %+v", e.Traffic)
		}
		sum.Active, sum.New = sum.Active+e.Traffic.Active, sum.New+e.Traffic.New
		sum.ForwardPackets, sum.ForwardBytes = sum.ForwardPackets+e.Traffic.ForwardPackets, sum.ForwardBytes+e.Traffic.ForwardBytes
		sum.ReplyPackets, sum.ReplyBytes = sum.ReplyPackets+e.Traffic.ReplyPackets, sum.ReplyBytes+e.Traffic.ReplyBytes
	}
	// From a client at least SYN, ACK and twelve bytes with it; to it the answer, its host's name and the echo.
	if s := shown.Traffic; s != sum || s.ForwardPackets < 4*3 || s.ForwardBytes < 4*(3*40+12) || s.ReplyPackets < 4*3 || s.ReplyBytes < 4*(3*40+2*9) {
		t.Errorf("the service has %+v, its endpoints %+v", s, sum)
	}
}

func rateIsHeld(t *testing.T, l *lab.Lab) {
	serviceOf(t, l, "slow", 7500, "--new-flow-rate", "1")
	floods := func() uint64 {
		var s struct{ Drops map[string]uint64 }
		if err := get(within(t, 5*time.Second), master(t, l, ""), "/v1/status", &s); err != nil {
			t.Fatal(err)
		}
		return s.Drops["flood"]
	}
	before := floods()
	var g errgroup.Group
	took := make([]time.Duration, 5)
	start := time.Now()
	for i := range took {
		g.Go(func() error {
			c, err := l.Clients()[0].Dial(within(t, 15*time.Second), netip.AddrPortFrom(lab.ServiceVIP(), 7500))
			if err != nil {
				return err
			}
			took[i] = time.Since(start)
			return c.Close()
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	late := 0
	for _, d := range took {
		if d > 700*time.Millisecond { // a client's stack repeats its SYN after a second
			late++
		}
	}
	if late < 3 {
		t.Errorf("five clients at once were served after %v, at one a second", took)
	}
	if n := floods() - before; n < 3 {
		t.Errorf("%d first packets counted as beyond the rate", n)
	}
}

func clientStays(t *testing.T, l *lab.Lab) {
	serviceOf(t, l, "loyal", 7600, "--algorithm", "rr", "--affinity", "client-ip")
	home := make([]string, len(l.Clients()))
	for i, client := range l.Clients() {
		all, hosts := several(t, client, 7600, 5)
		if len(hosts) != 1 {
			t.Fatalf("%s went to %v", client.Name(), hosts)
		}
		home[i] = all[0].host()
	}
	if home[0] == home[1] {
		t.Errorf("by turns, and both clients are with %s", home[0])
	}
	waitSameFlows(t, l.Nodes(), 10)
	victim := master(t, l, "")
	if err := victim.PowerOff(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	next := master(t, l, victim.Name())
	for i, client := range l.Clients() {
		if _, hosts := several(t, client, 7600, 5); hosts[home[i]] != 5 {
			t.Errorf("%s was with %s; by %s it went to %v", client.Name(), home[i], next.Name(), hosts)
		}
	}
}

// A full table refuses new connections as their service says, keeps those it has
// and tells the operator.
func TestFullFlowTableRefusesNewAndKeepsOld(t *testing.T) {
	t.Parallel()
	const room = 1024 // the least that a node takes
	l := newCluster(t, lab.Config{
		Topology: lab.TwoLeg, Nodes: 1, Clients: 1, Endpoints: 2, NodeArgs: []string{"--max-flows", fmt.Sprint(room)},
	})
	n, client := l.Nodes()[0], l.Clients()[0]
	cli(t, n, "vip", "create", lab.ServiceVIP().String())
	cli(t, n, "vip", "create", lab.GatewayVIP().String(), "--kind", "gateway")
	serviceOf(t, l, "refusing", 7700, "--on-full", "reset")
	serviceOf(t, l, "silent", 7701, "--on-full", "drop")
	all, _ := several(t, client, 7700, room)
	for port, want := range map[uint16]error{7700: syscall.ECONNREFUSED, 7701: context.DeadlineExceeded} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := client.Dial(ctx, netip.AddrPortFrom(lab.ServiceVIP(), port))
		cancel()
		if !errors.Is(err, want) && !(want == context.DeadlineExceeded && errors.Is(err, os.ErrDeadlineExceeded)) {
			t.Errorf("port %d, when the table is full: %v, want %v", port, err, want)
		}
	}
	for _, c := range all {
		expectTalking(t, c)
	}
	waitEvent(t, n, "data_plane", fmt.Sprintf("flow table full: %d of %[1]d connections", room))
	for _, c := range all[:10] {
		_ = c.Close()
	}
	eventually(t, 30*time.Second, "room for a new one", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		c, err := client.Dial(ctx, netip.AddrPortFrom(lab.ServiceVIP(), 7700))
		if err == nil {
			err = c.Close()
		}
		return err
	})
}
