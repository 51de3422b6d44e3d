package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestReplicationRefusalIsClearOnBothSides(t *testing.T) {
	convert := func(uint16, uint16, []byte) error { return nil }
	for name, c := range map[string]struct {
		tune func(*ReplicationConfig)
		want string
	}{
		"record version": {func(c *ReplicationConfig) { c.RecordVersions, c.Convert = []uint16{3, 2}, convert }, "record versions [3 2] are offered and [1] are spoken here"},
		"record size":    {func(c *ReplicationConfig) { c.RecordSize = 64 }, "records of a have 64 bytes, those of b 128"},
		"name":           {func(c *ReplicationConfig) { c.Node = "eve" }, `a calls itself "eve"`},
	} {
		t.Run(name, func(t *testing.T) {
			n := newReplNet(t, false)
			a := n.add("a", func(cfg *ReplicationConfig, _ *replTable) { c.tune(cfg) })
			b := n.add("b", nil)
			b.SetPeers([]ReplicationPeer{{"a", "nowhere"}})
			a.SetPeers([]ReplicationPeer{{"b", "b"}})
			replEventually(t, "both sides say why", func() bool {
				return strings.Contains(a.status("b").LastError, c.want) && strings.Contains(b.status("a").InboundError, c.want)
			})
			if s := a.status("b"); s.State != ReplicationDown || s.Sent != 0 {
				t.Errorf("refused peer has status %+v", s)
			}
			if b.table.begins("a") != 0 {
				t.Error("the sink was called for a refused stream")
			}
		})
	}
}

func TestReplicationOtherProtocolIsRefused(t *testing.T) {
	n := newReplNet(t, false)
	b := n.add("b", nil)
	b.SetPeers([]ReplicationPeer{{"a", "nowhere"}})
	h := n.handDial(b, "a")
	h.send(appendReplGreeting(nil, 9, []byte("something newer")))
	_, body, err := readReplGreeting(h.conn)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := parseReplReply(body)
	want := "a speaks replication protocol 9, b speaks [1]"
	if err != nil || reply.accepted || !strings.Contains(reply.reason, want) {
		t.Errorf("reply %+v, %v", reply, err)
	}
	replEventually(t, "b says why", func() bool { return strings.Contains(b.status("a").InboundError, want) })
}

func TestReplicationWrongNodeIsNotStreamedTo(t *testing.T) {
	n := newReplNet(t, false)
	a, b := n.add("a", nil), n.add("b", nil)
	a.SetPeers([]ReplicationPeer{{"c", "b"}})
	replEventually(t, "a says why", func() bool { return strings.Contains(a.status("c").LastError, `reached node "b" instead of "c"`) })
	if b.table.begins("a") != 0 {
		t.Error("the sink of the wrong node was called")
	}
}

// Records of an older version are converted on both sides, whoever is newer.
func TestReplicationConvertsBetweenVersions(t *testing.T) {
	// Version 2 holds the record's version plus 1000 where version 1 has it plain.
	convert := func(from, to uint16, records []byte) error {
		for ; len(records) > 0; records = records[replTestRecord:] {
			v := binary.BigEndian.Uint64(records[8:])
			binary.BigEndian.PutUint64(records[8:], v+uint64(to)*1000-uint64(from)*1000)
		}
		return nil
	}
	n := newReplNet(t, false)
	old := n.add("old", nil)
	recent := n.add("recent", func(c *ReplicationConfig, _ *replTable) { c.RecordVersions, c.Convert = []uint16{2, 1}, convert })
	old.table.put(1, 5)
	recent.table.put(2, 1006)
	n.mesh()
	replEventually(t, "snapshots are converted", func() bool {
		return recent.table.replica("old")[1] == 1005 && old.table.replica("recent")[2] == 6
	})
	old.Publish(old.table.put(3, 7))
	recent.Publish(recent.table.put(4, 1008))
	replEventually(t, "changes are converted", func() bool {
		return recent.table.replica("old")[3] == 1007 && old.table.replica("recent")[4] == 8
	})
}

