package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// What no stream told is found by comparison, and only those buckets are sent anew.
func TestReplicationDigestsRepairWhatDiffers(t *testing.T) {
	n := newReplNet(t, false)
	a := n.add("a", func(c *ReplicationConfig, m *replTable) {
		replWithDigests(c, m)
		for k := range uint64(1000) {
			m.put(k, 1)
		}
	})
	b := n.add("b", replWithDigests)
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	n.awaitEqual(a, b)
	b.table.rot("a", func(replica map[uint64]uint64) {
		delete(replica, 16)
		replica[17] = 9
		replica[5000] = 1 // bucket 8
	})
	n.awaitEqual(a, b)
	replEventually(t, "the repair is counted", func() bool { return a.status("b").BucketsRepaired == 3 })
	s := a.status("b")
	if s.Resyncs != 0 || s.Protocol != 2 || s.RecordsRepaired < 180 || s.RecordsRepaired > 190 || s.DigestRounds == 0 ||
		s.BucketsCompared != s.DigestRounds*replTestBuckets || s.Sent != s.Acked {
		t.Errorf("status %+v", s)
	}
	if got := b.status("a"); got.InboundRepairs == 0 || got.InboundProtocol != 2 {
		t.Errorf("inbound status %+v", got)
	}
}

// Under a load that touches every bucket the comparison must find what stays
// wrong, and the load itself must not be taken for a fault and sent anew.
func TestReplicationDigestsRepairUnderLoad(t *testing.T) {
	n := newReplNet(t, false)
	tune := func(c *ReplicationConfig, m *replTable) {
		replWithDigests(c, m)
		c.DigestInterval = 20 * time.Millisecond
	}
	a := n.add("a", func(c *ReplicationConfig, m *replTable) {
		tune(c, m)
		m.put(1<<40, 1) // outside of what churns
	})
	b := n.add("b", tune)
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	n.awaitEqual(a, b)
	stop, load := make(chan struct{}), sync.WaitGroup{}
	a.churn(&load, 1000, stop)
	b.table.rot("a", func(replica map[uint64]uint64) { delete(replica, 1<<40) })
	replEventually(t, "the lost record is back", func() bool { return b.table.replica("a")[1<<40] == 1 })
	close(stop)
	load.Wait()
	n.awaitEqual(a, b)
	if s := a.status("b"); s.Resyncs != 0 || s.Dropped != 0 {
		t.Errorf("status %+v", s)
	}
}

// A record that comes after its own removal leaves a replica of nothing, which no
// further change ever touches.
func TestReplicationDigestsRemoveWhatWasOvertaken(t *testing.T) {
	n := newReplNet(t, false)
	a, b := n.add("a", replWithDigests), n.add("b", replWithDigests)
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	n.awaitEqual(a, b)
	update := a.table.put(1, 1)
	a.Publish(a.table.del(1))
	a.Publish(update)
	n.awaitEqual(a, b)
	replEventually(t, "a repair did it", func() bool { return a.status("b").BucketsRepaired > 0 })
}

// A peer that falls behind during a repair gets a snapshot, and the repair is
// given up on both sides.
func TestReplicationRepairIsGivenUpWhenThePeerFallsBehind(t *testing.T) {
	n := newReplNet(t, true)
	var a *replNode
	flooded := false
	a = n.add("a", func(c *ReplicationConfig, m *replTable) {
		replWithDigests(c, m)
		c.QueueRecords, c.BatchRecords = 100, 10
		m.chunk = 2
		m.step = func(read int) {
			if _, streaming := a.peer("b").streaming(); streaming && read == 2 && !flooded {
				flooded = true
				for k := range uint64(300) {
					a.Publish(m.put(1000+k, 7))
				}
			}
		}
	})
	b := n.add("b", replWithDigests)
	for k := range uint64(160) {
		a.table.put(k, 1)
	}
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	n.awaitEqual(a, b)
	b.table.rot("a", func(replica map[uint64]uint64) { delete(replica, 3) })
	n.awaitEqual(a, b)
	if s := a.status("b"); !flooded || s.ResyncCauses[ReplicationCauseOverflow] == 0 || s.LastError != "" {
		t.Errorf("flooded %v, status %+v", flooded, s)
	}
}

