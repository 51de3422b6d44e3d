package transport

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// threeHeirs are three nodes that hold everything of each other. They compare every
// minute, so what happens soon happens because of a death.
func threeHeirs(t *testing.T) (n *replNet, a, b, c *replNode) {
	t.Helper()
	n = newReplNet(t, false)
	tune := func(c *ReplicationConfig, m *replTable) {
		replWithOrphans(c, m)
		c.DigestInterval, c.DigestConfirm = time.Minute, time.Second
	}
	a, b, c = n.add("a", tune), n.add("b", tune), n.add("c", tune)
	for k := range uint64(50) {
		a.table.put(k, 1)
	}
	n.mesh()
	for _, node := range []*replNode{b, c} {
		n.awaitEqual(a, node)
		n.awaitEqual(node, a)
	}
	n.awaitEqual(b, c)
	n.awaitEqual(c, b)
	return n, a, b, c
}

// isolate takes a node off the network.
func (n *replNet) isolate(node *replNode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[node.name] = true
	for way, conns := range n.conns {
		if way[:len(node.name)] == node.name || way[len(way)-len(node.name):] == node.name {
			for _, c := range conns {
				_ = c.Close()
			}
		}
	}
}

func (n *replNet) awaitSameOrphans(a, b *replNode) {
	n.t.Helper()
	replEventually(n.t, a.name+" and "+b.name+" hold the same of the dead", func() bool {
		return maps.Equal(a.table.heldOfTheDead(), b.table.heldOfTheDead())
	})
}

// What the last words of a dead owner brought to one survivor only is given to the
// other at once: without waiting for the minute's comparison.
func TestReplicationSurvivorsCompleteEachOther(t *testing.T) {
	n, a, b, c := threeHeirs(t)
	b.table.rot("a", func(replica map[uint64]uint64) { replica[100], replica[3] = 7, 8 })
	c.table.rot("a", func(replica map[uint64]uint64) { replica[200] = 9; delete(replica, 4) })
	n.isolate(a)
	b.table.bury("a")
	b.Bereaved() // c hears of the death later: the first look is in vain
	replEventually(t, "b has asked", func() bool { return b.table.OrphanView() != c.table.OrphanView() })
	c.table.bury("a")
	c.Bereaved()
	n.awaitSameOrphans(b, c)
	held := b.table.heldOfTheDead()
	if len(held) != 52 || held[replHeirKey(0, 100)] != 7 || held[replHeirKey(0, 200)] != 9 || held[replHeirKey(0, 3)] != 8 || held[replHeirKey(0, 4)] != 1 {
		t.Errorf("held: %v", held)
	}
	replEventually(t, "what was given is counted", func() bool {
		to, from := b.status("c"), c.status("b")
		return to.OrphansSent > 0 && to.OrphansSent == from.InboundOrphans && to.OrphanRounds > 0 && to.Protocol == 3
	})
	if s := b.status("c"); s.OrphansSent > 20 || s.Resyncs != 0 || s.BucketsRepaired != 0 {
		t.Errorf("status %+v", s)
	}
}

// What a survivor was told ended, or has ended itself after taking it over, is not
// revived by another that did not hear of it, but goes there as well.
func TestReplicationOrphansThatEndedStayEnded(t *testing.T) {
	n, a, b, c := threeHeirs(t)
	for _, node := range []*replNode{b, c} {
		node.table.mu.Lock()
		node.table.heirs.say = node.Publish
		node.table.mu.Unlock()
	}
	if err := b.table.Apply(t.Context(), "a", replRecord(3, 0, true)); err != nil {
		t.Fatal(err)
	}
	n.isolate(a)
	for _, node := range []*replNode{b, c} {
		node.table.bury("a")
	}
	b.table.adopt(10, 5)
	b.table.release(0) // c is told of neither
	b.Bereaved()
	c.Bereaved()
	n.awaitSameOrphans(b, c)
	if held := c.table.heldOfTheDead(); len(held) != 48 {
		t.Errorf("%d are held: %v", len(held), held)
	}
}

// What a survivor has taken over stays its own, whoever still takes it for an orphan.
func TestReplicationAdoptedIsNoOrphan(t *testing.T) {
	n, a, b, c := threeHeirs(t)
	n.isolate(a)
	for _, node := range []*replNode{b, c} {
		node.table.bury("a")
	}
	adopted := b.table.adopt(10, 5)
	b.Bereaved()
	c.Bereaved()
	replEventually(t, "c gives b what it holds", func() bool { return c.status("b").OrphansSent > 0 })
	b.Publish(adopted)
	n.awaitEqual(b, c)
	n.awaitSameOrphans(b, c)
	if held := b.table.heldOfTheDead(); len(held) != 49 || len(b.table.owned()) != 1 {
		t.Errorf("%d are held, owned: %v", len(held), b.table.owned())
	}
}

