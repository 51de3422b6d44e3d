package transport

import (
	"context"
	"errors"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// replEvents keeps what a node was told.
type replEvents struct {
	mu  sync.Mutex
	all []ReplicationEvent
}

func (e *replEvents) add(event ReplicationEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, event)
}

// find returns the last event of a kind.
func (e *replEvents) find(kind ReplicationEventKind, inbound bool) (ReplicationEvent, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range slices.Backward(e.all) {
		if event.Kind == kind && event.Inbound == inbound {
			return event, true
		}
	}
	return ReplicationEvent{}, false
}

func (e *replEvents) count(kind ReplicationEventKind) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.all {
		if event.Kind == kind {
			n++
		}
	}
	return n
}

func TestReplicationEventsTellWhatHappenedAndWhy(t *testing.T) {
	n := newReplNet(t, false)
	var atA, atB replEvents
	tune := func(events *replEvents) func(*ReplicationConfig, *replTable) {
		return func(c *ReplicationConfig, m *replTable) {
			replWithDigests(c, m)
			c.OnEvent = events.add
			m.put(1, 1)
			m.put(2, 1)
		}
	}
	a, b := n.add("a", tune(&atA)), n.add("b", tune(&atB))
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	await := func(events *replEvents, kind ReplicationEventKind, inbound bool) (e ReplicationEvent) {
		t.Helper()
		replEventually(t, "event "+string(kind), func() (ok bool) {
			e, ok = events.find(kind, inbound)
			return ok
		})
		return e
	}
	if e := await(&atA, ReplicationEventStreaming, false); e.Peer != "b" || e.Records != 2 {
		t.Errorf("event %+v", e)
	}
	if e := await(&atB, ReplicationEventStreaming, true); e.Peer != "a" || e.Records != 2 {
		t.Errorf("event %+v", e)
	}
	b.table.rot("a", func(replica map[uint64]uint64) { delete(replica, 1) })
	if e := await(&atA, ReplicationEventRepaired, false); e.Buckets != 1 || e.Records != 1 || !strings.Contains(e.Text, "1 buckets") {
		t.Errorf("event %+v", e)
	}
	a.Overrun("the ring was full")
	if e := await(&atA, ReplicationEventBehind, false); !strings.Contains(e.Text, "the ring was full") {
		t.Errorf("event %+v", e)
	}
	if e := await(&atA, ReplicationEventResync, false); e.Records != 2 || !strings.Contains(e.Text, "overrun: the ring was full") {
		t.Errorf("event %+v", e)
	}
	n.sever("a", "b")
	await(&atA, ReplicationEventDown, false)
	await(&atB, ReplicationEventDown, true)
	n.awaitEqual(a, b)
	s := a.status("b")
	if s.ResyncCauses[ReplicationCauseOverrun] != 1 || s.ResyncCauses[ReplicationCauseReconnect] == 0 ||
		s.LastResync == nil || s.LastResync.Cause != ReplicationCauseReconnect || s.LastResync.Text == "" || s.SnapshotRecords != 2 || s.SnapshotMS <= 0 {
		t.Errorf("status %+v, last resync %+v", s, s.LastResync)
	}
}

// Two nodes that cannot understand each other say so once, not at every attempt.
func TestReplicationRefusalIsOneEvent(t *testing.T) {
	n := newReplNet(t, false)
	var atA, atB replEvents
	a := n.add("a", func(c *ReplicationConfig, _ *replTable) {
		c.RecordVersions, c.OnEvent, c.ReconnectMax = []uint16{7}, atA.add, 2*time.Millisecond
	})
	b := n.add("b", func(c *ReplicationConfig, _ *replTable) { c.OnEvent = atB.add })
	b.SetPeers([]ReplicationPeer{{"a", "nowhere"}})
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	replEventually(t, "both are told", func() bool {
		return atA.count(ReplicationEventRefused) > 0 && atB.count(ReplicationEventRefused) > 0
	})
	served := func() uint64 {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.served
	}
	replEventually(t, "a has tried ten times", func() bool { return served() > 10 })
	for _, events := range []*replEvents{&atA, &atB} {
		if e := events.all[0]; len(events.all) != 1 || !strings.Contains(e.Text, "record versions [7] are offered and [1] are spoken here") {
			t.Errorf("events %+v", events.all)
		}
	}
}

// What was under way when a stream broke does not stand between sent and
// acknowledged for ever.
func TestReplicationSentMeetsAckedAfterABrokenStream(t *testing.T) {
	n := newReplNet(t, false)
	slow := slowSink{make(chan struct{})}
	a := n.add("a", nil)
	b := n.add("b", func(_ *ReplicationConfig, m *replTable) { m.gate = slow.gate })
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	replEventually(t, "streaming", func() bool { return a.status("b").State == ReplicationStreaming })
	for k := range uint64(300) {
		a.Publish(a.table.put(k, 1))
	}
	replEventually(t, "records are under way", func() bool { return a.status("b").Sent == 300 })
	n.sever("a", "b")
	replEventually(t, "they are abandoned", func() bool {
		s := a.status("b")
		return s.Abandoned >= 300 && s.LagRecords == s.Sent-s.Acked
	})
	close(slow.open)
	n.awaitEqual(a, b)
	if s := a.status("b"); s.Sent != s.Acked || s.Acked < 300 {
		t.Errorf("status %+v", s)
	}
}