func (n *replNode) peer(name string) *replPeer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers[name]
}

func TestReplicationSuspectsAreRepairedWhenTheyHoldStill(t *testing.T) {
	d := func(bucket uint32, xor uint64) replDifference { return replDifference{bucket, xor} }
	var s replSuspects
	for i, round := range []struct {
		first, second []replDifference
		want          []uint32
	}{
		{nil, nil, nil},
		{[]replDifference{d(1, 5), d(2, 6), d(3, 7)}, []replDifference{d(1, 5), d(2, 7), d(9, 1)}, []uint32{1}},
		// 2 differs for the second to fifth time, 4 pauses once.
		{[]replDifference{d(2, 1), d(4, 1)}, []replDifference{d(2, 2), d(4, 2)}, nil},
		{[]replDifference{d(2, 3), d(4, 3)}, []replDifference{d(2, 4)}, nil},
		{[]replDifference{d(2, 5), d(4, 5)}, []replDifference{d(2, 6), d(4, 6)}, nil},
		{[]replDifference{d(2, 7), d(4, 7)}, []replDifference{d(2, 8), d(4, 8)}, []uint32{2}},
		{[]replDifference{d(2, 7), d(4, 7)}, []replDifference{d(2, 8), d(4, 8)}, nil},
		{[]replDifference{d(2, 7)}, nil, nil},
	} {
		if got := s.judge(round.first, round.second); !slices.Equal(got.repair, round.want) {
			t.Errorf("round %d repairs %v, not %v", i, got.repair, round.want)
		}
	}
	if len(s.streak) != 0 || len(s.futile) != 0 {
		t.Errorf("a round without differences left %v and %v", s.streak, s.futile)
	}
}

// A peer whose table is full differs for ever; it must not be sent half a table
// every minute.
func TestReplicationSuspectsThatRepairsDoNotHelpAreRepairedLess(t *testing.T) {
	var s replSuspects
	same := []replDifference{{7, 1}}
	var rounds []int
	for round := range 40 {
		v := s.judge(same, same)
		if len(v.repair) == 0 {
			continue
		}
		rounds = append(rounds, round)
		if (v.again == 1) != (round > 0) {
			t.Errorf("round %d: %+v", round, v)
		}
	}
	if want := []int{0, 1, 3, 7, 15, 23, 31, 39}; !slices.Equal(rounds, want) {
		t.Errorf("repaired in rounds %v, not %v", rounds, want)
	}
	s.judge(nil, nil)
	if v := s.judge(same, same); len(v.repair) != 1 || v.again != 0 {
		t.Errorf("a bucket that was equal meanwhile: %+v", v)
	}
}

// Whatever the comparisons say, what differs in the same way twice is repaired at
// the latest when its rest is over, and what is equal is never touched.
func TestReplicationSuspectsAreJudgedInTime(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var s replSuspects
		waiting := map[uint32]int{}
		for range rapid.IntRange(1, 60).Draw(rt, "rounds") {
			var first, second []replDifference
			lasting := map[uint32]bool{}
			for b := range uint32(4) {
				switch rapid.IntRange(0, 3).Draw(rt, "bucket") {
				case 1:
					first = append(first, replDifference{b, 1})
					second = append(second, replDifference{b, 1})
					lasting[b] = true
				case 2:
					first = append(first, replDifference{b, 1})
					second = append(second, replDifference{b, 2})
					lasting[b] = true
				case 3:
					first = append(first, replDifference{b, 1})
				}
			}
			v := s.judge(first, second)
			for _, b := range v.repair {
				if !lasting[b] {
					rt.Fatalf("bucket %d was equal and is repaired", b)
				}
				delete(waiting, b)
			}
			for b := range uint32(4) {
				if !lasting[b] {
					delete(waiting, b)
				} else if !slices.Contains(v.repair, b) {
					waiting[b]++
				}
				if waiting[b] >= max(replDigestRounds, replDigestRest) {
					rt.Fatalf("bucket %d has differed in %d rounds and is not repaired", b, waiting[b])
				}
			}
		}
	})
}

