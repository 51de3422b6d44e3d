package announce

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pontoon/internal/roottest"
)

// insideEnv names the router's namespace to the copy of the test that runs in the
// node's: GoBGP and the speaker open sockets on any thread, so the whole process has
// to be in the namespace.
const insideEnv = "PTBGP_ROUTER_NETNS"

var (
	nodeAddr4, routerAddr4 = netip.MustParseAddr("10.98.0.1"), netip.MustParseAddr("10.98.0.2")
	nodeAddr6, routerAddr6 = netip.MustParseAddr("fd98::1"), netip.MustParseAddr("fd98::2")
)

// atRouter is a path to a prefix as the router's own command shows it.
type atRouter struct {
	med, pref          int
	asPath, nextHop    string
	communities, large string // "65535:0 65001:7"
}

// bgpRouter is somebody else's BGP at the other end of the cable. Its sessions run over
// both families, each carries the routes of both, and has a password; that over IPv6
// has TTL security if the router is of another AS.
type bgpRouter interface {
	path(prefix string, from netip.Addr) (atRouter, bool)
	count(v6 bool, from netip.Addr) int
	shut(from netip.Addr, why string) // end the session, as its administrator
	reopen(from netip.Addr)
	heard(from netip.Addr) string // what it was told at the last end
}

func TestBGPWithOtherPeoplesRouters(t *testing.T) {
	roottest.Need(t)
	routerNS := os.Getenv(insideEnv)
	if routerNS == "" {
		runBetweenNamespaces(t, "^TestBGPWithOtherPeoplesRouters$")
		return
	}
	for name, begin := range map[string]func(*testing.T, string, uint32) bgpRouter{"frr": startFRR, "bird": startBIRD} {
		t.Run(name, func(t *testing.T) {
			t.Run("ebgp", func(t *testing.T) { external(t, begin(t, routerNS, 65002)) })
			t.Run("ibgp", func(t *testing.T) { internal(t, begin(t, routerNS, 65001)) })
		})
	}
}

// runBetweenNamespaces runs a test once more, in the first of two namespaces with a
// wire between them.
func runBetweenNamespaces(t *testing.T, test string) {
	t.Helper()
	id := fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano()%1_000_000)
	names := []string{"ptbgpa-" + id, "ptbgpb-" + id}
	t.Cleanup(func() {
		for _, name := range names {
			_ = exec.Command("ip", "netns", "del", name).Run()
		}
	})
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	for _, name := range names {
		ip("netns", "add", name)
	}
	ip("-n", names[0], "link", "add", "ptbgp0", "type", "veth", "peer", "name", "ptbgp1", "netns", names[1])
	for i, name := range names {
		link := fmt.Sprintf("ptbgp%d", i)
		ip("-n", name, "addr", "add", []netip.Addr{nodeAddr4, routerAddr4}[i].String()+"/24", "dev", link)
		ip("-n", name, "addr", "add", []netip.Addr{nodeAddr6, routerAddr6}[i].String()+"/64", "dev", link, "nodad")
		ip("-n", name, "link", "set", "lo", "up")
		ip("-n", name, "link", "set", link, "up")
	}
	cmd := exec.Command("nsenter", "--net="+filepath.Join("/run/netns", names[0]), os.Args[0], "-test.run", test, "-test.v", "-test.timeout=240s")
	cmd.Env = append(os.Environ(), insideEnv+"="+names[1])
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("in the namespaces: %v", err)
	}
	if !strings.Contains(string(out), "--- PASS") {
		t.Error("nothing passed in the namespaces")
	}
}

// interopConfig is the node's side of both sessions.
func interopConfig(as uint32) BGPConfig {
	peer := func(addr netip.Addr, password string) BGPPeer {
		return BGPPeer{Address: addr, AS: as, Password: password, IPv4: true, IPv6: true, GracefulRestart: true}
	}
	six := peer(routerAddr6, "secret")
	six.TTLSecurity = as != 65001
	return BGPConfig{
		AS: 65001, RouterID: netip.MustParseAddr("10.98.0.1"), Port: 179,
		Peers: []BGPPeer{peer(routerAddr4, "secret"), six},
		Import: []ImportRule{
			{Prefix: netip.MustParsePrefix("198.51.100.0/24")},
			{Prefix: netip.MustParsePrefix("2001:db8:5::/48")},
		},
	}
}

// interopRoutes is a route of each family.
func interopRoutes(med uint32) []Route {
	var out []Route
	for _, p := range []string{"192.0.2.1/32", "2001:db8::1/128"} {
		out = append(out, Route{
			Prefix: netip.MustParsePrefix(p), MED: med, LocalPref: 190, Prepend: 2,
			Communities: []uint32{65535 << 16, 65001<<16 | 7}, LargeCommunities: [][3]uint32{{65001, 1, 2}},
		})
	}
	return out
}

func external(t *testing.T, r bgpRouter) {
	node := newBGPSpeaker(t, interopConfig(65002), interopRoutes(20)...)
	node.waitUp(0)
	node.waitUp(1)
	attributesAt(t, r, atRouter{med: 20, asPath: "65001 65001 65001"})
	must(t, node.Announce(t.Context(), interopRoutes(10)))
	attributesAt(t, r, atRouter{med: 10, asPath: "65001 65001 65001"})
	if f := node.peer(0).Flaps + node.peer(1).Flaps; f != 0 {
		t.Errorf("%d flaps", f)
	}
	node.waitRoutes("198.51.100.0/24", "2001:db8:5::/48")
	if l := node.Learned(); l[0].NextHops[0] != routerAddr4 || l[1].NextHops[0] != routerAddr6 {
		t.Errorf("learned %v", l)
	}
	thousandAt(t, node, r)
	gracefulAt(t, node, r)
}