func TestReplicationLagQuantiles(t *testing.T) {
	var l replLags
	if got := l.quantiles(0, 0.5); got[0] != 0 {
		t.Errorf("an empty histogram says %v", got)
	}
	for ms := int64(1); ms <= 100; ms++ {
		l.add(0, ms*1e6, 10)
	}
	near := func(when int64, want ...float64) {
		t.Helper()
		for i, got := range l.quantiles(when, 0.5, 0.99) {
			if math.Abs(float64(got)-want[i]*1e6) > 0.07*want[i]*1e6 {
				t.Errorf("quantile %d is %.1f ms, not %.1f", i, float64(got)/1e6, want[i])
			}
		}
	}
	near(0, 50, 99)
	near(59e9, 50, 99)
	l.add(59e9, 8e6, 1000*1000)
	near(59e9, 8, 8)
	near(80e9, 8, 8)
	if got := l.quantiles(140e9, 0.99); got[0] != 0 {
		t.Errorf("what is older than a minute counts: %v", got)
	}
	for lag := int64(1); lag > 0; lag *= 3 {
		if got := replLagOf(replLagBucket(lag)); lag > 1<<replLagLowest && lag < 60e9 && math.Abs(float64(got-lag)) > 0.07*float64(lag) {
			t.Errorf("%d ns is counted as %d", lag, got)
		}
	}
}

func TestReplicationRateIsThatOfWholeSeconds(t *testing.T) {
	var r replRate
	for second := range int64(20) {
		r.add(second*1e9, 50)
		r.add(second*1e9+5e8, 50)
	}
	if got := r.perSecond(19.9e9); got != 100 {
		t.Errorf("%v a second", got)
	}
	if got := r.perSecond(40e9); got != 0 {
		t.Errorf("%v a second long after", got)
	}
}

// A peer whose sink fails costs a snapshot at each attempt, so it is tried less
// and less often; one whose streams are cut is tried again at once.
func TestReplicationFailingSinkIsTriedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newReplNet(t, true)
		a := n.add("a", func(c *ReplicationConfig, m *replTable) {
			c.ReconnectMin, c.ReconnectMax = 0, 0
			m.put(1, 1)
		})
		var fail atomic.Bool
		fail.Store(true)
		b := n.add("b", func(_ *ReplicationConfig, m *replTable) {
			m.gate = func(context.Context, string) error {
				if fail.Load() {
					return errors.New("map is broken")
				}
				return nil
			}
		})
		a.SetPeers([]ReplicationPeer{{"b", "b"}})
		<-time.After(time.Minute)
		synctest.Wait()
		tried := b.table.begins("a")
		if s := a.status("b"); tried < 12 || tried > 25 || !strings.Contains(s.LastError, "map is broken") {
			t.Errorf("%d attempts in a minute, status %+v", tried, s)
		}
		fail.Store(false)
		<-time.After(6 * time.Second)
		n.awaitEqual(a, b)
		<-time.After(time.Minute)
		for range 10 {
			n.sever("a", "b")
			<-time.After(100 * time.Millisecond)
			if got := a.status("b").State; got != ReplicationStreaming {
				t.Errorf("a moment after a cut the state is %s", got)
			}
		}
		n.stop()
	})
}

// A greeting that a starved node answers late must not replace the stream that the
// peer has opened since.
func TestReplicationLateGreetingDoesNotReplaceANewerStream(t *testing.T) {
	n := newReplNet(t, false)
	b := n.add("b", nil)
	older := n.handDial(b, "a")
	replEventually(t, "the older stream came first", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.served == 1
	})
	newer := n.handDial(b, "a")
	begin := replTestFrame(replFrame{typ: replFrameSnapshotBegin, sequence: 1}, 0, 0, 0, 0, 0, 0, 0, 1)
	newer.greet("a")
	newer.send(begin)
	replEventually(t, "the newer stream runs", func() bool { return b.table.begins("a") == 1 })
	older.greet("a")
	if got := older.goodbye(); got != errReplReplaced.Error() {
		t.Errorf("the older stream was told %q", got)
	}
	newer.send(replTestFrame(replFrame{typ: replFrameRecords, sequence: 2, count: 1}, replRecord(7, 1, false)...))
	replEventually(t, "the newer stream goes on", func() bool { return b.table.replica("a")[7] == 1 })
}

// A flood of single records beside a peer that takes nothing reaches the healthy
// peer whole, and the memory it takes is bounded.
func TestReplicationFloodOfSingleRecordsBesideADeadPeer(t *testing.T) {
	n := newReplNet(t, true)
	a := n.add("a", func(c *ReplicationConfig, _ *replTable) {
		dial, dead := c.Dial, handListener(t, n, nil, 1)
		c.QueueRecords = 20000
		c.Dial = func(ctx context.Context, p ReplicationPeer) (conn net.Conn, err error) {
			if p.Node == "dead" {
				return dead(ctx, p)
			}
			return dial(ctx, p)
		}
	})
	b := n.add("b", nil)
	a.SetPeers([]ReplicationPeer{{"b", "b"}, {"dead", "dead"}})
	replEventually(t, "b streams", func() bool { return a.status("b").State == ReplicationStreaming })
	var floods sync.WaitGroup
	for part := range uint64(4) {
		floods.Go(func() {
			for k := range uint64(20000) {
				a.Publish(a.table.put(part<<32|k, 1))
				if k%500 == 0 {
					replEventually(t, "b follows", func() bool { return a.status("b").LagRecords < 10000 })
				}
			}
		})
	}
	floods.Wait()
	n.awaitEqual(a, b)
	if s := a.status("b"); s.Resyncs != 0 || s.Dropped != 0 {
		t.Errorf("healthy peer has status %+v", s)
	}
	a.log.mu.Lock()
	defer a.log.mu.Unlock()
	if held := len(a.log.segments) + len(a.log.free); held > 20000/a.log.segmentRecords+replFreeSegments+2 {
		t.Errorf("%d segments are held", held)
	}
}
