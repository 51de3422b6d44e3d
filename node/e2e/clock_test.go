//go:build pontoon_vm

package e2e

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
)

// stepClock moves this machine's clock by d.
func stepClock(t *testing.T, d time.Duration) {
	t.Helper()
	now := unix.NsecToTimespec(time.Now().Add(d).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Fatal(err)
	}
}

// Leases, detection and timers count time that nobody can set; what is told in
// times of the day (tokens, events) may be wrong meanwhile, and nothing else. It
// is built only where the clock is nobody else's, in a virtual machine (make test-vm).
func TestAStepOfTheClockHurtsNobody(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 20)
	m := master(t, l, "")
	before := epoch(t, m)
	// The last takes the clock back to where it was. Certificates are good from an
	// hour before they were made.
	for _, step := range []time.Duration{40 * time.Minute, -70 * time.Minute, 5 * time.Second, -5 * time.Second, 30 * time.Minute} {
		w := clients.Window()
		stepClock(t, step)
		pass(t, 3*time.Second)
		waitHealthy(t, l)
		unharmed(t, w)
		cli(t, l.Nodes()[1], "service", "update", "web", "--vip", lab.ServiceVIP().String(), "--port", "80", "--idle-timeout", "2h",
			"--endpoint", webEndpoint(l, 0), "--endpoint", webEndpoint(l, 1))
		if after := epoch(t, m); after != before || master(t, l, "") != m {
			t.Errorf("after a step of %s: epoch %d became %d", step, before, after)
		}
	}
	if err := m.PowerOff(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	w := clients.Window()
	master(t, l, m.Name())
	unharmed(t, w)
}

// webEndpoint is where the test service's endpoint i listens.
func webEndpoint(l *lab.Lab, i int) string {
	return netip.AddrPortFrom(l.Endpoints()[i].Addr(), webPort).String()
}