// replHand is the other end of a stream, driven by the test.
type replHand struct {
	t    *testing.T
	conn net.Conn
}

// handDial opens a stream to a node as from would, before the greeting.
func (n *replNet) handDial(to *replNode, from string) replHand {
	near, far, err := replConnPair(n.pipe)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = near.Close() })
	n.wg.Go(func() { to.Serve(n.ctx, far, from) })
	return replHand{n.t.(*testing.T), near}
}

func (h replHand) send(b []byte) {
	h.t.Helper()
	_ = h.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := h.conn.Write(b); err != nil {
		h.t.Fatal(err)
	}
}

func (h replHand) greet(from string, protocols ...uint16) {
	h.t.Helper()
	h.send(appendReplGreeting(nil, replProtocolPlain, replOffer{recordSize: replTestRecord, node: from, versions: []uint16{1}, protocols: protocols}.encode()))
	_, body, err := readReplGreeting(h.conn)
	if err != nil {
		h.t.Fatal(err)
	}
	if reply, err := parseReplReply(body); err != nil || !reply.accepted {
		h.t.Fatalf("greeting answered with %+v, %v", reply, err)
	}
}

// goodbye reads frames up to the bye and returns its reason.
func (h replHand) goodbye() string {
	h.t.Helper()
	for {
		f, payload, err := readReplFrame(h.conn, replTestRecord, nil)
		if err != nil {
			h.t.Fatalf("no goodbye: %v", err)
		}
		if f.typ == replFrameBye {
			return string(payload)
		}
	}
}

func replTestFrame(f replFrame, payload ...byte) []byte {
	f.length = uint32(len(payload))
	return append(appendReplFrame(nil, f), payload...)
}

func TestReplicationMalformedStreamIsEnded(t *testing.T) {
	begin := replTestFrame(replFrame{typ: replFrameSnapshotBegin, sequence: 1}, 0, 0, 0, 0, 0, 0, 0, 1)
	end := func(generation, records byte) []byte {
		return replTestFrame(replFrame{typ: replFrameSnapshotEnd, sequence: 2}, 0, 0, 0, 0, 0, 0, 0, generation, 0, 0, 0, 0, 0, 0, 0, records)
	}
	record := func(sequence uint64, flags uint8) []byte {
		return replTestFrame(replFrame{typ: replFrameRecords, sequence: sequence, count: 1, flags: flags}, replRecord(1, 1, false)...)
	}
	for name, c := range map[string]struct {
		bytes []byte
		want  string
	}{
		"gap in the sequence":     {slices.Concat(begin, record(3, 0)), "frame 3 after frame 1"},
		"frame sent twice":        {slices.Concat(begin, begin), "frame 1 after frame 1"},
		"change before snapshot":  {record(1, 0), "records outside of a snapshot"},
		"snapshot after its end":  {slices.Concat(begin, end(1, 0), record(3, replFlagSnapshot)), "records outside of a snapshot"},
		"end of another snapshot": {slices.Concat(begin, end(2, 0)), "end of snapshot 2"},
		"snapshot is short":       {slices.Concat(begin, end(1, 3)), "with 3 records, in snapshot 1 with 0"},
		"ack from the sender":     {replTestFrame(replFrame{typ: replFrameAck, sequence: 1}), "frame type 5 from the sending side"},
		"garbage":                 {[]byte("GET / HTTP/1.1\r\nHost: b\r\n\r\n"), "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newReplNet(t, false)
			b := n.add("b", nil)
			b.SetPeers([]ReplicationPeer{{"a", "nowhere"}})
			h := n.handDial(b, "a")
			h.greet("a")
			h.send(c.bytes)
			if got := h.goodbye(); !strings.Contains(got, c.want) {
				t.Errorf("goodbye says %q", got)
			}
			replEventually(t, "b says why", func() bool {
				s := b.status("a")
				return s.Inbound == ReplicationDown && strings.Contains(s.InboundError, c.want)
			})
		})
	}
}

