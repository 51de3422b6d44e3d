package transport

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

func testKey(b byte) []byte { return bytes.Repeat([]byte{b}, gossipKeySize) }

// testGossip is a Gossip on loopback that runs until stopped.
type testGossip struct {
	*Gossip
	stop func()
}

// startGossip binds node to 127.0.0.1 and runs it until the test ends.
func startGossip(t *testing.T, node string, change ...func(*GossipConfig)) *testGossip {
	t.Helper()
	cfg := GossipConfig{
		Node:   node,
		Bind:   netip.MustParseAddrPort("127.0.0.1:0"),
		Keys:   [][]byte{testKey(1)},
		Meta:   []byte("meta of " + node),
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("self", node),
	}
	for _, f := range change {
		f(&cfg)
	}
	g, err := NewGossip(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	tg := &testGossip{Gossip: g, stop: sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("gossip of %s ended with %v", node, err)
		}
	})}
	t.Cleanup(tg.stop)
	return tg
}

func (g *testGossip) state(node string) GossipState {
	for _, m := range g.Members() {
		if m.Node == node {
			return m.State
		}
	}
	return ""
}

// sees reports whether g shows exactly these members in this state.
func (g *testGossip) sees(state GossipState, nodes ...string) bool {
	var got []string
	for _, m := range g.Members() {
		if m.State == state {
			got = append(got, m.Node)
		}
	}
	return slices.Equal(got, nodes)
}

// startTrio returns three members that see each other.
func startTrio(t *testing.T, change ...func(*GossipConfig)) []*testGossip {
	t.Helper()
	var all []*testGossip
	for i := range 3 {
		g := startGossip(t, fmt.Sprintf("lb%d", i+1), change...)
		if i > 0 {
			if err := g.Join([]netip.AddrPort{all[0].Address()}); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, g)
	}
	for _, g := range all {
		eventually(t, 10*time.Second, "all members alive", func() bool { return g.sees(GossipAlive, "lb1", "lb2", "lb3") })
	}
	return all
}

func TestGossipMembersFindEachOther(t *testing.T) {
	for family, listen := range loopbacks(t) {
		t.Run(family, func(t *testing.T) { findEachOther(t, netip.MustParseAddr(listen)) })
	}
}

func findEachOther(t *testing.T, listen netip.Addr) {
	checkLeaks(t)
	all := startTrio(t, func(c *GossipConfig) { c.Bind = netip.AddrPortFrom(listen, 0) })
	for _, m := range all[1].Members() {
		i := slices.IndexFunc(all, func(g *testGossip) bool { return g.cfg.Node == m.Node })
		if m.Address != all[i].Address() || string(m.Meta) != "meta of "+m.Node {
			t.Errorf("member is shown as %+v, want address %s", m, all[i].Address())
		}
	}
	if err := all[2].Join([]netip.AddrPort{all[0].Address(), all[2].Address()}); err != nil {
		t.Errorf("joining again: %v", err)
	}
	if err := all[2].Join(nil); err != nil {
		t.Errorf("joining nobody: %v", err)
	}
}

func TestDeadMemberIsSuspectThenDeadAndRemembered(t *testing.T) {
	checkLeaks(t)
	all := startTrio(t)
	victim := all[2]
	select {
	case <-all[0].Changed():
	default:
	}
	victim.stop()
	start := time.Now()
	eventually(t, 10*time.Second, "lb3 suspect or dead", func() bool { return all[0].state("lb3") != GossipAlive })
	first := all[0].state("lb3")
	t.Logf("%s after %s", first, time.Since(start).Round(time.Millisecond))
	for _, g := range all[:2] {
		eventually(t, 10*time.Second, "lb3 dead", func() bool { return g.state("lb3") == GossipDead })
	}
	t.Logf("dead on both survivors after %s", time.Since(start).Round(time.Millisecond))
	if first != GossipSuspect {
		t.Errorf("lb3 went from alive to %s", first)
	}
	select {
	case <-all[0].Changed():
	default:
		t.Error("Changed did not signal")
	}
	all[0].Forget("lb3")
	all[0].Forget("lb2") // alive: stays
	if all[0].state("lb3") != "" || all[0].state("lb2") != GossipAlive {
		t.Errorf("after Forget: %+v", all[0].Members())
	}
}

