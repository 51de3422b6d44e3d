package announce

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pontoon/internal/roottest"
)

// signalled is a router that wakes who waits for it.
func signalled(t testing.TB, cfg BGPConfig) (*bgpSpeaker, <-chan struct{}) {
	wake := make(chan struct{}, 1)
	s := &bgpSpeaker{t: t, ended: make(chan error, 1)}
	s.BGP = NewBGP(BGPOptions{Notify: func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}})
	_, err := s.Configure(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Announce(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	s.start()
	return s, wake
}

// holds waits until the router was told of exactly these routes.
func (s *bgpSpeaker) holds(wake <-chan struct{}, want routeSet) {
	s.t.Helper()
	deadline := time.After(roottest.Patient(10 * time.Second))
	for {
		views := s.Received()
		same := len(views) == len(want)
		for _, v := range views {
			w, ok := want[v.Prefix]
			same = same && ok && v.MED == w.MED && len(v.ASPath) == 1+int(w.Prepend) &&
				len(v.Communities) == len(w.Communities) && len(v.LargeCommunities) == len(w.LargeCommunities)
		}
		if same {
			return
		}
		select {
		case <-wake:
		case <-deadline:
			s.t.Fatalf("the router holds %v, want %v", views, want)
		}
	}
}

func TestThePeerHoldsExactlyTheLastSet(t *testing.T) {
	nodeCfg, routerCfg := pair(t, nil)
	router, wake := signalled(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg)
	node.waitUp(0)
	rapid.Check(t, func(rt *rapid.T) {
		var last []Route
		for range rapid.IntRange(1, 5).Draw(rt, "sets") {
			last = drawRoutes(rt)
			if err := node.Announce(context.Background(), last); err != nil {
				rt.Fatal(err)
			}
		}
		want, _ := newRouteSet(last)
		router.holds(wake, want)
	})
	if f := node.peer(0).Flaps; f != 0 {
		t.Errorf("%d flaps", f)
	}
}

// BenchmarkAnnounce is how long it takes from a change of MED until the neighbour has
// it in its table, for so many routes at once.
func BenchmarkAnnounce(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			nodeCfg, routerCfg := pair(b, nil)
			router, wake := signalled(b, routerCfg)
			node, _ := signalled(b, nodeCfg)
			med := uint32(10)
			routes := manyRoutes(n, med)
			want, _ := newRouteSet(routes)
			announce := func() {
				if err := node.Announce(context.Background(), routes); err != nil {
					b.Fatal(err)
				}
				router.holds(wake, want)
			}
			announce()
			for b.Loop() {
				med = 30 - med
				for i := range routes {
					routes[i].MED = med
				}
				want, _ = newRouteSet(routes)
				announce()
			}
		})
	}
}

// BenchmarkSession is how long it takes from the configuration to an established session.
func BenchmarkSession(b *testing.B) {
	nodeCfg, routerCfg := pair(b, func(_, b *BGPPeer) { b.Passive, b.GracefulRestart = true, false })
	router, _ := signalled(b, routerCfg)
	roottest.Eventually(b, "the router waits", func() bool { return router.peer(0).State == StateActive })
	node, wake := signalled(b, BGPConfig{})
	for b.Loop() {
		if _, err := node.Configure(context.Background(), nodeCfg); err != nil {
			b.Fatal(err)
		}
		for node.peer(0).State != StateEstablished {
			<-wake
		}
		b.StopTimer()
		for _, c := range []struct {
			s   *bgpSpeaker
			cfg BGPConfig
		}{{node, BGPConfig{}}, {router, BGPConfig{}}, {router, routerCfg}} { // a new session is no flapping one
			if _, err := c.s.Configure(context.Background(), c.cfg); err != nil {
				b.Fatal(err)
			}
		}
		roottest.Eventually(b, "the router waits", func() bool { return router.peer(0).State == StateActive })
		b.StartTimer()
	}
}