// Nodes of both protocols replicate to each other; digests are compared where
// both ends know them.
func TestReplicationProtocolIsTheHighestInCommon(t *testing.T) {
	for name, c := range map[string]struct {
		tuneA, tuneB func(*ReplicationConfig, *replTable)
		want         uint16
	}{
		"3 to 3": {replWithOrphans, replWithOrphans, 3},
		"3 to 2": {replWithOrphans, replWithDigests, 2},
		"2 to 3": {replWithDigests, replWithOrphans, 2},
		"3 to 1": {replWithOrphans, nil, 1},
		"2 to 2": {replWithDigests, replWithDigests, 2},
		"1 to 2": {nil, replWithDigests, 1},
		"2 to 1": {replWithDigests, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			n := newReplNet(t, false)
			a, b := n.add("a", c.tuneA), n.add("b", c.tuneB)
			a.Publish(a.table.put(1, 1))
			n.mesh()
			n.awaitEqual(a, b)
			n.awaitEqual(b, a)
			a.Publish(a.table.put(2, 1))
			n.awaitEqual(a, b)
			if got := a.status("b").Protocol; got != c.want {
				t.Errorf("protocol %d", got)
			}
			if got := b.status("a").InboundProtocol; got != c.want {
				t.Errorf("inbound protocol %d", got)
			}
		})
	}
}

// A node of the first release reads the offer of this one as it reads its own.
func TestReplicationOfferIsReadByProtocolOne(t *testing.T) {
	offer := replOffer{recordSize: 128, node: "lb1", versions: []uint16{2, 1}, protocols: []uint16{2}}
	greeting := appendReplGreeting(nil, replProtocolPlain, offer.encode())
	if want := "PTRP\x00\x01\x00\x0f\x00\x00\x00\x80\x03lb1\x03\x00\x02\x00\x01\xff\x02"; string(greeting) != want {
		t.Fatalf("offer is %q", greeting)
	}
	// What that release does: the list must fill the body, the first version that
	// it speaks counts.
	body := greeting[replGreetingHeader:]
	list := body[4+1+3+1:]
	if len(list) != 2*int(body[8]) {
		t.Fatalf("a list of %d has %d bytes", body[8], len(list))
	}
	var offered []uint16
	for ; len(list) > 0; list = list[2:] {
		offered = append(offered, binary.BigEndian.Uint16(list))
	}
	if got, err := chooseReplVersion(offered, []uint16{1}); err != nil || got != 1 {
		t.Errorf("chose %d, %v", got, err)
	}
}

func TestReplicationNodesWithOtherDigestsDoNotCompare(t *testing.T) {
	n := newReplNet(t, false)
	a := n.add("a", func(c *ReplicationConfig, m *replTable) {
		replWithDigests(c, m)
		c.DigestVersion = 2
	})
	var asked atomic.Int32
	b := n.add("b", func(c *ReplicationConfig, m *replTable) {
		replWithDigests(c, m)
		c.DigestVersion = 1
		c.Digests = countedDigests{m, &asked}
	})
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	n.awaitEqual(a, b)
	b.table.rot("a", func(replica map[uint64]uint64) { replica[1] = 1 })
	p := a.peer("b")
	before := p.windowSequence()
	replEventually(t, "several digests were sent", func() bool { return p.windowSequence() > before+5 })
	if s := a.status("b"); s.DigestRounds != 0 || s.BucketsRepaired != 0 || s.State != ReplicationStreaming || asked.Load() != 0 {
		t.Errorf("asked %d times, status %+v", asked.Load(), s)
	}
}

// countedDigests counts how often a node looks at what it holds.
type countedDigests struct {
	*replTable
	asked *atomic.Int32
}

func (c countedDigests) DigestOf(ctx context.Context, peer string) ([]uint64, error) {
	c.asked.Add(1)
	return c.replTable.DigestOf(ctx, peer)
}

func (p *replPeer) windowSequence() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.window.sequence
}