func internal(t *testing.T, r bgpRouter) {
	node := newBGPSpeaker(t, interopConfig(65001), interopRoutes(20)...)
	node.waitUp(0)
	node.waitUp(1)
	attributesAt(t, r, atRouter{med: 20, pref: 190})
	wordsAt(t, node, r)
}

// attributesAt checks each route at each session of the router.
func attributesAt(t *testing.T, r bgpRouter, want atRouter) {
	t.Helper()
	want.communities, want.large = "65535:0 65001:7", "65001:1:2"
	for _, prefix := range []string{"192.0.2.1/32", "2001:db8::1/128"} {
		want.nextHop = nodeAddr4.String()
		if strings.Contains(prefix, ":") {
			want.nextHop = nodeAddr6.String()
		}
		for _, from := range []netip.Addr{nodeAddr4, nodeAddr6} {
			roottest.Eventually(t, fmt.Sprintf("%s from %v with %+v", prefix, from, want), func() bool {
				got, ok := r.path(prefix, from)
				if want.pref == 0 {
					got.pref = 0 // what a router shows for none differs
				}
				return ok && got == want
			})
		}
	}
}

func thousandAt(t *testing.T, node *bgpSpeaker, r bgpRouter) {
	t.Helper()
	began := time.Now()
	must(t, node.Announce(t.Context(), append(manyRoutes(1000, 10), interopRoutes(10)...)))
	handed := time.Since(began)
	roottest.Eventually(t, "1001 prefixes over IPv4", func() bool { return r.count(false, nodeAddr4) == 1001 })
	took := time.Since(began)
	roottest.Eventually(t, "1001 prefixes over IPv6", func() bool { return r.count(false, nodeAddr6) == 1001 })
	t.Logf("1000 routes: handed over in %v, seen with the router's command after %v", handed, took)
	must(t, node.Announce(t.Context(), interopRoutes(10)))
	roottest.Eventually(t, "one prefix", func() bool { return r.count(false, nodeAddr4) == 1 && r.count(true, nodeAddr6) == 1 })
}

// gracefulAt restarts the node as a new daemon would, while the router's routes are
// looked at all the time, and then has it leave for good.
func gracefulAt(t *testing.T, node *bgpSpeaker, r bgpRouter) {
	t.Helper()
	kept := func() bool {
		t.Helper()
		counts := []int{r.count(false, nodeAddr4), r.count(true, nodeAddr4), r.count(false, nodeAddr6), r.count(true, nodeAddr6)}
		ok := slices.Equal(counts, []int{1, 1, 1, 1})
		if !ok {
			t.Logf("routes over IPv4: %d and %d, over IPv6: %d and %d", counts[0], counts[1], counts[2], counts[3])
		}
		return ok
	}
	node.Leave(true)
	node.stop()
	for range 5 {
		if !kept() {
			t.Error("the router dropped the routes at a graceful end")
		}
	}
	again := newBGPSpeaker(t, interopConfig(65002), interopRoutes(40)...)
	for !t.Failed() && (again.peer(0).State != StateEstablished || again.peer(1).State != StateEstablished) {
		if !kept() {
			t.Error("the router dropped the routes during the restart")
		}
	}
	attributesAt(t, r, atRouter{med: 40, asPath: "65001 65001 65001"})
	if !kept() {
		t.Error("routes are missing after the restart")
	}
	again.Leave(false)
	began := time.Now()
	again.stop()
	roottest.Eventually(t, "no routes after leaving for good", func() bool {
		return r.count(false, nodeAddr4) == 0 && r.count(true, nodeAddr4) == 0 && r.count(false, nodeAddr6) == 0 && r.count(true, nodeAddr6) == 0
	})
	t.Logf("withdrawn after %v", time.Since(began))
	roottest.Eventually(t, "the router knows why", func() bool {
		return strings.Contains(r.heard(nodeAddr4), "this node stops speaking BGP")
	})
}

// wordsAt ends sessions and looks at what is said of it here.
func wordsAt(t *testing.T, node *bgpSpeaker, r bgpRouter) {
	t.Helper()
	r.shut(nodeAddr6, "disks are replaced")
	roottest.Eventually(t, "the administrator's words", func() bool {
		return strings.Contains(node.peer(1).Error, "disks are replaced")
	})
	r.reopen(nodeAddr6)
	node.waitUp(1)
	cfg := interopConfig(65001)
	cfg.Peers[0].Password = "another"
	if _, err := node.Configure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	roottest.Eventually(t, "words about the password", func() bool {
		return strings.Contains(node.peer(0).Error, "the password may differ")
	})
	if s := node.peer(1); s.State != StateEstablished {
		t.Errorf("the other session: %+v", s)
	}
	cfg = interopConfig(65001)
	cfg.Peers[1].LocalAS, cfg.Peers[1].AS = 65010, 65020
	if _, err := node.Configure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	node.waitUp(0)
	roottest.Eventually(t, "words about the AS", func() bool {
		e := node.peer(1).Error
		return strings.Contains(e, "it is AS 65001, and not AS 65020") || strings.Contains(e, "it refuses AS 65010")
	})
}
