package announce

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"pontoon/internal/roottest"
)

// gone watches a router's routes and notes when one of them is missing.
func (s *bgpSpeaker) watch(want int) (stop func() (missing bool)) {
	ctx, cancel := context.WithCancel(context.Background())
	var missing atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			if len(s.Learned()) < want {
				missing.Store(true)
			}
			<-tick.C
		}
	}()
	return func() bool { cancel(); <-done; return missing.Load() }
}

// A daemon that restarts gracefully takes its routes from nobody; one of them that
// is not wanted any more afterwards goes, but not before the rest has been told.
func TestGracefulRestartKeepsTheRoutes(t *testing.T) {
	nodeCfg, routerCfg := pair(t, nil)
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg, manyRoutes(3, 10)...)
	roottest.Eventually(t, "three routes", func() bool { return len(router.Learned()) == 3 })
	node.waitUp(0)
	missing := router.watch(2)
	node.Leave(true)
	node.stop()
	roottest.Eventually(t, "the router notes the end", func() bool { return router.peer(0).State != StateEstablished })
	if n := len(router.Learned()); n != 3 {
		t.Errorf("%d routes are kept, want 3", n)
	}

	newBGPSpeaker(t, nodeCfg, manyRoutes(2, 20)...) // as a new daemon would
	router.waitUp(0)
	roottest.Eventually(t, "the new attributes, and the third route gone", func() bool {
		views := router.Received()
		return len(views) == 2 && views[0].MED == 20 && views[1].MED == 20
	})
	if missing() {
		t.Error("routes were missing meanwhile")
	}
}

// The same for a daemon that was killed: what its kernel says then is the same as
// what a graceful end says.
func TestGracefulRestartTimeRunsOut(t *testing.T) {
	nodeCfg, routerCfg := pair(t, nil)
	nodeCfg.RestartTime = time.Second
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg, manyRoutes(3, 10)...)
	roottest.Eventually(t, "three routes", func() bool { return len(router.Learned()) == 3 })
	node.waitUp(0)
	node.Leave(true)
	node.stop()
	roottest.Eventually(t, "the router notes the end", func() bool { return router.peer(0).State != StateEstablished })
	if n := len(router.Learned()); n != 3 {
		t.Errorf("%d routes are kept, want 3", n)
	}
	router.waitRoutes()
}

// The negative twins: whoever leaves for good, or did not agree to graceful restart,
// takes its routes along.
func TestOtherEndsTakeTheRoutesAlong(t *testing.T) {
	for name, c := range map[string]struct {
		change   func(a, b *BGPPeer)
		graceful bool
	}{
		"left for good":        {nil, false},
		"not agreed here":      {func(a, _ *BGPPeer) { a.GracefulRestart = false }, true},
		"not agreed there":     {func(_, b *BGPPeer) { b.GracefulRestart = false }, true},
		"not agreed, for good": {func(a, b *BGPPeer) { a.GracefulRestart, b.GracefulRestart = false, false }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodeCfg, routerCfg := pair(t, c.change)
			router := newBGPSpeaker(t, routerCfg)
			node := newBGPSpeaker(t, nodeCfg, manyRoutes(3, 10)...)
			roottest.Eventually(t, "three routes", func() bool { return len(router.Learned()) == 3 })
			node.waitUp(0)
			node.Leave(c.graceful)
			began := time.Now()
			node.stop()
			router.waitRoutes()
			t.Logf("gone after %v: %s", time.Since(began), router.peer(0).Error)
			if !c.graceful && router.peer(0).Error == "" {
				t.Error("the router does not know why")
			}
		})
	}
}

// A lost connection is no reason to drop the routes either, and no end of the session's
// attempts: the neighbour is told that forwarding went on.
func TestALostConnectionKeepsTheRoutesAndComesBack(t *testing.T) {
	nodeCfg, routerCfg := pair(t, nil)
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg, manyRoutes(3, 10)...)
	roottest.Eventually(t, "three routes", func() bool { return len(router.Learned()) == 3 })
	node.waitUp(0)
	missing := router.watch(3)
	must(t, node.do(t.Context(), func(r *bgpRun) { _ = r.sessions[nodeCfg.Peers[0].Address].conn.Close() }))
	roottest.Eventually(t, "the router notes", func() bool { return router.peer(0).Flaps == 1 })
	router.waitUp(0)
	node.waitUp(0)
	must(t, node.Announce(t.Context(), manyRoutes(3, 20)))
	roottest.Eventually(t, "the new attributes", func() bool {
		v := router.Received()
		return len(v) == 3 && v[0].MED == 20 && v[2].MED == 20
	})
	if missing() {
		t.Error("routes were missing meanwhile")
	}
}

func TestARunLeavesNoGoroutinesBehind(t *testing.T) {
	before := goleak.IgnoreCurrent()
	nodeCfg, routerCfg := pair(t, nil)
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg, route("192.0.2.1/32", 10))
	router.waitRoutes("192.0.2.1/32")
	changed := nodeCfg
	changed.RouterID = routerCfg.RouterID.Next()
	if _, err := node.Configure(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	roottest.Eventually(t, "another server's session", func() bool { return router.peer(0).RouterID == changed.RouterID })
	node.Leave(true)
	node.stop()
	router.stop()
	// GoBGP leaves behind the queue of a session that still had something to say (DESIGN.md).
	goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("github.com/eapache/channels.(*InfiniteChannel).infiniteBuffer"))
}

// A session that another setting begins anew is no reason either, if it is one of the same speaker.
func TestAChangedSettingKeepsTheRoutes(t *testing.T) {
	nodeCfg, routerCfg := pair(t, nil)
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg, manyRoutes(3, 10)...)
	roottest.Eventually(t, "three routes", func() bool { return len(router.Learned()) == 3 })
	node.waitUp(0)
	missing := router.watch(3)
	for i, hold := range []time.Duration{6 * time.Second, 5 * time.Second} {
		nodeCfg.Peers = []BGPPeer{nodeCfg.Peers[0]}
		nodeCfg.Peers[0].Hold = hold
		reset, err := node.Configure(t.Context(), nodeCfg)
		if err != nil || len(reset) != 1 {
			t.Fatal(reset, err)
		}
		roottest.Eventually(t, "the session to be back with its new hold time", func() bool {
			p := router.peer(0)
			return p.State == StateEstablished && p.HoldTime == hold && p.Flaps == i+1
		})
	}
	if missing() {
		t.Error("routes were missing meanwhile")
	}
	nodeCfg.Peers = []BGPPeer{nodeCfg.Peers[0]}
	nodeCfg.Peers[0].GracefulRestart = false
	missing = router.watch(3)
	if _, err := node.Configure(t.Context(), nodeCfg); err != nil {
		t.Fatal(err)
	}
	roottest.Eventually(t, "the routes again", func() bool { return router.peer(0).Flaps == 3 && len(router.Learned()) == 3 })
	if !missing() {
		t.Error("the router did not hear of the end of graceful restart")
	}
}