func TestLeavingMemberIsShownAsLeftAtOnce(t *testing.T) {
	checkLeaks(t)
	all := startTrio(t)
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := all[2].Leave(ctx); err != nil {
		t.Fatal(err)
	}
	all[2].stop()
	for _, g := range all[:2] {
		eventually(t, 10*time.Second, "lb3 left", func() bool { return g.state("lb3") == GossipLeft })
	}
	t.Logf("left after %s", time.Since(start).Round(time.Millisecond))
	if err := all[2].Leave(ctx); err == nil {
		t.Error("leaving after the end of Run gives no error")
	}
	if err := all[2].Join([]netip.AddrPort{all[0].Address()}); err == nil {
		t.Error("joining after the end of Run gives no error")
	}
}

func TestStoppedMemberComesBackByTheOthersSeeds(t *testing.T) {
	checkLeaks(t)
	all := startTrio(t)
	addr := all[2].Address()
	seeds := map[string]netip.AddrPort{"lb1": all[0].Address(), "lb2": all[1].Address(), "lb3": addr}
	for _, g := range all {
		g.SetSeeds(seeds)
	}
	all[2].stop()
	for _, g := range all[:2] {
		eventually(t, 10*time.Second, "lb3 dead", func() bool { return g.state("lb3") == GossipDead })
	}
	// It starts again at its address and joins nobody: the others fetch it.
	back := startGossip(t, "lb3", func(c *GossipConfig) { c.Bind = addr })
	for _, g := range []*testGossip{all[0], all[1], back} {
		eventually(t, 10*time.Second, "all alive again", func() bool { return g.sees(GossipAlive, "lb1", "lb2", "lb3") })
	}
}

func TestAllMembersRestartedAtOnceMergeByThemselves(t *testing.T) {
	checkLeaks(t)
	all := startTrio(t)
	seeds := map[string]netip.AddrPort{}
	for _, g := range all {
		seeds[g.cfg.Node] = g.Address()
		g.stop()
	}
	var again []*testGossip
	for node, addr := range seeds {
		g := startGossip(t, node, func(c *GossipConfig) { c.Bind = addr })
		g.SetSeeds(seeds)
		again = append(again, g)
	}
	for _, g := range again {
		eventually(t, 10*time.Second, "all alive", func() bool { return g.sees(GossipAlive, "lb1", "lb2", "lb3") })
	}
}

func TestReplacedMemberMayComeBackAtAnotherAddress(t *testing.T) {
	checkLeaks(t)
	all := startTrio(t)
	all[2].stop()
	for _, g := range all[:2] {
		eventually(t, 10*time.Second, "lb3 dead", func() bool { return g.state("lb3") == GossipDead })
	}
	back := startGossip(t, "lb3")
	back.SetSeeds(map[string]netip.AddrPort{"lb1": all[0].Address(), "lb2": all[1].Address()})
	for _, g := range all[:2] {
		eventually(t, 10*time.Second, "lb3 alive at its new address", func() bool {
			_ = back.Join([]netip.AddrPort{g.Address()}) // the name is held for a second after a death
			return slices.ContainsFunc(g.Members(), func(m GossipMember) bool {
				return m.Node == "lb3" && m.State == GossipAlive && m.Address == back.Address()
			})
		})
	}
}

