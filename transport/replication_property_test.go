package transport

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// replOp is one thing that happens to a node's table or its stream.
type replOp struct {
	kind string
	key  uint64
}

func drawReplOps(rt *rapid.T, label string, longest int) []replOp {
	kinds := rapid.SampledFrom([]string{"put", "put", "put", "put", "delete", "delete", "burst", "flush", "lose", "cut"})
	return rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) replOp {
		return replOp{kinds.Draw(rt, "kind"), rapid.Uint64Range(0, 40).Draw(rt, "key")}
	}), 0, longest).Draw(rt, label)
}

// act does one operation. version is unique, so that an old record is told from
// a new one.
func (n *replNet) act(a *replNode, op replOp, version uint64) {
	switch op.kind {
	case "put":
		a.Publish(a.table.put(op.key, version))
	case "delete":
		a.Publish(a.table.del(op.key))
	case "burst": // more than the queue holds
		for i := range uint64(30) {
			a.Publish(a.table.put(op.key+i%4, version+i))
		}
	case "flush":
		a.log.flush()
	case "lose":
		a.table.put(op.key, version)
		a.table.del(op.key + 1)
		a.Overrun("test")
	case "cut":
		n.sever("a", "b")
	}
}

// Whatever happens before, between and after the chunks of a snapshot, the peer
// ends up with exactly what lives here.
func TestReplicationInterleavingsConverge(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newReplNet(t, true)
		defer n.stop()
		version := uint64(1)
		var during [][]replOp
		for range rapid.IntRange(0, 12).Draw(rt, "steps") {
			during = append(during, drawReplOps(rt, "during", 6))
		}
		var a *replNode
		a = n.add("a", func(c *ReplicationConfig, m *replTable) {
			c.QueueRecords, c.BatchRecords = 20, 4
			c.ReconnectMin, c.ReconnectMax = time.Millisecond, 4*time.Millisecond
			c.FlushInterval = time.Millisecond
			m.chunk = rapid.IntRange(1, 10).Draw(rt, "chunk")
			m.step = func(int) {
				if len(during) == 0 {
					return
				}
				ops := during[0]
				during = during[1:]
				for _, op := range ops {
					version += 100
					n.act(a, op, version)
				}
			}
		})
		for k := range rapid.Uint64Range(0, 40).Draw(rt, "live before") {
			a.table.put(k, 1)
		}
		b := n.add("b", func(_ *ReplicationConfig, m *replTable) {
			m.replicas["a"] = map[uint64]uint64{3: 999999, 77: 1}
		})
		a.SetPeers([]ReplicationPeer{{"b", "b"}})
		replEventually(t, "the first snapshot is through", func() bool { return a.status("b").State == ReplicationStreaming })
		after := drawReplOps(rt, "after", 20)
		for i, op := range after {
			n.act(a, op, 1<<32+uint64(i)*100)
		}
		n.awaitEqual(a, b)
	})
}

// The log hands every cursor each record once, in order, or says that it fell
// behind.
func TestReplicationLogKeepsOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const bound = 50
		l := newReplLog(1, 4, bound)
		published := []byte{}
		type reader struct {
			c      *replCursor
			active bool
			at     int // in published
		}
		var readers []*reader
		for range 3 {
			readers = append(readers, &reader{c: l.addCursor()})
		}
		check := func(r *reader) {
			limit := rapid.Uint64Range(l.base, l.head+5).Draw(rt, "limit")
			got, n, _, ok := l.next(r.c, limit, rapid.IntRange(1, 20).Draw(rt, "most"), nil)
			switch lag := len(published) - r.at; {
			case !r.active && ok:
				rt.Fatalf("a cursor that is not open was read")
			case r.active && ok != (lag <= bound):
				rt.Fatalf("lag %d of %d: ok is %v", lag, bound, ok)
			case n != len(got) || (n > 0 && !slices.Equal(got, published[r.at:r.at+n])):
				rt.Fatalf("got %v, not what follows %d", got, r.at)
			case !ok:
				r.active = false
			}
			r.at += n
		}
		rt.Repeat(map[string]func(*rapid.T){
			"publish": func(rt *rapid.T) {
				records := make([]byte, rapid.IntRange(1, 30).Draw(rt, "records"))
				for i := range records {
					records[i] = byte(len(published) + i)
				}
				l.append(records, 0)
				published = append(published, records...)
			},
			"flush": func(*rapid.T) { l.flush() },
			"open": func(rt *rapid.T) {
				r := rapid.SampledFrom(readers).Draw(rt, "reader")
				l.open(r.c)
				r.active, r.at = true, len(published)
			},
			"read": func(rt *rapid.T) { check(rapid.SampledFrom(readers).Draw(rt, "reader")) },
			"": func(rt *rapid.T) {
				if most := bound/l.segmentRecords + 2; len(l.segments) > most+30/l.segmentRecords {
					rt.Fatalf("%d segments are kept for a bound of %d records", len(l.segments), bound)
				}
			},
		})
	})
}
