package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"pontoon/internal/lab"
)

// get asks the node's daemon for one document, for two seconds.
func get(ctx context.Context, n *lab.Node, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return n.Get(ctx, path, into)
}

// status is the node's status now.
func status(t testing.TB, n *lab.Node) lab.Status {
	t.Helper()
	var s lab.Status
	eventually(t, 5*time.Second, n.Name()+" to tell its status", func(ctx context.Context) (err error) {
		s, err = n.Status(ctx)
		return err
	})
	return s
}

// epoch is the default instance's, as n knows it.
func epoch(t testing.TB, n *lab.Node) uint64 {
	t.Helper()
	for _, in := range status(t, n).Instances {
		if in.Name == "default" {
			return in.Epoch
		}
	}
	t.Fatalf("%s knows no default instance", n.Name())
	return 0
}

// eventually polls until cond returns nil and fails the test if it does not.
func eventually(t testing.TB, d time.Duration, what string, cond func(context.Context) error) {
	t.Helper()
	if err := lab.WaitFor(within(t, d), what, cond); err != nil {
		t.Fatal(err)
	}
}

// pass lets d go by.
func pass(t testing.TB, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	<-ctx.Done()
}

// flow is what the tests look at of one tracked connection.
type flow struct {
	Protocol string `json:"protocol"`
	Client   string `json:"client"`
	VIP      string `json:"vip"`
	SNAT     string `json:"snat"`
	Endpoint string `json:"endpoint"`
	State    string `json:"state"`
	Service  string `json:"service"`
	Owner    bool   `json:"owner"`
	Bytes    uint64 `json:"bytes"`
}

// flows are the established connections a node holds, by all their addresses;
// the value says whether it owns them.
func flows(ctx context.Context, n *lab.Node) (map[string]bool, error) {
	var list []flow
	if err := get(ctx, n, "/v1/flows?limit=100000", &list); err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, f := range list {
		if f.State == "established" {
			out[strings.Join([]string{f.Protocol, f.Client, f.VIP, f.SNAT, f.Endpoint}, " ")] = f.Owner
		}
	}
	return out, nil
}

// ownedFlows are the keys of the flows n owns.
func ownedFlows(t testing.TB, n *lab.Node) []string {
	t.Helper()
	fs, err := flows(within(t, 5*time.Second), n)
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(fs, func(_ string, owner bool) bool { return !owner })
	return slices.Sorted(maps.Keys(fs))
}

// waitSameFlows waits until all nodes hold the same established flows, at
// least as many as wanted.
func waitSameFlows(t testing.TB, nodes []*lab.Node, atLeast int) {
	t.Helper()
	eventually(t, 20*time.Second, "all nodes to hold the same flows", func(ctx context.Context) error {
		var first map[string]bool
		for _, n := range nodes {
			fs, err := flows(ctx, n)
			if err != nil {
				return err
			}
			if len(fs) < atLeast {
				return fmt.Errorf("%s holds %d flows of %d", n.Name(), len(fs), atLeast)
			}
			if first == nil {
				first = fs
			} else if d := difference(first, fs); len(d) > 0 {
				return fmt.Errorf("%s and %s differ in %d flows, like %s", nodes[0].Name(), n.Name(), len(d), d[0])
			}
		}
		return nil
	})
}