// One digest serves the streams that compare at the same time, and none serves
// those that come later.
func TestReplicationDigestIsSharedForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newReplTable(t)
		slow := &slowDigests{replTable: table}
		r, err := NewReplicator(ReplicationConfig{
			Node: "a", RecordVersions: []uint16{1}, Source: table, Sink: table, Digests: slow,
			Dial: func(context.Context, ReplicationPeer) (net.Conn, error) { return nil, errors.New("no") },
		})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if _, err := r.digest(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := slow.made.Load(); got != 1 {
			t.Errorf("%d digests were made for four at once", got)
		}
		if _, err := r.digest(t.Context()); err != nil || slow.made.Load() != 2 {
			t.Errorf("%d digests were made, %v", slow.made.Load(), err)
		}
	})
}

// slowDigests takes a second for a digest.
type slowDigests struct {
	*replTable
	made atomic.Int32
}

func (s *slowDigests) Digest(ctx context.Context) ([]uint64, error) {
	s.made.Add(1)
	replSleep(ctx, time.Second)
	return s.replTable.Digest(ctx)
}

func TestReplicationDigestsMalformedStreamIsEnded(t *testing.T) {
	number := func(n byte) []byte { return []byte{0, 0, 0, 0, 0, 0, 0, n} }
	begin := replTestFrame(replFrame{typ: replFrameSnapshotBegin, sequence: 1}, number(1)...)
	end := replTestFrame(replFrame{typ: replFrameSnapshotEnd, sequence: 2}, slices.Concat(number(1), number(0))...)
	whole := slices.Concat(begin, end)
	repair := func(sequence uint64, buckets ...byte) []byte {
		payload := number(1)
		for _, b := range buckets {
			payload = append(payload, 0, 0, 0, b)
		}
		return replTestFrame(replFrame{typ: replFrameRepairBegin, sequence: sequence}, payload...)
	}
	repairEnd := func(sequence uint64, n, records byte) []byte {
		return replTestFrame(replFrame{typ: replFrameRepairEnd, sequence: sequence}, slices.Concat(number(n), number(records))...)
	}
	digest := replTestFrame(replFrame{typ: replFrameDigest, sequence: 1}, make([]byte, 12+8)...)
	orphanDigest := replTestFrame(replFrame{typ: replFrameOrphanDigest, sequence: 1}, make([]byte, 20+8)...)
	orphan := func(sequence uint64) []byte {
		return replTestFrame(replFrame{typ: replFrameRecords, flags: replFlagOrphans, sequence: sequence, count: 1}, replOrphanRecord(1, 1, false)...)
	}
	orphansEnd := func(sequence uint64, records byte) []byte {
		return replTestFrame(replFrame{typ: replFrameOrphansEnd, sequence: sequence}, slices.Concat(number(1), number(records))...)
	}
	for name, c := range map[string]struct {
		protocol uint16
		bytes    []byte
		want     string
	}{
		"digest in protocol 1":     {1, digest, "frame type 7 in protocol 1"},
		"repair in a snapshot":     {2, slices.Concat(begin, repair(2, 1)), "outside of a stream of changes"},
		"repair before a snapshot": {2, repair(1, 1), "outside of a stream of changes"},
		"end of no repair":         {2, slices.Concat(whole, repairEnd(3, 1, 0)), "in repair 0 with 0"},
		"end of another repair":    {2, slices.Concat(whole, repair(3, 1), repairEnd(4, 2, 0)), "end of repair 2"},
		"repair is short":          {2, slices.Concat(whole, repair(3, 1), repairEnd(4, 1, 3)), "with 3 records, in repair 1 with 0"},
		"buckets fall":             {2, slices.Concat(whole, repair(3, 2, 1)), "bucket 1 follows bucket 2"},

		"digest of orphans in protocol 2": {2, orphanDigest, "frame type 11 in protocol 2"},
		"orphans in protocol 2":           {2, slices.Concat(whole, orphan(3)), "in protocol 2"},
		"orphans in a snapshot":           {3, slices.Concat(begin, orphan(2)), "within a snapshot"},
		"orphans in a repair":             {3, slices.Concat(whole, repair(3, 1), orphan(4)), "within a snapshot"},
		"orphans are short":               {3, slices.Concat(whole, orphan(3), orphansEnd(4, 2)), "with 2 records, 1 came"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newReplNet(t, false)
			b := n.add("b", replWithOrphans)
			h := n.handDial(b, "a")
			if c.protocol == 1 {
				h.greet("a")
			} else {
				h.greet("a", c.protocol)
			}
			h.send(c.bytes)
			if got := h.goodbye(); !strings.Contains(got, c.want) {
				t.Errorf("goodbye says %q", got)
			}
		})
	}
}