func TestReplicationMalformedAnswersEndTheStream(t *testing.T) {
	for name, c := range map[string]struct {
		bytes []byte
		want  string
	}{
		"ack of the future": {replTestFrame(replFrame{typ: replFrameAck, sequence: 1000}), "frame 1000 acknowledged"},
		"records":           {replTestFrame(replFrame{typ: replFrameRecords, sequence: 1, count: 1}, replRecord(1, 1, false)...), "instead of an acknowledgement"},
		"bye":               {replTestFrame(replFrame{typ: replFrameBye}, []byte("no room")...), "peer ended the stream: no room"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newReplNet(t, false)
			a := n.add("a", func(cfg *ReplicationConfig, _ *replTable) { cfg.Dial = handListener(t, n, c.bytes, 1) })
			a.SetPeers([]ReplicationPeer{{"b", "b"}})
			replEventually(t, "a says why", func() bool { return strings.Contains(a.status("b").LastError, c.want) })
		})
	}
}

// handListener answers every stream's greeting, then with the given bytes, and
// then reads in silence.
func handListener(t *testing.T, n *replNet, answer []byte, protocol uint16) func(context.Context, ReplicationPeer) (net.Conn, error) {
	return func(_ context.Context, p ReplicationPeer) (net.Conn, error) {
		near, far, err := replConnPair(n.pipe)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = far.Close() })
		n.wg.Go(func() {
			if _, _, err := readReplGreeting(far); err != nil {
				return
			}
			reply := replReply{accepted: true, version: 1, node: p.Node}
			if _, err := far.Write(append(appendReplGreeting(nil, protocol, reply.encode()), answer...)); err != nil {
				return
			}
			buf := make([]byte, 4096)
			for err == nil {
				_, err = far.Read(buf)
			}
		})
		return near, nil
	}
}

func TestReplicationNewerStreamReplacesTheOlder(t *testing.T) {
	n := newReplNet(t, false)
	var inside atomic.Int32
	release := make(chan struct{})
	b := n.add("b", func(_ *ReplicationConfig, m *replTable) {
		m.gate = func(context.Context, string) error {
			if inside.Add(1) == 1 {
				<-release // deaf to its context: the newer stream must wait
			}
			return nil
		}
	})
	begin := replTestFrame(replFrame{typ: replFrameSnapshotBegin, sequence: 1}, 0, 0, 0, 0, 0, 0, 0, 1)
	record := func(key uint64) []byte {
		return replTestFrame(replFrame{typ: replFrameRecords, sequence: 2, count: 1}, replRecord(key, 1, false)...)
	}
	older, newer := n.handDial(b, "a"), n.handDial(b, "a")
	older.greet("a")
	older.send(slices.Concat(begin, record(1)))
	replEventually(t, "the sink is busy", func() bool { return inside.Load() == 1 })
	newer.greet("a")
	newer.send(slices.Concat(begin, record(2)))
	// The table also reports overlapping calls by itself; this leaves them time.
	if replSleep(t.Context(), 50*time.Millisecond); b.table.begins("a") != 1 {
		t.Error("the newer stream began its snapshot while the sink worked for the older")
	}
	close(release)
	if got := older.goodbye(); got != errReplReplaced.Error() {
		t.Errorf("the older stream was told %q", got)
	}
	replEventually(t, "the newer stream is applied", func() bool { return b.table.replica("a")[2] == 1 })
	if s := b.status("a"); s.Inbound != ReplicationSnapshot || s.InboundError != "" {
		t.Errorf("status %+v", s)
	}
}

