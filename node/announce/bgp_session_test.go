package announce

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pontoon/internal/roottest"
)

func TestAttributesChangeWithoutWithdrawingOrFlapping(t *testing.T) {
	nodeCfg, routerCfg := pair(t, nil)
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg, route("192.0.2.1/32", 10))
	router.waitRoutes("192.0.2.1/32")
	for med := uint32(20); med < 40; med++ {
		must(t, node.Announce(t.Context(), []Route{route("192.0.2.1/32", med)}))
		roottest.Eventually(t, fmt.Sprintf("MED %d arrives", med), func() bool {
			v, ok := router.view("192.0.2.1/32")
			if !ok {
				t.Fatal("the route was withdrawn")
			}
			return v.MED == med
		})
	}
	if f := node.peer(0).Flaps + router.peer(0).Flaps; f != 0 {
		t.Errorf("%d flaps", f)
	}
	must(t, node.Announce(t.Context(), nil))
	router.waitRoutes()
}

func TestChangingOnePeerLeavesTheOthersUp(t *testing.T) {
	nodeCfg, one := pair(t, nil)
	_, two := pair(t, nil)
	other := netip.MustParseAddr("127.1.0.3")
	two.Peers[0].Source, two.Peers[0].Port = other, nodeCfg.Port
	two.RouterID = netip.MustParseAddr("10.0.0.3")
	second := nodeCfg.Peers[0]
	second.Address, second.Port = other, two.Port
	nodeCfg.Peers = append(nodeCfg.Peers, second)

	r1, r2 := newBGPSpeaker(t, one), newBGPSpeaker(t, two)
	node := newBGPSpeaker(t, nodeCfg, route("192.0.2.1/32", 10))
	r1.waitRoutes("192.0.2.1/32")
	r2.waitRoutes("192.0.2.1/32")
	node.waitUp(0)
	node.waitUp(1)
	since := node.peer(0).Since

	changed := nodeCfg
	changed.Peers = []BGPPeer{nodeCfg.Peers[0], nodeCfg.Peers[1]}
	changed.Peers[1].Hold = 30 * time.Second
	reset, err := node.Configure(t.Context(), changed)
	if err != nil || len(reset) != 1 || reset[0] != other {
		t.Fatalf("reset %v, %v", reset, err)
	}
	roottest.Eventually(t, "the session with the new hold time", func() bool {
		s := node.peer(1)
		return s.State == StateEstablished && s.HoldTime == defaultHold // the router's is shorter
	})
	if s := node.peer(0); s.State != StateEstablished || s.Since != since {
		t.Errorf("the other session was touched: %+v", s)
	}
	if reset, err = node.Configure(t.Context(), changed); err != nil || len(reset) != 0 {
		t.Errorf("the same configuration again resets %v, %v", reset, err)
	}
	changed.Peers = changed.Peers[:1]
	if _, err = node.Configure(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	roottest.Eventually(t, "the removed neighbour knows", func() bool {
		return strings.Contains(r2.peer(0).Error, "removed from its configuration")
	})
	if s := node.peer(0); s.State != StateEstablished || s.Since != since {
		t.Errorf("the other session was touched: %+v", s)
	}
	changed.RouterID = netip.MustParseAddr("10.0.0.77")
	if reset, err = node.Configure(t.Context(), changed); err != nil || len(reset) != 1 {
		t.Errorf("another router id resets %v, %v", reset, err)
	}
	roottest.Eventually(t, "a session with the new router id", func() bool {
		s := r1.peer(0)
		return s.State == StateEstablished && s.RouterID == changed.RouterID
	})
}

// Whoever opens the connection, and whatever it is guarded with, the session comes up.
func TestFormsOfSessions(t *testing.T) {
	for name, change := range map[string]func(a, b *BGPPeer){
		"node passive":     func(a, _ *BGPPeer) { a.Passive = true },
		"router passive":   func(_, b *BGPPeer) { b.Passive = true },
		"password":         func(a, b *BGPPeer) { a.Password, b.Password = "secret", "secret" },
		"password passive": func(a, b *BGPPeer) { a.Password, b.Password, a.Passive = "secret", "secret", true },
		"ttl security":     func(a, b *BGPPeer) { a.TTLSecurity, b.TTLSecurity = true, true },
		"multihop":         func(a, b *BGPPeer) { a.Multihop, b.Multihop = 4, 4 },
		"ibgp":             func(a, b *BGPPeer) { a.AS, b.LocalAS = 65001, 65001 },
		"local as":         func(a, b *BGPPeer) { a.LocalAS, b.AS = 65009, 65009 },
		"no graceful":      func(a, b *BGPPeer) { a.GracefulRestart = false },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodeCfg, routerCfg := pair(t, change)
			router := newBGPSpeaker(t, routerCfg)
			r := route("192.0.2.1/32", 10)
			r.Prepend = 2
			node := newBGPSpeaker(t, nodeCfg, r)
			router.waitRoutes("192.0.2.1/32")
			node.waitUp(0)
			v, _ := router.view("192.0.2.1/32")
			path, pref := "[65001 65001 65001]", uint32(defaultLocalPref)
			switch name {
			case "ibgp":
				path, pref = "[]", 200
			case "local as":
				path = "[65009 65009 65009]"
			}
			if fmt.Sprint(v.ASPath) != path || v.LocalPref != pref || len(v.LargeCommunities) != 0 {
				t.Errorf("received %+v, want path %s", v, path)
			}
		})
	}
}