func TestGossipWithAnotherKeyOrNoneIsRefused(t *testing.T) {
	checkLeaks(t)
	member := startGossip(t, "lb1")
	foreign := startGossip(t, "lb2", func(c *GossipConfig) { c.Keys = [][]byte{testKey(2)} })
	if err := foreign.Join([]netip.AddrPort{member.Address()}); err == nil {
		t.Error("a node with another key joined")
	} else {
		wantError(t, err, "no member answers: ")
	}
	// The library itself without a key: nothing of it may be taken in.
	cfg := memberlist.DefaultLocalConfig()
	cfg.Name, cfg.BindAddr, cfg.BindPort, cfg.AdvertisePort = "lb3", "127.0.0.1", 0, 0
	cfg.LogOutput = io.Discard
	plain, err := memberlist.Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Shutdown() }()
	if _, err := plain.Join([]string{member.Address().String()}); err == nil {
		t.Error("a node without a key joined")
	}
	if _, err := plain.Ping("lb1", net.UDPAddrFromAddrPort(member.Address())); err == nil {
		t.Error("a plaintext ping was answered")
	}
	if err := member.Join([]netip.AddrPort{netip.AddrPortFrom(member.Address().Addr(), plain.LocalNode().Port)}); err == nil {
		t.Error("a member joined a node without a key")
	}
	if !member.sees(GossipAlive, "lb1") || !foreign.sees(GossipAlive, "lb2") {
		t.Errorf("members are %+v and %+v", member.Members(), foreign.Members())
	}
}

func TestKeysRotateWhileGossipRuns(t *testing.T) {
	checkLeaks(t)
	older, newer := testKey(1), testKey(2)
	all := startTrio(t)
	for _, step := range [][][]byte{{older, newer}, {newer, older}, {newer}} {
		for _, g := range all {
			if err := g.SetKeys(step); err != nil {
				t.Fatal(err)
			}
		}
		for _, g := range all {
			eventually(t, 10*time.Second, "all alive", func() bool { return g.sees(GossipAlive, "lb1", "lb2", "lb3") })
		}
	}
	late := startGossip(t, "lb4", func(c *GossipConfig) { c.Keys = [][]byte{newer} })
	if err := late.Join([]netip.AddrPort{all[1].Address()}); err != nil {
		t.Errorf("a node with the new key cannot join: %v", err)
	}
	old := startGossip(t, "lb5", func(c *GossipConfig) { c.Keys = [][]byte{older} })
	if err := old.Join([]netip.AddrPort{all[1].Address()}); err == nil {
		t.Error("a node with the old key joined")
	}
	for _, g := range all {
		eventually(t, 10*time.Second, "four alive", func() bool { return g.sees(GossipAlive, "lb1", "lb2", "lb3", "lb4") })
	}
}

func TestSetRingMakesTheRingExact(t *testing.T) {
	a, b, c, d := testKey(1), testKey(2), testKey(3), testKey(4)
	ring, err := memberlist.NewKeyring([][]byte{a, b, c}, a)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range [][][]byte{{a, b, c}, {c, a}, {d, c, b}, {b}, {a, b, c, d}, {d, a}} {
		before := ring.GetKeys()
		old := slices.Clone(before)
		if err := setRing(ring, want); err != nil {
			t.Fatal(err)
		}
		got := ring.GetKeys()
		if len(got) != len(want) || !bytes.Equal(got[0], want[0]) {
			t.Errorf("ring is %v, want %v", got, want)
		}
		for _, k := range want {
			if !slices.ContainsFunc(got, func(x []byte) bool { return bytes.Equal(x, k) }) {
				t.Errorf("key %d is missing", k[0])
			}
		}
		for i := range before { // readers may still hold the old slice
			if !bytes.Equal(before[i], old[i]) {
				t.Errorf("a slice handed out earlier was changed under its reader")
			}
		}
	}
}

func TestGossipConfigReportsEverythingThatIsWrong(t *testing.T) {
	_, err := NewGossip(GossipConfig{
		Node: "-", Bind: netip.MustParseAddrPort("0.0.0.0:1"), Keys: [][]byte{{1}},
		Meta: make([]byte, 1000), ProbeTimeout: time.Second, GossipInterval: -1,
	})
	for _, part := range []string{"gossip name", "bind address", "1 bytes, not 32", "meta", "negative", "half"} {
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte(part)) {
			t.Errorf("error %v does not speak of %q", err, part)
		}
	}
	for _, keys := range [][][]byte{nil, {testKey(1), testKey(1)}} {
		if err := checkGossipKeys(keys); err == nil {
			t.Errorf("keys %v are accepted", keys)
		}
	}
	taken := startGossip(t, "lb1")
	_, err = NewGossip(GossipConfig{Node: "lb2", Bind: taken.Address(), Keys: [][]byte{testKey(1)}})
	wantError(t, err, "address already in use")
}
