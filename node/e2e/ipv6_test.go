package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/roottest"
	"pontoon/node/announce"
	"pontoon/node/host"
)

// Raft, gossip, replication and the forwarded API run over IPv6, while the
// service is an IPv4 one: the families of a cluster and of what it serves have
// nothing to do with one another.
func TestClusterWithIPv6AddressesSurvivesItsMaster(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2, ClusterIPv6: true})
	for _, n := range status(t, l.Nodes()[2]).Nodes {
		if !strings.HasPrefix(n.Address, "[fd00:80::1") {
			t.Errorf("%s is a member at %s", n.Name, n.Address)
		}
	}
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 50)
	steady(t, clients)
	old := master(t, l, "")
	waitSameFlows(t, l.Nodes(), 50)
	late := stalls(t)
	w := clients.Window()
	if err := old.LinksDown(); err != nil {
		t.Fatal(err)
	}
	next := takenOver(t, l, w, old, failoverGap, late)
	w = clients.Window()
	if err := old.LinksUp(); err != nil {
		t.Fatal(err)
	}
	returned(t, l, w, next, late)
}

// greet has a host answer each connection to port 80 with its name.
func greet(t testing.TB, h *lab.Host, at netip.Addr) {
	t.Helper()
	ln, err := h.Listen(netip.AddrPortFrom(at, 80))
	if err != nil {
		t.Fatal(err)
	}
	background(t, "greeter on "+h.Name(), func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { ln.Close() })
		defer stop()
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if err != nil {
				return err
			}
			_, werr := c.Write([]byte(h.Name()))
			if err := errors.Join(werr, c.Close()); err != nil {
				return err
			}
		}
	})
}

// greeter asks who answers at an address, within d.
func greeter(t testing.TB, from *lab.Host, addr netip.Addr, d time.Duration) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	c, err := from.Dial(ctx, netip.AddrPortFrom(addr, 80))
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(d)); err != nil {
		return "", err
	}
	buf := make([]byte, 16)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// take has a host hold an address and say so, as a master's driver does.
func take(t testing.TB, h *lab.Host, addr netip.Addr) {
	t.Helper()
	err := h.Do(func() error {
		hands, err := host.New(nil)
		if err != nil {
			return err
		}
		defer hands.Close()
		err = lab.WaitFor(within(t, 5*time.Second), h.Name()+" to have a carrier", func(context.Context) error {
			links, err := hands.Links([]string{"eth1"})
			if err == nil && !links[0].Up {
				err = errors.New("eth1 is down")
			}
			return err
		})
		if err != nil {
			return err
		}
		speaker, err := announce.NewL2(announce.L2Config{Router: true})
		if err != nil {
			return err
		}
		defer speaker.Close()
		if _, _, err := hands.SyncAddresses([]host.Address{{Addr: addr, Link: "eth1"}}, []netip.Addr{addr}); err != nil {
			return err
		}
		return speaker.Announce(t.Context(), []announce.Advert{{Addr: addr, Link: "eth1", Epoch: 1}})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A client that was just served by a node that died reaches the next one with its
// first packet: nothing waits for duplicate detection, and its neighbour entry,
// which it would trust for half a minute, is put right. IPv4 is the yardstick.
func TestAddressThatMovesIsReachedAtOnce(t *testing.T) {
	const first = 500 * time.Millisecond // less than TCP's first repetition of a SYN
	for _, family := range lab.Families() {
		t.Run(family.String(), func(t *testing.T) {
			roottest.Need(t)
			vip := family.ServiceVIP()
			l, err := lab.New(lab.Config{Topology: lab.OneLeg, Clients: 1, Endpoints: 2})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			})
			client, old, next := l.Clients()[0], l.Endpoints()[0], l.Endpoints()[1]
			for _, h := range l.Endpoints() {
				greet(t, h, family.Unspecified())
			}
			take(t, old, vip)
			// How soon the first contact comes does not matter here.
			if got, err := greeter(t, client, vip, 5*time.Second); err != nil || got != old.Name() {
				t.Fatalf("%q answers: %v", got, err)
			}
			if err := old.LinksDown(); err != nil {
				t.Fatal(err)
			}
			take(t, next, vip)
			start := time.Now()
			if got, err := greeter(t, client, vip, first); err != nil || got != next.Name() {
				t.Fatalf("after the takeover %q answers: %v", got, err)
			}
			t.Logf("answered %v after the announcement", time.Since(start))
		})
	}
}
