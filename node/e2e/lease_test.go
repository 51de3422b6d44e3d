package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/impair"
)

var (
	errSilent  = errors.New("it does not answer")
	errTalking = errors.New("it answers still")
)

const (
	leaseLength = time.Second            // the default
	leaseMargin = 500 * time.Millisecond // for the inquirer; the lease itself is the kernel's
)

// heldVIP is one that is claimed also without a quorum.
var heldVIP = netip.MustParseAddr("192.168.80.222")

// leaseCluster is a cluster whose service has VIPs of both families, and one that is to be held.
func leaseCluster(t *testing.T, args ...string) (*lab.Lab, *inquirer) {
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2, NodeArgs: args})
	serve(t, l)
	cli(t, l.Nodes()[0], "vip", "create", lab.ServiceVIP6().String())
	cli(t, l.Nodes()[0], "vip", "create", heldVIP.String(), "--on-quorum-loss", "hold")
	declare(t, l, "fullnat", true)
	a := ask(t, l.Clients()[0], lab.ServiceVIP(), lab.ServiceVIP6(), heldVIP)
	m := master(t, l, "")
	for _, vip := range a.targets {
		a.waitAnswer(t, 10*time.Second, vip, m)
	}
	return l, a
}

// A daemon that is stopped renews nothing. Its machine says no more that the VIPs are there, and
// carries what has come to it before.
func TestAStoppedMasterFallsSilentAndForwards(t *testing.T) {
	t.Parallel()
	l, a := leaseCluster(t, "--agent-grace", "1m")
	clients := connect(t, l, 50)
	m := master(t, l, "")
	before := epoch(t, m)
	late := stalls(t)
	w := clients.Window()
	began := time.Now()
	if err := m.Pause(); err != nil {
		t.Fatal(err)
	}
	for _, vip := range []netip.Addr{lab.ServiceVIP(), lab.ServiceVIP6()} {
		last := a.silentAfter(t, began, 2*leaseLength, vip, m)
		t.Logf("%s: the last answer came %s after the stop", vip, last)
		if last > leaseLength+leaseMargin+late() {
			t.Errorf("%s: answered for %s", vip, last)
		}
	}
	if len(a.since(time.Now().Add(-leaseLength/2), heldVIP, m)) == 0 {
		t.Error("the VIP that is to be held is not answered for any more")
	}
	progressed(t, w, restartGap, late)
	if err := m.Resume(); err != nil {
		t.Fatal(err)
	}
	for _, vip := range a.targets {
		a.waitAnswer(t, 5*time.Second, vip, m)
	}
	if after := epoch(t, m); after != before {
		t.Errorf("epoch %d became %d", before, after)
	}
}

// A node that sees its clients and not its peers is replaced. From the end of its lease on it claims
// nothing, and later it does not even have the addresses.
func TestAMasterThatIsCutOffFallsSilent(t *testing.T) {
	t.Parallel()
	l, a := leaseCluster(t)
	clients := connect(t, l, 50)
	m := master(t, l, "")
	others := others(l, m)
	waitSameFlows(t, l.Nodes(), 50)
	late := stalls(t)
	w := clients.Window()
	began := time.Now()
	heal := part(t, m, others)
	var next *lab.Node
	eventually(t, 20*time.Second, "the majority to choose another master", func(ctx context.Context) error {
		s, err := others[0].Status(ctx)
		if err != nil {
			return err
		}
		if next = l.Node(s.Master("default")); next == m || next == nil {
			return fmt.Errorf("it is %s", s.Master("default"))
		}
		return nil
	})
	for _, vip := range a.targets {
		a.waitAnswer(t, 5*time.Second, vip, next)
	}
	for _, vip := range []netip.Addr{lab.ServiceVIP(), lab.ServiceVIP6()} {
		last := a.silentAfter(t, began, 2*leaseLength, vip, m)
		t.Logf("%s: %s answered last %s after it was cut off, %s first after %s", vip, m.Name(), last, next.Name(),
			a.since(began, vip, next)[0].at.Sub(began))
		if last > leaseLength+leaseMargin+late() {
			t.Errorf("%s: answered for %s", vip, last)
		}
	}
	progressed(t, w, failoverGap, late)
	eventually(t, 5*time.Second, m.Name()+" to hold what it is to hold only", func(context.Context) error {
		return errors.Join(onlyHolder(l, next.Name(), lab.ServiceVIP(), lab.GatewayVIP()), heldBy(l, m, heldVIP))
	})
	expectWarning(t, m, "lease has run out")
	from := time.Now()
	heal()
	waitOnlyHolder(t, releaseTime, l, next.Name(), lab.ServiceVIP(), lab.GatewayVIP(), heldVIP)
	waitHealthy(t, l)
	for _, vip := range []netip.Addr{lab.ServiceVIP(), lab.ServiceVIP6()} {
		if again := a.since(from, vip, m); len(again) > 0 {
			t.Errorf("%s: answered again %s after it was let in", vip, again[0].at.Sub(from))
		}
	}
	from = time.Now()
	pass(t, leaseLength)
	if again := a.since(from, heldVIP, m); len(again) > 0 {
		t.Errorf("%s: two answer after the healing", heldVIP)
	}
}