// A mistake shows as such, at both ends where both can know.
func TestMistakesShowInPlainWords(t *testing.T) {
	for name, c := range map[string]struct {
		change       func(a, b *BGPPeer)
		node, router string
	}{
		"wrong AS here":       {func(a, _ *BGPPeer) { a.AS = 65010 }, "it is AS 65002, and not AS 65010", "it refuses AS 65002"},
		"wrong AS there":      {func(_, b *BGPPeer) { b.AS = 65010 }, "it refuses AS 65001: it expects another AS", "it is AS 65001, and not AS 65010"},
		"another password":    {func(a, b *BGPPeer) { a.Password, b.Password = "one", "two" }, "no answer from 127.1.0.2", "the password may differ"},
		"no password there":   {func(a, _ *BGPPeer) { a.Password = "one" }, "the password may differ", "expects a password"},
		"nobody listens":      {func(a, b *BGPPeer) { a.Port, b.Passive = 1, true }, "connection refused by 127.1.0.2:1", ""},
		"no such source":      {func(a, b *BGPPeer) { a.Source, b.Passive = netip.MustParseAddr("198.51.100.1"), true }, "source address 198.51.100.1 is not", ""},
		"not known there":     {func(a, b *BGPPeer) { b.Address = netip.MustParseAddr("127.1.0.9") }, "without a word", ""},
		"everybody passive":   {func(a, b *BGPPeer) { a.Passive, b.Passive = true, true }, "it has not connected", "it has not connected"},
		"unlike address used": {func(a, b *BGPPeer) { a.Source, b.Passive = netip.MustParseAddr("127.1.0.8"), true }, "without a word", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodeCfg, routerCfg := pair(t, c.change)
			router := newBGPSpeaker(t, routerCfg)
			node := newBGPSpeaker(t, nodeCfg, route("192.0.2.1/32", 10))
			roottest.Eventually(t, "the words at the node", func() bool { return strings.Contains(node.peer(0).Error, c.node) })
			roottest.Eventually(t, "the words at the router", func() bool { return strings.Contains(router.peer(0).Error, c.router) })
			if s := node.peer(0); s.State == StateEstablished {
				t.Errorf("a session came up: %+v", s)
			}
		})
	}
}

func TestAPasswordComesAndGoes(t *testing.T) {
	nodeCfg, routerCfg := pair(t, func(a, _ *BGPPeer) { a.Passive = true })
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg, route("192.0.2.1/32", 10))
	for _, password := range []string{"first", "second", ""} {
		nodeCfg.Peers[0].Password, routerCfg.Peers[0].Password = password, password
		for s, cfg := range map[*bgpSpeaker]BGPConfig{node: nodeCfg, router: routerCfg} {
			if _, err := s.Configure(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
		}
		router.waitUp(0)
		router.waitRoutes("192.0.2.1/32")
	}
}

func TestTooManyPrefixesCloseTheSession(t *testing.T) {
	nodeCfg, routerCfg := pair(t, func(_, b *BGPPeer) { b.MaxPrefixes = 3 })
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg, manyRoutes(3, 10)...)
	roottest.Eventually(t, "three prefixes", func() bool { return len(router.Learned()) == 3 })
	must(t, node.Announce(t.Context(), manyRoutes(4, 10)))
	roottest.Eventually(t, "words at the router", func() bool {
		s := router.peer(0)
		return s.State == StateIdle && strings.HasPrefix(s.Error, "it sent more than 3 prefixes")
	})
	roottest.Eventually(t, "words at the node", func() bool {
		return node.peer(0).Error == "it received more prefixes than it allows"
	})
	router.waitRoutes()
	// A higher limit lets it in without the minute of waiting.
	routerCfg.Peers[0].MaxPrefixes = 4
	if _, err := router.Configure(t.Context(), routerCfg); err != nil {
		t.Fatal(err)
	}
	roottest.Eventually(t, "four prefixes", func() bool { return len(router.Learned()) == 4 })
	routerCfg.Peers[0].MaxPrefixes = 5
	since := router.peer(0).Since
	if reset, err := router.Configure(t.Context(), routerCfg); err != nil || len(reset) != 0 {
		t.Fatalf("reset %v, %v", reset, err)
	}
	must(t, node.Announce(t.Context(), manyRoutes(5, 10)))
	roottest.Eventually(t, "five prefixes", func() bool { return len(router.Learned()) == 5 })
	if router.peer(0).Since != since {
		t.Error("a new limit reset the session")
	}
}

