package transport

import (
	"context"
	"iter"
	"slices"
	"testing"
	"time"
)

// replNull is a sink that forgets and a source that has nothing.
type replNull struct{}

func (replNull) SnapshotBegin(string)                        {}
func (replNull) Apply(context.Context, string, []byte) error { return nil }
func (replNull) SnapshotEnd(context.Context, string) error   { return nil }
func (replNull) Snapshot(context.Context) iter.Seq2[[]byte, error] {
	return func(func([]byte, error) bool) {}
}

func replBenchPair(b *testing.B) (a, z *replNode) {
	n := newReplNet(b, false)
	null := func(c *ReplicationConfig, _ *replTable) { c.Source, c.Sink = replNull{}, replNull{} }
	a, z = n.add("a", null), n.add("b", null)
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	replEventually(b, "streaming", func() bool { return a.status("b").State == ReplicationStreaming })
	return a, z
}

// BenchmarkReplicationThroughput publishes as fast as the peer acknowledges,
// over plain loopback TCP, with a sink that does nothing.
func BenchmarkReplicationThroughput(b *testing.B) {
	a, _ := replBenchPair(b)
	batch := make([]byte, 64*replTestRecord)
	b.SetBytes(replTestRecord)
	b.ReportAllocs()
	b.ResetTimer()
	for sent := 0; sent < b.N; {
		for i := 0; i < 256 && sent < b.N; i++ {
			n := min(64, b.N-sent)
			a.Publish(batch[:n*replTestRecord])
			sent += n
		}
		for a.status("b").LagRecords > 200000 {
			<-time.After(100 * time.Microsecond)
		}
	}
	replEventually(b, "all is acknowledged", func() bool { return a.status("b").LagRecords == 0 })
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	if s := a.status("b"); s.Dropped != 0 {
		b.Errorf("dropped %d", s.Dropped)
	}
}

// BenchmarkReplicationLag publishes 50 000 records a second, 50 every
// millisecond, and reports how long batches took to be acknowledged.
func BenchmarkReplicationLag(b *testing.B) {
	a, _ := replBenchPair(b)
	batch := make([]byte, 50*replTestRecord)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	lags := make([]float64, 0, b.N)
	for b.Loop() {
		<-tick.C
		a.Publish(batch)
		lags = append(lags, a.status("b").LastLagMS)
	}
	slices.Sort(lags)
	b.ReportMetric(lags[len(lags)/2], "p50-ms")
	b.ReportMetric(lags[len(lags)*99/100], "p99-ms")
	b.ReportMetric(lags[len(lags)-1], "max-ms")
}

// BenchmarkReplicationAppend is what publishing 64 records costs the reader of
// the ring with three peers, and what their writers cost beside it.
func BenchmarkReplicationAppend(b *testing.B) {
	l := newReplLog(replTestRecord, 256, 1<<19)
	cursors := []*replCursor{l.addCursor(), l.addCursor(), l.addCursor()}
	for _, c := range cursors {
		l.open(c)
	}
	batch, out := make([]byte, 64*replTestRecord), []byte(nil)
	var readers time.Duration
	b.SetBytes(int64(len(batch)))
	b.ReportAllocs()
	rounds := 0
	for b.Loop() {
		l.append(batch, 0)
		if rounds++; rounds%16 != 0 {
			continue
		}
		began := time.Now()
		for _, c := range cursors {
			for n := 1; n > 0; {
				out, n, _, _ = l.next(c, replNoLimit, 256, out[:0])
			}
		}
		readers += time.Since(began)
	}
	b.ReportMetric(float64((b.Elapsed()-readers).Nanoseconds())/float64(b.N), "append-ns/op")
}