// Survivors of an owner whose words had come unequally far converge, whatever else
// happens to them and their streams before and after.
func TestReplicationSurvivorsConverge(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newReplNet(t, true)
		defer n.stop()
		kinds := drawMeshKinds(rt)
		var actors []*replActor
		for _, name := range []string{"a", "b", "c"} {
			a := addReplActor(rt, n, name, true, kinds, replWithOrphans)
			a.table.mu.Lock()
			a.table.heirs.say = a.Publish
			a.table.mu.Unlock()
			actors = append(actors, a)
		}
		n.mesh()
		happen := func(label string, among []*replActor, kinds []string) {
			for _, op := range drawMeshOps(rt, label, 30, kinds...) {
				i := rapid.IntRange(0, len(among)-1).Draw(rt, "node")
				j := (i + rapid.IntRange(1, len(among)-1).Draw(rt, "peer")) % len(among)
				among[i].mourn(n, op, among[j].replNode)
			}
		}
		happen("before", actors, append(kinds, "pause"))
		n.isolate(actors[0].replNode)
		heirs := actors[1:]
		happen("after", heirs, append(kinds, "pause", "adopt", "release", "bury"))
		for _, a := range heirs {
			a.mu.Lock()
			a.publishLate()
			a.during = nil // what has not happened by now will not
			a.mu.Unlock()
			a.table.bury("a")
			a.Bereaved()
		}
		b, c := heirs[0].replNode, heirs[1].replNode
		n.awaitEqual(b, c)
		n.awaitEqual(c, b)
		n.awaitSameOrphans(b, c)
		for _, a := range heirs {
			own := a.table.owned()
			for key := range a.table.heldOfTheDead() {
				if _, ok := own[key]; ok {
					rt.Fatalf("%s owns %d and holds it for an orphan", a.name, key)
				}
			}
		}
	})
}

// mourn is act with what can happen when a has died.
func (a *replActor) mourn(n *replNet, op replOp, peer *replNode) {
	switch op.kind {
	case "pause":
		replSleep(n.ctx, time.Duration(op.key)*50*time.Microsecond)
	case "bury":
		a.table.bury("a")
		a.Bereaved()
	case "adopt", "release":
		a.mu.Lock()
		defer a.mu.Unlock()
		a.publishLate()
		a.version += 100
		if op.kind == "adopt" {
			a.Publish(a.table.adopt(op.key, a.version))
		} else {
			a.Publish(a.table.release(op.key))
		}
	default:
		a.act(n, op, peer)
	}
}

// A digest under another view is not compared, and none is made for it.
func TestReplicationOrphansAreComparedUnderOneViewOnly(t *testing.T) {
	n, a, b, c := threeHeirs(t)
	n.isolate(a)
	b.table.bury("a")
	b.Bereaved()
	replEventually(t, "c was asked more than once", func() bool {
		c.table.mu.Lock()
		defer c.table.mu.Unlock()
		return c.table.heirs.asked > 1
	})
	if s := b.status("c"); s.OrphanRounds != 0 || s.OrphansSent != 0 || len(c.table.heldOfTheDead()) != 0 {
		t.Errorf("status %+v", s)
	}
}

func TestReplicationMourningEndsWhenBothAreEqual(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := replMourning{timer: time.NewTimer(time.Hour)}
		m.begin(time.Second)
		began := time.Now()
		var looks []time.Duration
		look := func(equal bool, took time.Duration) {
			looks = append(looks, time.Since(began))
			m.again(equal, took, 30*time.Second)
		}
		wait := func() bool {
			select {
			case <-m.timer.C:
				return true
			case <-time.After(time.Hour / 2):
				return false
			}
		}
		for _, equal := range []bool{false, false, true, true} {
			look(equal, time.Millisecond)
			if more := wait(); more != (len(looks) < 4) {
				t.Fatalf("after looks at %v there is another: %v", looks, more)
			}
		}
		if want := []time.Duration{0, 50 * time.Millisecond, 150 * time.Millisecond, time.Second}; !slices.Equal(looks, want) {
			t.Errorf("looks at %v, not %v", looks, want)
		}
		m.begin(0)
		if m.again(false, 2*time.Second, 30*time.Second); !wait() {
			t.Error("no other look after one that took long")
		}
		if m.again(false, 4*time.Second, 30*time.Second); wait() {
			t.Error("another look although the next round is due before it")
		}
	})
}

// What one look may send is bounded: of more than that, only what has differed in the
// same way before.
func TestReplicationMourningSendsMuchOnlyWhenItHoldsStill(t *testing.T) {
	differ := func(xor uint64) []replDifference { return []replDifference{{1, xor}, {2, 5}} }
	var m replMourning
	if v := m.judge(differ(1), replOrphansAtOnce, 2); len(v.repair) != 2 {
		t.Errorf("few: %+v", v)
	}
	m = replMourning{}
	if v := m.judge(differ(1), 2*replOrphansAtOnce, 2); len(v.repair) != 0 {
		t.Errorf("many, first look: %+v", v)
	}
	if v := m.judge(differ(2), 2*replOrphansAtOnce, 2); !slices.Equal(v.repair, []uint32{2}) {
		t.Errorf("many, second look: %+v", v)
	}
}

// All streams of a node, and its answers, share one look at the table.
func TestReplicationOrphanDigestsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &slowOrphans{replTable: newReplTable(t)}
		slow.heirs = newReplHeirs(nil)
		r, err := NewReplicator(ReplicationConfig{
			Node: "a", RecordVersions: []uint16{1}, Source: slow, Sink: slow, Digests: slow, Orphans: slow,
			Dial: newReplNet(t, true).dialer("a"),
		})
		if err != nil {
			t.Fatal(err)
		}
		var asking sync.WaitGroup
		ask := func(times int) {
			for range times {
				asking.Go(func() {
					if _, err := r.orphanDigest(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			asking.Wait()
		}
		ask(1)
		replSleep(t.Context(), time.Second)
		if ask(2); slow.made.Load() != 2 {
			t.Errorf("%d looks for one and, a second later, two", slow.made.Load())
		}
		r.orphans.gifts.Add(1)
		if ask(1); slow.made.Load() != 3 {
			t.Errorf("%d looks: what came since the last is not in it", slow.made.Load())
		}
	})
}

// slowOrphans takes a while for a digest.
type slowOrphans struct {
	*replTable
	made atomic.Int32
}

func (s *slowOrphans) OrphanDigest(ctx context.Context) (ReplicationOrphanDigest, error) {
	s.made.Add(1)
	replSleep(ctx, replDigestShare/2)
	return s.replTable.OrphanDigest(ctx)
}
