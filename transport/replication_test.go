package transport

import (
	"context"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestReplicationConverges(t *testing.T) {
	for name, pipe := range map[string]bool{"pipe": true, "tcp": false} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			n := newReplNet(t, pipe)
			a, b := n.add("a", nil), n.add("b", nil)
			for k := range uint64(1000) {
				a.table.put(k, 1)
			}
			n.mesh()
			n.awaitEqual(a, b)
			n.awaitEqual(b, a)
			for k := range uint64(500) {
				a.Publish(a.table.put(k, 2))
				a.Publish(a.table.del(k + 500))
				b.Publish(b.table.put(k, 3))
			}
			n.awaitEqual(a, b)
			n.awaitEqual(b, a)
			s := a.status("b")
			if s.Sent != 2000 || s.Acked != 2000 || s.Resyncs != 0 || s.Dropped != 0 || s.LagMS != 0 || s.LastLagMS <= 0 {
				t.Errorf("status %+v", s)
			}
			if got := b.status("a").Received; got != 2000 {
				t.Errorf("received %d records, not 2000", got)
			}
			n.stop()
		})
	}
}

func TestReplicationJoinerGetsSnapshotThenStream(t *testing.T) {
	n := newReplNet(t, false)
	a, b := n.add("a", nil), n.add("b", nil)
	n.mesh()
	stop, load := make(chan struct{}), sync.WaitGroup{}
	a.churn(&load, 20000, stop)
	b.churn(&load, 20000, stop)
	replEventually(t, "load runs", func() bool { return len(a.table.owned()) > 5000 })
	c := n.add("c", func(_ *ReplicationConfig, m *replTable) { m.put(1, 1) })
	n.mesh()
	replEventually(t, "c is in sync under load", func() bool {
		return c.status("a").Inbound == ReplicationStreaming && c.status("b").Inbound == ReplicationStreaming
	})
	close(stop)
	load.Wait()
	for _, from := range []*replNode{a, b, c} {
		for _, to := range []*replNode{a, b, c} {
			if from != to {
				n.awaitEqual(from, to)
			}
		}
	}
}

func TestReplicationSurvivesCutStreams(t *testing.T) {
	n := newReplNet(t, false)
	a, b := n.add("a", nil), n.add("b", nil)
	n.mesh()
	stop, load := make(chan struct{}), sync.WaitGroup{}
	a.churn(&load, 5000, stop)
	b.churn(&load, 5000, stop)
	for range 20 {
		before := a.table.begins("b")
		replEventually(t, "a stream runs", func() bool { return b.status("a").Inbound != ReplicationDown })
		replSleep(t.Context(), time.Duration(rand.IntN(10))*time.Millisecond)
		n.sever("a", "b")
		n.sever("b", "a")
		replEventually(t, "a new snapshot arrives", func() bool { return a.table.begins("b") > before })
	}
	close(stop)
	load.Wait()
	n.awaitEqual(a, b)
	n.awaitEqual(b, a)
	if s := a.status("b"); s.Resyncs < 15 || s.LastError == "" {
		t.Errorf("twenty cuts left status %+v", s)
	}
}

// slowSink makes Apply wait while the gate is closed.
type slowSink struct{ open chan struct{} }

