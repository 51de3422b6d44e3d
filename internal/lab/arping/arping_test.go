package arping_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
	"pontoon/internal/lab/arping"
	"pontoon/internal/roottest"
)

// holding puts the address on the host's link, or takes it away.
func holding(t *testing.T, h *lab.Host, addr netip.Addr, hold bool) {
	t.Helper()
	err := h.Do(func() error {
		link, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(netip.PrefixFrom(addr, addr.BitLen()).String())
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD // or the kernel says nothing for it for a second
		if hold {
			return netlink.AddrAdd(link, a)
		}
		return netlink.AddrDel(link, a)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryClaimantIsSeen(t *testing.T) {
	roottest.Need(t)
	for _, vip := range []netip.Addr{lab.ServiceVIP(), lab.ServiceVIP6()} {
		t.Run(vip.String(), func(t *testing.T) { claimants(t, vip) })
	}
}

func claimants(t *testing.T, vip netip.Addr) {
	l, err := lab.New(lab.Config{Topology: lab.OneLeg, Clients: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	here, a, b := l.Clients()[0], l.Clients()[1], l.Clients()[2]
	p, err := arping.New(arping.Config{Do: here.Do, Interface: "eth1", Targets: []netip.Addr{vip}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	answering := func(want ...*lab.Host) func() bool {
		return func() bool {
			seen := map[string]int{}
			for _, c := range p.Since(roottest.Patient(100 * time.Millisecond)) {
				if c.Address != vip || !c.Asked || c.At.Before(began) || c.At.After(time.Now()) {
					t.Fatalf("%+v", c)
				}
				seen[c.MAC]++
			}
			for _, h := range want {
				if seen[h.MACs()[0].String()] < 3 {
					return false
				}
			}
			return len(seen) == len(want)
		}
	}
	holding(t, a, vip, true)
	roottest.Eventually(t, "one to answer", answering(a))
	holding(t, b, vip, true)
	roottest.Eventually(t, "two to answer", answering(a, b))
	holding(t, a, vip, false)
	roottest.Eventually(t, "the other to answer alone", answering(b))
	holding(t, b, vip, false)
	roottest.Eventually(t, "nobody to answer", answering())
	if all := p.Claims(); len(all) < 20 {
		t.Errorf("only %d claims are on record", len(all))
	}
}

func TestAHostWithoutTheInterfaceIsAnError(t *testing.T) {
	roottest.Need(t)
	_, err := arping.New(arping.Config{Do: func(f func() error) error { return f() }, Interface: "ptnone"})
	if err == nil {
		t.Error("no error")
	}
}
