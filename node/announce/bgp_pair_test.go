package announce

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pontoon/internal/roottest"
)

// bgpSpeaker is a BGP speaker that runs for a test.
type bgpSpeaker struct {
	*BGP
	t        testing.TB
	notified atomic.Int64
	cancel   context.CancelFunc
	ended    chan error
}

func newBGPSpeaker(t testing.TB, cfg BGPConfig, routes ...Route) *bgpSpeaker {
	t.Helper()
	s := &bgpSpeaker{t: t, ended: make(chan error, 1)}
	s.BGP = NewBGP(BGPOptions{Logger: testLog(t, cfg.RouterID), Notify: func() { s.notified.Add(1) }})
	if _, err := s.Configure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if err := s.Announce(t.Context(), routes); err != nil {
		t.Fatal(err)
	}
	s.start()
	return s
}

func (s *bgpSpeaker) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() { s.ended <- s.Run(ctx) }()
	s.t.Cleanup(func() { s.stop() })
}

// stop ends the run and waits for it.
func (s *bgpSpeaker) stop() {
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.cancel = nil
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("run: %v", err)
		}
	case <-time.After(roottest.Patient(10 * time.Second)):
		s.t.Error("the speaker does not end")
	}
}

func testLog(t testing.TB, id netip.Addr) *slog.Logger {
	level := slog.LevelInfo
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: level})).With("self", id)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// freePorts is some TCP ports nobody listens on.
func freePorts(t testing.TB, n int) []uint16 {
	t.Helper()
	var out []uint16
	for range n {
		l, err := net.Listen("tcp4", "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, uint16(l.Addr().(*net.TCPAddr).Port))
	}
	return out
}

// pair is the configurations of two speakers on the loopback, 127.1.0.1 in AS 65001
// and 127.1.0.2 in AS 65002. The second one, the router, imports everything.
func pair(t testing.TB, change func(a, b *BGPPeer)) (node, router BGPConfig) {
	t.Helper()
	ports := freePorts(t, 2)
	one, two := netip.MustParseAddr("127.1.0.1"), netip.MustParseAddr("127.1.0.2")
	atNode := BGPPeer{Address: two, AS: 65002, Port: ports[1], Source: one, IPv4: true, GracefulRestart: true}
	atRouter := BGPPeer{Address: one, AS: 65001, Port: ports[0], Source: two, IPv4: true, GracefulRestart: true}
	if change != nil {
		change(&atNode, &atRouter)
	}
	node = BGPConfig{AS: 65001, RouterID: netip.MustParseAddr("10.0.0.1"), Port: ports[0], Peers: []BGPPeer{atNode}}
	router = BGPConfig{
		AS: 65002, RouterID: netip.MustParseAddr("10.0.0.2"), Port: ports[1], Peers: []BGPPeer{atRouter},
		Import: ImportAll(), Multipath: true,
	}
	return node, router
}

func (s *bgpSpeaker) peer(i int) PeerStatus {
	s.t.Helper()
	peers := s.Peers()
	if i >= len(peers) {
		s.t.Fatalf("no peer %d in %v", i, peers)
	}
	return peers[i]
}

func (s *bgpSpeaker) waitUp(i int) {
	s.t.Helper()
	roottest.Eventually(s.t, fmt.Sprintf("session %d is established", i), func() bool { return s.peer(i).State == StateEstablished })
}

// waitRoutes waits until exactly these prefixes are learned.
func (s *bgpSpeaker) waitRoutes(prefixes ...string) {
	s.t.Helper()
	var got []string
	defer func() {
		if s.t.Failed() {
			s.t.Logf("learned: %v", got)
		}
	}()
	roottest.Eventually(s.t, fmt.Sprintf("exactly %v learned", prefixes), func() bool {
		got = got[:0]
		for _, l := range s.Learned() {
			got = append(got, l.Prefix.String())
		}
		return slices.Equal(got, prefixes)
	})
}

// view is what the router received for a prefix.
func (s *bgpSpeaker) view(prefix string) (RouteView, bool) {
	for _, v := range s.Received() {
		if v.Prefix.String() == prefix {
			return v, true
		}
	}
	return RouteView{}, false
}

func route(prefix string, med uint32) Route {
	return Route{Prefix: netip.MustParsePrefix(prefix), MED: med, LocalPref: 200}
}

func TestSessionComesUpAndRoutesArriveWithTheirAttributes(t *testing.T) {
	nodeCfg, routerCfg := pair(t, nil)
	router := newBGPSpeaker(t, routerCfg)
	began := time.Now()
	want := Route{
		Prefix: netip.MustParsePrefix("192.0.2.1/32"), MED: 20, LocalPref: 190, Prepend: 3,
		Communities: []uint32{65535 << 16, 65001<<16 | 7}, LargeCommunities: [][3]uint32{{65001, 1, 2}},
	}
	node := newBGPSpeaker(t, nodeCfg, want)
	router.waitRoutes("192.0.2.1/32")
	t.Logf("from the start to the route: %v", time.Since(began))
	v, _ := router.view("192.0.2.1/32")
	if v.MED != 20 || v.NextHop.String() != "127.1.0.1" || !slices.Equal(v.ASPath, []uint32{65001, 65001, 65001, 65001}) ||
		!slices.Equal(v.Communities, want.Communities) || !slices.Equal(v.LargeCommunities, want.LargeCommunities) ||
		v.LocalPref != defaultLocalPref || !v.Best {
		t.Errorf("received %+v", v)
	}
	node.waitUp(0)
	s := node.peer(0)
	if s.Error != "" || s.Advertised != 1 || s.HoldTime != defaultHold || s.RouterID != routerCfg.RouterID || s.Flaps != 0 || s.MessagesOut < 3 {
		t.Errorf("status %+v", s)
	}
	if a := node.Advertised(); len(a) != 1 || a[0].MED != 20 || len(a[0].ASPath) != 4 {
		t.Errorf("advertised %+v", a)
	}
}
