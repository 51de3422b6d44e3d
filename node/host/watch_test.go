package host

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

// startWatch runs Watch in ns; changes arrive on the channel. It ends with the test.
func startWatch(t *testing.T, h *Host, ns netns.NsHandle) <-chan Change {
	t.Helper()
	changes := make(chan Change, 1024)
	ctx, cancel := context.WithCancel(context.Background())
	done := roottest.Go(ns, func() error { return h.Watch(ctx, func(c Change) { changes <- c }) })
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("watch: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("watch does not end")
		}
	})
	return changes
}

// awaitChange reads until a change satisfies ok.
func awaitChange(t *testing.T, changes <-chan Change, what string, ok func(Change) bool) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		select {
		case c := <-changes:
			if ok(c) {
				return
			}
		case <-deadline:
			t.Fatalf("no change: %s", what)
		}
	}
}

func TestWatchTellsWhatChanged(t *testing.T) {
	ns := roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	h := newHost(t)
	changes := startWatch(t, h, ns)
	awaitChange(t, changes, "everything at the start", func(c Change) bool { return c == everything })

	operatorAdds(t, "ptv0", "10.0.0.1/24")
	awaitChange(t, changes, "address", func(c Change) bool { return c.Addresses })
	setUp(t, "ptv1", false)
	awaitChange(t, changes, "link", func(c Change) bool { return c.Links })
	setUp(t, "ptv1", true)
	must(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: link(t, "ptv0").Attrs().Index, IP: net.IPv4(10, 0, 0, 2).To4(), State: netlink.NUD_PERMANENT,
		HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2},
	}))
	awaitChange(t, changes, "neighbour", func(c Change) bool { return c.Neighbours })
	_, dst, _ := net.ParseCIDR("192.0.2.0/24")
	must(t, netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.IPv4(10, 0, 0, 2)}))
	awaitChange(t, changes, "route", func(c Change) bool { return c.Routes })
}

func TestWatchCoalesces(t *testing.T) {
	ns := roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	h := newHost(t)
	changes := startWatch(t, h, ns)
	awaitChange(t, changes, "start", func(c Change) bool { return c == everything })
	var want []Address
	for i := range 200 {
		want = append(want, Address{Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), Link: "ptv0"})
	}
	syncTo(t, h, want, nil, 200, 0)
	awaitChange(t, changes, "addresses", func(c Change) bool { return c.Addresses })
	if n := len(changes); n > 50 {
		t.Errorf("%d more calls for 200 addresses set in a row", n)
	}
}

func TestWatchSurvivesALostMessage(t *testing.T) {
	ns := roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	h := newHost(t)
	calls := make(chan Change, 1024)
	hold := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	done := roottest.Go(ns, func() error { return h.Watch(ctx, func(c Change) { calls <- c; <-hold }) })
	awaitChange(t, calls, "start", func(c Change) bool { return c == everything })

	// Watch is stuck in the callback while more arrives than its buffer holds.
	l := link(t, "ptv0")
	for i := range 12000 {
		n := &netlink.Neigh{
			LinkIndex: l.Attrs().Index, IP: net.IPv4(10, 0, byte(i>>8), byte(i)).To4(), State: netlink.NUD_PERMANENT,
			HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2},
		}
		if err := netlink.NeighSet(n); err != nil {
			if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) {
				break // the neighbour table is full
			}
			t.Fatal(err)
		}
	}
	close(hold)
	awaitChange(t, calls, "everything after the loss", func(c Change) bool { return c == everything })
	operatorAdds(t, "ptv0", "10.0.0.1/24")
	awaitChange(t, calls, "an address after the loss", func(c Change) bool { return c.Addresses && c != everything })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