// difference lists the keys that only one of the two has.
func difference(a, b map[string]bool) []string {
	var out []string
	for k := range a {
		if _, ok := b[k]; !ok {
			out = append(out, k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out = append(out, k)
		}
	}
	return out
}

// event is one line of `pontoon events`.
type event struct {
	Kind string `json:"kind"`
	Node string `json:"node"`
	Text string `json:"text"`

	Time   time.Time         `json:"time"`
	Fields map[string]string `json:"fields"`
}

// waitEvent waits until n has recorded an event of that kind with that text.
func waitEvent(t testing.TB, n *lab.Node, kind, text string) {
	t.Helper()
	eventually(t, 10*time.Second, n.Name()+" to tell: "+text, func(ctx context.Context) error {
		list, err := events(ctx, n)
		if err != nil {
			return err
		}
		for _, e := range list {
			if e.Kind == kind && strings.Contains(e.Text, text) {
				return nil
			}
		}
		return fmt.Errorf("not among %d events", len(list))
	})
}

func events(ctx context.Context, n *lab.Node) (list []event, err error) {
	err = get(ctx, n, "/v1/events?since=1h", &list)
	return list, err
}

// holders names the nodes whose kernels hold the address now.
func holders(l *lab.Lab, addr netip.Addr) ([]string, error) {
	var out []string
	for _, n := range l.Nodes() {
		if !n.Powered() {
			continue
		}
		link, err := holds(n, addr)
		if err != nil {
			return nil, err
		}
		if link != "" {
			out = append(out, n.Name())
		}
	}
	return out, nil
}

// holds names the interface of n that has the address, "" for none.
func holds(n *lab.Node, addr netip.Addr) (string, error) { return hostHolds(n.Host, addr) }

func hostHolds(n *lab.Host, addr netip.Addr) (string, error) {
	found := ""
	err := n.Do(func() error {
		for _, name := range n.Interfaces() {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if a.IP.Equal(addr.AsSlice()) {
					found = name
				}
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("addresses of %s: %w", n.Name(), err)
	}
	return found, nil
}

// onlyHolder is nil when that node and no other holds every address.
func onlyHolder(l *lab.Lab, node string, addrs ...netip.Addr) error {
	for _, a := range addrs {
		got, err := holders(l, a)
		if err != nil {
			return err
		}
		if !slices.Equal(got, []string{node}) {
			return fmt.Errorf("%s is held by %v, want %s alone", a, got, node)
		}
	}
	return nil
}

// waitOnlyHolder waits until that node and no other holds every address.
func waitOnlyHolder(t testing.TB, d time.Duration, l *lab.Lab, node string, addrs ...netip.Addr) {
	t.Helper()
	eventually(t, d, "exactly "+node+" to hold the VIPs", func(context.Context) error {
		return onlyHolder(l, node, addrs...)
	})
}

// stalls measures how late this very process is woken: on a starved machine
// its own clients feel gaps that no load balancer has made.
func stalls(t testing.TB) (worst func() time.Duration) {
	t.Helper()
	got := make(chan time.Duration)
	background(t, "stall watch", func(ctx context.Context) error {
		const period = 10 * time.Millisecond
		tick := time.NewTicker(period)
		defer tick.Stop()
		last, most := time.Now(), time.Duration(0)
		for {
			select {
			case <-ctx.Done():
				return nil
			case now := <-tick.C:
				most = max(most, now.Sub(last)-period)
				last = now
			case got <- most:
			}
		}
	})
	return func() time.Duration {
		select {
		case d := <-got:
			return d
		case <-t.Context().Done():
			return 0
		}
	}
}

// returning watches until all are healthy that no other than the master holds
// any of the addresses at any look.
func returning(t testing.TB, l *lab.Lab, master *lab.Node, addrs ...netip.Addr) {
	t.Helper()
	eventually(t, 20*time.Second, "the node to return without a VIP", func(ctx context.Context) error {
		if err := onlyHolder(l, master.Name(), addrs...); err != nil {
			return fmt.Errorf("%w: %w", lab.ErrGiveUp, err)
		}
		s, err := master.Status(ctx)
		if err != nil {
			return err
		}
		return s.CheckHealthy(names(l)...)
	})
}

// vipOn is an address an interface gets or loses by somebody's hand.
type vipOn struct {
	iface string
	addr  netip.Addr
}

func (v vipOn) add(t testing.TB, n *lab.Node) { v.change(t, n, netlink.AddrAdd) }
func (v vipOn) del(t testing.TB, n *lab.Node) { v.change(t, n, netlink.AddrDel) }

func (v vipOn) change(t testing.TB, n *lab.Node, act func(netlink.Link, *netlink.Addr) error) {
	t.Helper()
	err := n.Do(func() error {
		link, err := netlink.LinkByName(v.iface)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(v.addr.String() + "/32")
		if err != nil {
			return err
		}
		return act(link, a)
	})
	if err != nil {
		t.Fatalf("change %s on %s of %s: %v", v.addr, v.iface, n.Name(), err)
	}
}