func TestReplicationSinkErrorEndsTheStreamAndResyncs(t *testing.T) {
	n := newReplNet(t, false)
	var calls atomic.Int32
	a := n.add("a", func(_ *ReplicationConfig, m *replTable) { m.put(1, 1) })
	b := n.add("b", func(_ *ReplicationConfig, m *replTable) {
		m.gate = func(context.Context, string) error {
			if calls.Add(1) <= 2 {
				return errors.New("map is full")
			}
			return nil
		}
	})
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	n.awaitEqual(a, b)
	if s := a.status("b"); s.Resyncs != 2 || !strings.Contains(s.LastError, "map is full") {
		t.Errorf("status %+v", s)
	}
}

func TestReplicationSilentPeerIsDownAfterTheStallTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newReplNet(t, true)
		a := n.add("a", func(c *ReplicationConfig, _ *replTable) { c.Dial = handListener(t, n, nil, 1) })
		b := n.add("b", nil)
		b.SetPeers([]ReplicationPeer{{"a", "nowhere"}})
		began := time.Now()
		a.SetPeers([]ReplicationPeer{{"b", "b"}})
		h := n.handDial(b, "a")
		h.greet("a")
		n.wg.Go(func() { _ = h.goodbye() })
		synctest.Wait()
		if a.status("b").State != ReplicationSnapshot || b.status("a").Inbound != ReplicationSnapshot {
			t.Errorf("streams did not begin: %+v, %+v", a.Status(), b.Status())
		}
		<-time.After(2900 * time.Millisecond)
		if a.status("b").LastError != "" || b.status("a").InboundError != "" {
			t.Errorf("down too early: %+v, %+v", a.Status(), b.Status())
		}
		replEventually(t, "down on both sides", func() bool {
			return strings.Contains(a.status("b").LastError, "peer was silent for 3s") &&
				strings.Contains(b.status("a").InboundError, "peer was silent for 3s")
		})
		if took := time.Since(began); took > 3300*time.Millisecond {
			t.Errorf("took %v", took)
		}
		n.stop()
	})
}

func TestReplicationIdleStreamStaysUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newReplNet(t, true)
		a, b := n.add("a", nil), n.add("b", nil)
		n.mesh()
		n.awaitEqual(a, b)
		<-time.After(time.Hour)
		if s := a.status("b"); s.State != ReplicationStreaming || s.Resyncs != 0 {
			t.Errorf("after an idle hour: %+v", s)
		}
		n.stop()
	})
}

// A sink that takes long over a snapshot's end is not a dead node, but one that
// never comes back is given up.
func TestReplicationSlowSinkIsNotADeadNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newReplNet(t, true)
		patience := 20 * time.Second
		a := n.add("a", nil)
		b := n.add("b", func(_ *ReplicationConfig, m *replTable) {
			m.end = func(ctx context.Context, _ string) error {
				replSleep(ctx, patience)
				return ctx.Err()
			}
		})
		a.SetPeers([]ReplicationPeer{{"b", "b"}})
		<-time.After(19 * time.Second)
		a.Publish(a.table.put(1, 1))
		if s := a.status("b"); s.State != ReplicationSnapshot || s.LastError != "" {
			t.Errorf("while the sink works: %+v", s)
		}
		<-time.After(2 * time.Second)
		n.awaitEqual(a, b)
		if s := a.status("b"); s.Resyncs != 0 {
			t.Errorf("after the sink has worked: %+v", s)
		}
		patience = time.Hour
		a.Overrun("test")
		<-time.After(35 * time.Second)
		if s := a.status("b"); !strings.Contains(s.LastError, "alive but has applied nothing") {
			t.Errorf("after the sink hung: %+v", s)
		}
		n.stop()
	})
}

func TestReplicationConfigReportsEverythingWrong(t *testing.T) {
	err := ReplicationConfig{RecordVersions: []uint16{2, 1}, BatchRecords: 1 << 20, StallTimeout: time.Millisecond}.Validate()
	for _, want := range []string{"node name", "a batch of", "queue of", "need Convert", "Dial", "Source", "Sink", "stall timeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not reported: %v", want, err)
		}
	}
}