func (s slowSink) gate(ctx context.Context, _ string) error {
	select {
	case <-s.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestReplicationSlowPeerIsResyncedAndDelaysNobody(t *testing.T) {
	n := newReplNet(t, true)
	slow := slowSink{make(chan struct{})}
	a := n.add("a", func(c *ReplicationConfig, _ *replTable) { c.QueueRecords, c.BatchRecords = 1000, 100 })
	b := n.add("b", func(_ *ReplicationConfig, m *replTable) { m.gate = slow.gate })
	c := n.add("c", nil)
	a.SetPeers([]ReplicationPeer{{"b", "b"}, {"c", "c"}})
	replEventually(t, "both stream", func() bool {
		return a.status("b").State == ReplicationStreaming && a.status("c").State == ReplicationStreaming
	})
	began := time.Now()
	for k := range uint64(5000) {
		a.Publish(a.table.put(k, 1))
		if k%100 == 0 {
			// The healthy peer keeps up with this load; the other applies nothing.
			replEventually(t, "c follows", func() bool { return a.status("c").LagRecords < 500 })
		}
	}
	a.Publish(a.table.del(17))
	n.awaitEqual(a, c)
	t.Logf("5000 records published beside a blocked peer in %v", time.Since(began))
	s := a.status("b")
	if s.State != ReplicationSnapshot || s.Dropped == 0 {
		t.Errorf("blocked peer has status %+v", s)
	}
	if s := a.status("c"); s.Resyncs != 0 || s.Dropped != 0 {
		t.Errorf("healthy peer has status %+v", s)
	}
	close(slow.open)
	n.awaitEqual(a, b)
	if s := a.status("b"); s.Resyncs == 0 || s.LastError != "" {
		t.Errorf("peer that was behind has status %+v", s)
	}
}

func TestReplicationOverflowDuringSnapshotSendsAnotherOne(t *testing.T) {
	n := newReplNet(t, true)
	var a *replNode
	flood := uint64(0)
	a = n.add("a", func(c *ReplicationConfig, m *replTable) {
		c.QueueRecords, c.BatchRecords = 100, 10
		m.chunk = 10
		m.step = func(read int) {
			if read == 5 && flood < 3 {
				flood++
				for k := range uint64(300) {
					a.Publish(m.put(k, 100+flood))
				}
			}
		}
	})
	for k := range uint64(200) {
		a.table.put(k, 1)
	}
	b := n.add("b", nil)
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	n.awaitEqual(a, b)
	if s := a.status("b"); s.Resyncs != 3 || s.Dropped < 300 {
		t.Errorf("three floods left status %+v", s)
	}
	if got := b.table.ends("a"); got != 1 {
		t.Errorf("%d snapshots were marked complete, one was", got)
	}
}

func TestReplicationOverrunResyncsEveryPeer(t *testing.T) {
	n := newReplNet(t, false)
	a, b, c := n.add("a", nil), n.add("b", nil), n.add("c", nil)
	n.mesh()
	n.awaitEqual(a, b)
	n.awaitEqual(a, c)
	for k := range uint64(100) {
		a.Publish(a.table.put(k, 1))
	}
	for k := range uint64(50) {
		a.table.put(k, 2)      // lost
		a.table.del(k + 50)    // lost
		a.table.put(k+1000, 1) // lost
	}
	a.Overrun("test")
	n.awaitEqual(a, b)
	n.awaitEqual(a, c)
	if a.status("b").Resyncs != 1 || a.status("c").Resyncs != 1 || b.status("a").Resyncs != 0 {
		t.Errorf("status after the overrun: %+v", a.Status())
	}
}

// A change that waits for its batch when records are lost must not be sent after
// the snapshot: it would undo the newer, lost one.
func TestReplicationOverrunForgetsWhatWasQueued(t *testing.T) {
	n := newReplNet(t, false)
	a := n.add("a", func(c *ReplicationConfig, _ *replTable) { c.FlushInterval = time.Second })
	b := n.add("b", nil)
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	n.awaitEqual(a, b)
	a.Publish(a.table.put(1, 1))
	a.table.put(1, 2) // lost
	a.Overrun("test")
	n.awaitEqual(a, b)
	a.Publish(a.table.put(2, 1))
	n.awaitEqual(a, b)
}

func TestReplicationSnapshotEndDropsWhatWasNotNamed(t *testing.T) {
	n := newReplNet(t, false)
	a := n.add("a", func(_ *ReplicationConfig, m *replTable) { m.put(1, 1) })
	b := n.add("b", func(_ *ReplicationConfig, m *replTable) {
		m.replicas["a"] = map[uint64]uint64{1: 0, 2: 7}
		m.replicas["gone"] = map[uint64]uint64{3: 7}
	})
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	n.awaitEqual(a, b)
	if got := b.table.replica("gone"); !maps.Equal(got, map[uint64]uint64{3: 7}) {
		t.Errorf("records of another peer became %v", got)
	}
	n.cutOff("a", true)
	n.sever("a", "b")
	replEventually(t, "the stream is down on both sides", func() bool {
		// b does not replicate to a, so it forgets a with its stream.
		return a.status("b").State == ReplicationDown && b.status("a").Peer == ""
	})
	if got := b.table.replica("a"); !maps.Equal(got, map[uint64]uint64{1: 1}) {
		t.Errorf("the end of the stream changed the replica to %v", got)
	}
	a.table.del(1)
	a.table.put(4, 1)
	n.cutOff("a", false)
	n.awaitEqual(a, b)
}

func TestReplicationSetPeersStartsAndStopsStreams(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	n := newReplNet(t, false)
	a, b, c := n.add("a", replWithDigests), n.add("b", replWithDigests), n.add("c", nil)
	a.SetPeers([]ReplicationPeer{{"a", "a"}, {"b", "b"}})
	n.awaitEqual(a, b)
	began := b.table.begins("a")
	a.SetPeers([]ReplicationPeer{{"b", "b"}, {"c", "c"}})
	n.awaitEqual(a, c)
	a.Publish(a.table.put(1, 1))
	n.awaitEqual(a, b)
	if got := b.table.begins("a"); got != began {
		t.Errorf("setting the same peer again sent snapshot %d after %d", got, began)
	}
	a.SetPeers([]ReplicationPeer{{"c", "c"}})
	replEventually(t, "b hears the goodbye", func() bool {
		// b does not replicate to a, so it forgets a with its stream.
		return b.status("a").Peer == ""
	})
	if got := a.status("b"); got.Peer != "" {
		t.Errorf("removed peer still has status %+v", got)
	}
	a.SetPeers([]ReplicationPeer{{"c", "nowhere"}})
	replEventually(t, "a new address is dialled", func() bool {
		return strings.Contains(a.status("c").LastError, "dial nowhere")
	})
	a.SetPeers([]ReplicationPeer{{"c", "c"}})
	n.awaitEqual(a, c)
	n.stop()
}

func TestReplicationChangedSignalsStates(t *testing.T) {
	n := newReplNet(t, false)
	a, b := n.add("a", nil), n.add("b", nil)
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	wait := func(r *replNode, what string, cond func() bool) {
		t.Helper()
		deadline := time.NewTimer(10 * time.Second)
		defer deadline.Stop()
		for !cond() {
			select {
			case <-r.Changed():
			case <-deadline.C:
				t.Fatalf("no signal: %s", what)
			}
		}
	}
	wait(a, "streaming", func() bool { return a.status("b").State == ReplicationStreaming })
	wait(b, "inbound streaming", func() bool { return b.status("a").Inbound == ReplicationStreaming })
	n.cutOff("a", true)
	n.sever("a", "b")
	wait(a, "down", func() bool { return a.status("b").State == ReplicationDown })
	wait(b, "inbound down", func() bool { return b.status("a").Peer == "" })
}

func (m *replTable) begins(peer string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.begun[peer]
}

func (m *replTable) ends(peer string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ended[peer]
}

// cutOff makes a node unreachable for new streams in both directions.
func (n *replNet) cutOff(node string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[node] = cut
}
