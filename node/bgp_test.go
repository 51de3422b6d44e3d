package node

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"pontoon/internal/roottest"
	"pontoon/node/announce"
	"pontoon/node/plan"
)

// neighbour is a routing with a router on the loopback that takes what it announces.
type neighbour struct {
	t      *testing.T
	r      *routing
	router *announce.BGP
	config announce.BGPConfig // of the routing
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func newNeighbour(t *testing.T) *neighbour {
	t.Helper()
	here, there, port := addr("127.2.0.1"), addr("127.2.0.2"), freePort(t)
	m := &member{cfg: Config{Name: "lb1"}, logger: slog.New(slog.DiscardHandler), events: newEventLog(func(Event) {}), store: newStore()}
	m.accessions.wake = make(chan struct{}, 1)
	m.detector = newDetector(m)
	n := &neighbour{t: t, r: newRouting(m), router: announce.NewBGP(announce.BGPOptions{})}
	m.routing = n.r
	n.r.imports.clean = true // the test's machine is left alone
	n.config = announce.BGPConfig{AS: 64512, RouterID: addr("10.9.9.1"), Peers: []announce.BGPPeer{{
		Address: there, AS: 65001, Port: port, Source: here, IPv4: true, IPv6: true, GracefulRestart: true,
	}}}
	router := announce.BGPConfig{AS: 65001, RouterID: addr("10.9.9.2"), Port: port, Import: announce.ImportAll(), Peers: []announce.BGPPeer{{
		Address: here, AS: 64512, Source: there, Passive: true, IPv4: true, IPv6: true, GracefulRestart: true,
	}}}
	if _, err := n.router.Configure(t.Context(), router); err != nil {
		t.Fatal(err)
	}
	if err := n.router.Announce(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	n.start(n.router.Run)
	return n
}

// start runs something until stop, or until the test ends.
func (n *neighbour) start(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	over := false
	stop = func() {
		if cancel(); over {
			return
		}
		over = true
		if err := <-ended; err != nil {
			n.t.Error(err)
		}
	}
	n.t.Cleanup(stop)
	return stop
}

// told waits until the router has the route to an address with this MED.
func (n *neighbour) told(a string, med uint32) {
	n.t.Helper()
	roottest.Eventually(n.t, "the router to know "+a, func() bool {
		for _, v := range n.router.Received() {
			if v.Prefix.Addr() == addr(a) && v.MED == med {
				return true
			}
		}
		return false
	})
}

func (n *neighbour) toldNothing() {
	n.t.Helper()
	roottest.Eventually(n.t, "the router to know nothing", func() bool { return len(n.router.Received()) == 0 })
}

func (n *neighbour) hand(routes ...plan.Route) {
	n.r.hand(speaking{config: n.config, known: true, graceful: true, routes: routes})
}

func TestTheNewestWishReachesTheRouterWithoutASessionReset(t *testing.T) {
	n := newNeighbour(t)
	stop := n.start(n.r.run)
	// Nothing is said before it is known what.
	n.r.hand(speaking{config: n.config, graceful: true})
	first := routeTo("203.0.113.1", true)
	n.hand(first)
	n.told("203.0.113.1", 10)
	first.MED, first.Epoch = 20, 7
	began := time.Now()
	n.hand(first, routeTo("203.0.113.2", true))
	n.told("203.0.113.1", 20)
	t.Logf("the router knew after %s", time.Since(began))
	n.told("203.0.113.2", 10)
	roottest.Eventually(t, "the mastership is noted as told", func() bool {
		n.r.m.accessions.mu.Lock()
		defer n.r.m.accessions.mu.Unlock()
		return !n.r.m.accessions.told[byRoute][7].IsZero()
	})
	if got := n.r.announcedNow(); got != 2 {
		t.Errorf("it says that it announces %d routes", got)
	}
	n.hand()
	n.toldNothing()
	if peers := n.router.Peers(); peers[0].Flaps != 0 || peers[0].State != announce.StateEstablished {
		t.Errorf("%+v", peers)
	}
	// A stop in order, to come back, leaves the routes with the router.
	n.hand(first)
	n.told("203.0.113.1", 20)
	stop()
	if !n.r.comesBack() {
		t.Error("it does not say that it comes back")
	}
	roottest.Eventually(t, "the router to find the session gone", func() bool { return n.router.Peers()[0].State != announce.StateEstablished })
	n.told("203.0.113.1", 20)
}

func TestWhoPartsLeavesNoRouteBehind(t *testing.T) {
	n := newNeighbour(t)
	stop := n.start(n.r.run)
	n.hand(routeTo("203.0.113.1", true))
	n.told("203.0.113.1", 10)
	n.r.part()
	n.hand(routeTo("203.0.113.1", true), routeTo("203.0.113.3", true)) // the driver's last word changes nothing of it
	stop()
	n.toldNothing()
	if n.r.comesBack() {
		t.Error("it says that it comes back")
	}
}

func TestASettingThatIsWrongKeepsNoRouteBack(t *testing.T) {
	n := newNeighbour(t)
	n.start(n.r.run)
	n.hand(routeTo("203.0.113.1", true))
	n.told("203.0.113.1", 10)
	good := n.config
	n.config.RouterID = netip.Addr{}
	n.hand(routeTo("203.0.113.1", true), routeTo("203.0.113.2", true))
	n.told("203.0.113.2", 10)
	roottest.Eventually(t, "a warning", func() bool { return len(n.r.warnings()) == 1 })
	n.config = good
	n.hand()
	n.toldNothing()
	roottest.Eventually(t, "the warning to go", func() bool { return len(n.r.warnings()) == 0 })
}

// A port that is taken hinders listening, and nothing else: the import rules are the new ones, and the trouble is told until
// it is over.
func TestATakenPortKeepsNoRuleBack(t *testing.T) {
	n := newNeighbour(t)
	n.start(n.r.bgp.Run) // without the share that would touch this machine's routes
	n.start(n.r.apply)
	n.hand(routeTo("203.0.113.1", true))
	n.told("203.0.113.1", 10)
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n.config.Port = uint16(l.Addr().(*net.TCPAddr).Port)
	n.config.Import, n.config.MaxImport = []announce.ImportRule{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}}, 7
	n.hand(routeTo("203.0.113.1", true), routeTo("203.0.113.2", true))
	n.told("203.0.113.2", 10)
	roottest.Eventually(t, "a warning", func() bool { return len(n.r.warnings()) == 1 })
	n.r.mu.Lock()
	rules, whole := len(n.r.config.Import), n.r.whole
	n.r.mu.Unlock()
	if rules != 1 || whole {
		t.Errorf("%d rules are in force; all of it is done: %v", rules, whole)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	roottest.Eventually(t, "the warning to go", func() bool { return len(n.r.warnings()) == 0 })
}