// The last node of three is no quorum: it releases, and takes up again when there is one.
func TestTheLastNodeOfThreeReleasesAndTakesUpAgain(t *testing.T) {
	t.Parallel()
	l, a := leaseCluster(t)
	clients := connect(t, l, 50)
	m := master(t, l, "")
	late := stalls(t)
	w := clients.Window()
	began := time.Now()
	for _, n := range others(l, m) {
		if err := n.PowerOff(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	gone := time.Since(began)
	last := a.silentAfter(t, began, 2*leaseLength, lab.ServiceVIP(), m)
	t.Logf("the others were off after %s, the last answer came after %s", gone, last)
	if last > gone+leaseLength+leaseMargin+late() {
		t.Errorf("answered for %s", last-gone)
	}
	eventually(t, 5*time.Second, m.Name()+" to let go of the VIPs", func(context.Context) error {
		if heldBy(l, m, lab.ServiceVIP()) == nil {
			return errors.New("it has the address still")
		}
		return heldBy(l, m, heldVIP)
	})
	progressed(t, w, restartGap, late) // who knows where it is goes on
	for _, n := range others(l, m) {
		if err := n.PowerOn(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	waitHealthy(t, l)
	if now := master(t, l, ""); now != m {
		t.Errorf("%s is master", now.Name())
	}
	for _, vip := range a.targets {
		a.waitAnswer(t, 5*time.Second, vip, m)
	}
	progressed(t, clients.Window(), failoverGap, late)
}

// Who stops a daemon in order means to start it again: its VIPs are answered for meanwhile.
func TestARestartIsNotHeard(t *testing.T) {
	t.Parallel()
	l, a := leaseCluster(t)
	m := master(t, l, "")
	late := stalls(t)
	began := time.Now()
	if err := m.Terminate(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	pass(t, 2*leaseLength) // longer than the lease of a daemon that dies
	if err := m.Start(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, l)
	took := time.Since(began)
	for _, vip := range a.targets {
		most := a.longest(began, vip)
		t.Logf("%s: away for %s, %s between two answers at most", vip, took, most)
		if took < 4*time.Second && most > time.Second+late() {
			t.Errorf("%s: nobody answered for %s", vip, most)
		}
		if other := len(a.since(began, vip, m)); other == 0 {
			t.Errorf("%s: %s did not answer", vip, m.Name())
		}
	}
}

// part cuts all cables between a node and others, and leaves those to everybody else.
func part(t *testing.T, n *lab.Node, others []*lab.Node) (heal func()) {
	t.Helper()
	var ports []*impair.Port
	cut := func(at *lab.Node, from ...*lab.Node) {
		var rules []impair.Rule
		for _, o := range from {
			for _, mac := range o.MACs() {
				rules = append(rules, impair.Rule{Peer: mac, Drop: 1})
			}
		}
		for _, iface := range at.Interfaces() {
			do, name, err := at.Cable(iface)
			if err != nil {
				t.Fatal(err)
			}
			p, err := impair.Open(impair.Config{Do: do, Interface: name})
			if err != nil {
				t.Fatal(err)
			}
			ports = append(ports, p)
			if err := p.Set(impair.Rules{ToHost: rules}); err != nil {
				t.Fatal(err)
			}
		}
	}
	cut(n, others...)
	for _, o := range others {
		cut(o, n)
	}
	heal = func() {
		for _, p := range ports {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		ports = nil
	}
	t.Cleanup(heal)
	return heal
}

// heldBy is nil when the host has the address.
func heldBy(l *lab.Lab, n *lab.Node, addr netip.Addr) error {
	all, err := holders(l, addr)
	if err == nil && !slices.Contains(all, n.Name()) {
		return fmt.Errorf("%s does not hold %s, %v do", n.Name(), addr, all)
	}
	return err
}
