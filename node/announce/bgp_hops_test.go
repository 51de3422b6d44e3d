package announce

import (
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"pontoon/internal/roottest"
)

// IPv6 routes over an IPv4 session name an address of this node. One that comes when the session is long up
// counts, and so does that it goes: the session stays.
func TestTheNextHopOfTheOtherFamilyFollowsTheAddresses(t *testing.T) {
	roottest.Need(t)
	if os.Getenv(insideEnv) == "" {
		runBetweenNamespaces(t, "^TestTheNextHopOfTheOtherFamilyFollowsTheAddresses$")
		return
	}
	lo := func(do, prefix string) {
		t.Helper()
		if out, err := exec.Command("ip", "addr", do, prefix, "dev", "lo").CombinedOutput(); err != nil {
			t.Fatalf("ip addr %s %s: %v: %s", do, prefix, err, out)
		}
	}
	one, two := netip.MustParseAddr("10.97.0.1"), netip.MustParseAddr("10.97.0.2")
	lo("add", "10.97.0.1/24")
	lo("add", "10.97.0.2/24")
	nodeCfg, routerCfg := pair(t, func(a, b *BGPPeer) {
		a.Address, a.Source, a.IPv6 = two, one, true
		b.Address, b.Source, b.IPv6 = one, two, true
	})
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg, route("2001:db8::1/128", 10))
	hop := func() netip.Addr { v, _ := router.view("2001:db8::1/128"); return v.NextHop }
	roottest.Eventually(t, "the route", func() bool { return hop().IsValid() })
	for _, a := range []string{"fd97::1", "fd97::2"} {
		lo("add", a+"/64")
		roottest.Eventually(t, "the next hop "+a, func() bool { return hop() == netip.MustParseAddr(a) })
		lo("del", a+"/64")
	}
	if f := node.peer(0).Flaps; f != 0 {
		t.Errorf("%d flaps", f)
	}
}