func TestResetDropsWhatThePeerSaidAndTriesAgain(t *testing.T) {
	nodeCfg, routerCfg := pair(t, nil)
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg, route("192.0.2.1/32", 10))
	router.waitRoutes("192.0.2.1/32")
	began := time.Now()
	router.Reset(nodeCfg.Peers[0].Source, "BFD: no sign of life")
	t.Logf("reset took %v", time.Since(began))
	// It may be up again already, or have been closed once more while the other end was still busy with the first.
	got, s := router.Learned(), router.peer(0)
	again := s.State == StateEstablished || s.Flaps > 1
	if !again && (len(got) != 0 || s.Error != "BFD: no sign of life") || s.Flaps == 0 {
		t.Errorf("learned %v, status %+v", got, s)
	}
	roottest.Eventually(t, "the peer hears why", func() bool { return node.peer(0).Flaps > 0 })
	router.waitRoutes("192.0.2.1/32")
	t.Logf("back after %v", time.Since(began))
	if time.Since(began) > roottest.Patient(3*time.Second) {
		t.Error("that took too long")
	}
}

func TestNothingHappensBeforeTheFirstAnnounce(t *testing.T) {
	nodeCfg, routerCfg := pair(t, nil)
	router := newBGPSpeaker(t, routerCfg)
	node := &bgpSpeaker{t: t, BGP: NewBGP(BGPOptions{}), ended: make(chan error, 1)}
	node.start()
	if _, err := node.Configure(t.Context(), nodeCfg); err != nil {
		t.Fatal(err)
	}
	roottest.Eventually(t, "the router is refused", func() bool { return strings.Contains(router.peer(0).Error, "refused") })
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 50 {
		if s := node.peer(0); s.State != StateIdle || !strings.Contains(s.Error, "not known") {
			t.Fatalf("status %+v", s)
		}
		<-tick.C
	}
	must(t, node.Announce(t.Context(), nil))
	router.waitUp(0)
}

func TestWantedThingsSurviveARunAndMistakesChangeNothing(t *testing.T) {
	nodeCfg, routerCfg := pair(t, nil)
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg, route("192.0.2.1/32", 10))
	router.waitRoutes("192.0.2.1/32")
	bad := nodeCfg
	bad.RouterID = netip.Addr{}
	if _, err := node.Configure(t.Context(), bad); err == nil {
		t.Error("no router id was accepted")
	}
	if err := node.Announce(t.Context(), []Route{{}}); err == nil {
		t.Error("no prefix was accepted")
	}
	if err := node.Run(t.Context()); err != ErrRunning {
		t.Errorf("second run: %v", err)
	}
	node.stop()
	router.waitRoutes()
	node.start()
	router.waitRoutes("192.0.2.1/32")
}

// A port that is taken costs the neighbours' connections only, until it is free.
func TestATakenPortIsTriedAgain(t *testing.T) {
	nodeCfg, routerCfg := pair(t, func(a, _ *BGPPeer) { a.Passive = true })
	l, err := listenBGP(t.Context(), true, nodeCfg.Port)
	must(t, err)
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg, route("192.0.2.1/32", 10))
	roottest.Eventually(t, "words about the port", func() bool {
		_, err := node.Configure(t.Context(), nodeCfg)
		return err != nil && strings.Contains(err.Error(), "in use")
	})
	must(t, l.Close())
	router.waitRoutes("192.0.2.1/32")
}

func TestGoBGPTakesOurConnections(t *testing.T) {
	nodeCfg, routerCfg := pair(t, nil)
	router := newBGPSpeaker(t, routerCfg)
	began := time.Now()
	node := newBGPSpeaker(t, nodeCfg)
	node.waitUp(0)
	router.waitUp(0)
	if took := time.Since(began); took > roottest.Patient(time.Second) {
		t.Errorf("a session took %v: that is GoBGP's own way of connecting", took)
	}
}

func manyRoutes(n int, med uint32) []Route {
	out := make([]Route, n)
	for i := range out {
		out[i] = Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 20, byte(i >> 8), byte(i)}), 32), MED: med, LocalPref: 200}
	}
	return out
}

func TestThousandRoutesArriveTogether(t *testing.T) {
	nodeCfg, routerCfg := pair(t, nil)
	router := newBGPSpeaker(t, routerCfg)
	node := newBGPSpeaker(t, nodeCfg)
	node.waitUp(0)
	router.waitUp(0)
	for _, med := range []uint32{10, 20} {
		before := node.peer(0).MessagesOut
		began := time.Now()
		must(t, node.Announce(context.Background(), manyRoutes(1000, med)))
		handed := time.Since(began)
		roottest.Eventually(t, "all arrive", func() bool {
			views := router.Received()
			for _, v := range views {
				if v.MED != med {
					return false
				}
			}
			return len(views) == 1000
		})
		t.Logf("MED %d: handed over in %v, all there after %v, in %d messages", med, handed, time.Since(began), node.peer(0).MessagesOut-before)
	}
	began := time.Now()
	must(t, node.Announce(t.Context(), nil))
	router.waitRoutes()
	t.Logf("withdrawn after %v", time.Since(began))
}