func TestReplicationMalformedDigestAnswersEndTheStream(t *testing.T) {
	answer := func(number byte, buckets ...uint32) []byte {
		a := replDigestAnswer{number: uint64(number), status: replDigestCompared}
		for _, b := range buckets {
			a.differ = append(a.differ, replDifference{b, 1})
		}
		return replTestFrame(replFrame{typ: replFrameDigestAnswer}, appendReplDigestAnswer(nil, a)...)
	}
	acked := replTestFrame(replFrame{typ: replFrameAck, sequence: 2}) // the snapshot of an empty table
	for name, c := range map[string]struct {
		bytes []byte
		want  string
	}{
		"buckets twice":  {answer(9, 3, 3), "bucket 3 follows bucket 3"},
		"no such bucket": {slices.Concat(answer(1, 4000), acked), "bucket 4000 of 16 differs"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newReplNet(t, false)
			a := n.add("a", func(cfg *ReplicationConfig, m *replTable) {
				replWithDigests(cfg, m)
				cfg.Dial = handListener(t, n, c.bytes, 2)
			})
			a.SetPeers([]ReplicationPeer{{"b", "b"}})
			replEventually(t, "a says why", func() bool { return strings.Contains(a.status("b").LastError, c.want) })
		})
	}
}

// A digest on demand says whether a replica is equal, without repairing it.
func TestReplicationCompareOnDemand(t *testing.T) {
	n := newReplNet(t, false)
	rarely := func(c *ReplicationConfig, m *replTable) { c.Digests = m }
	a, b := n.add("a", rarely), n.add("b", rarely)
	n.add("old", nil)
	for k := range uint64(100) {
		a.table.put(k, 1)
	}
	if _, err := a.Compare(t.Context(), "b"); !errors.Is(err, ErrReplicationNoComparison) {
		t.Errorf("without a stream: %v", err)
	}
	a.SetPeers([]ReplicationPeer{{"b", "b"}, {"old", "old"}})
	n.awaitEqual(a, b)
	replEventually(t, "the old one streams", func() bool { return a.status("old").State == ReplicationStreaming })
	c, err := a.Compare(t.Context(), "b")
	if err != nil || c.Buckets != replTestBuckets || len(c.Differ) != 0 {
		t.Errorf("equal tables: %+v, %v", c, err)
	}
	b.table.rot("a", func(replica map[uint64]uint64) {
		delete(replica, 3)
		replica[5] = 9
	})
	c, err = a.Compare(t.Context(), "b")
	if err != nil || !slices.Equal(c.Differ, []uint32{3, 5}) {
		t.Errorf("tables that differ in 3 and 5: %+v, %v", c, err)
	}
	if _, err := a.Compare(t.Context(), "old"); !errors.Is(err, ErrReplicationNoComparison) {
		t.Errorf("a peer without digests: %v", err)
	}
	if s := a.status("b"); s.BucketsRepaired != 0 || s.DigestRounds != 0 {
		t.Errorf("status %+v", s)
	}
}

// With the default interval a node compares about once a minute, and finds
// nothing to repair on an idle stream.
func TestReplicationDigestRoundsComeOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newReplNet(t, true)
		usual := func(c *ReplicationConfig, m *replTable) { c.Digests = m }
		a, b := n.add("a", usual), n.add("b", usual)
		a.table.put(1, 1)
		n.mesh()
		n.awaitEqual(a, b)
		<-time.After(time.Hour)
		if s := a.status("b"); s.DigestRounds < 54 || s.DigestRounds > 67 || s.BucketsRepaired != 0 || s.Resyncs != 0 {
			t.Errorf("after an idle hour: %+v", s)
		}
		b.table.rot("a", func(replica map[uint64]uint64) { delete(replica, 1) })
		<-time.After(66*time.Second + 3*time.Second)
		if s := a.status("b"); s.BucketsRepaired != 1 || b.table.replica("a")[1] != 1 {
			t.Errorf("a minute after a record was lost: %+v", s)
		}
		n.stop()
	})
}
