package transport

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// replSpin is a source that has nothing and a sink that forgets, after it has kept
// a core busy for a while as writing into a map does.
type replSpin struct{ record time.Duration }

func (replSpin) SnapshotBegin(string) {}

func (s replSpin) Apply(_ context.Context, _ string, records []byte) error {
	if s.record > 0 {
		for end := time.Now().Add(time.Duration(len(records)/replTestRecord) * s.record); time.Now().Before(end); {
		}
	}
	return nil
}

func (replSpin) SnapshotEnd(context.Context, string) error { return nil }

func (replSpin) Snapshot(context.Context) iter.Seq2[[]byte, error] {
	return func(func([]byte, error) bool) {}
}

// replBench is a node that replicates to others through their cluster ports.
type replBench struct {
	*replNode
	b     *testing.B
	muxes map[string]*testMux
	peers []ReplicationPeer
}

const alpnBenchFloor = "bench-floor"

func newReplBench(b *testing.B, peers int, record time.Duration) *replBench {
	n := newReplNet(b, false)
	bench := &replBench{b: b, muxes: map[string]*testMux{}}
	ca := newTestCA(b)
	for i := range peers + 1 {
		name := fmt.Sprintf("node%d", i)
		node := n.add(name, func(c *ReplicationConfig, _ *replTable) {
			c.Source, c.Sink = replSpin{}, replSpin{record}
			c.Dial = func(ctx context.Context, p ReplicationPeer) (net.Conn, error) {
				return bench.muxes[name].Dial(ctx, p.Address, ALPNReplication, p.Node)
			}
		})
		bench.muxes[name] = startMux(b, newTestIdentity(b, ca, name), func(m *Mux) {
			m.Handle(ALPNReplication, node.Serve)
			m.Handle(alpnBenchFloor, func(ctx context.Context, conn net.Conn, peer string) {
				buf := make([]byte, 256*replTestRecord)
				for n, err := 0, error(nil); err == nil; {
					n, err = io.ReadFull(conn, buf)
					_ = replSpin{record}.Apply(ctx, peer, buf[:n])
				}
				// The byte says that all was applied.
				_, _ = conn.Write([]byte{1})
				_ = conn.Close()
			})
		})
		if i == 0 {
			bench.replNode = node
			continue
		}
		bench.peers = append(bench.peers, ReplicationPeer{Node: name, Address: bench.muxes[name].addr()})
	}
	b.Cleanup(n.stop) // before the ports are closed
	bench.SetPeers(bench.peers)
	replEventually(b, "streaming", func() bool {
		return bench.worst(func(s ReplicationStatus) uint64 {
			if s.State == ReplicationStreaming {
				return 0
			}
			return 1
		}) == 0
	})
	return bench
}

func (b *replBench) worst(of func(ReplicationStatus) uint64) (worst uint64) {
	for _, s := range b.Status() {
		worst = max(worst, of(s))
	}
	return worst
}

func (b *replBench) lagRecords() uint64 {
	return b.worst(func(s ReplicationStatus) uint64 { return s.LagRecords })
}

// floor copies as many bytes to every peer over TLS and has the sink take them,
// and nothing else.
func (b *replBench) floor(bytes int) time.Duration {
	var wg sync.WaitGroup
	began := time.Now()
	for _, p := range b.peers {
		wg.Go(func() {
			conn, err := b.muxes["node0"].Dial(b.b.Context(), p.Address, alpnBenchFloor, p.Node)
			if err != nil {
				b.b.Error(err)
				return
			}
			defer conn.Close()
			chunk := make([]byte, replFlushBytes)
			for left := bytes; left > 0 && err == nil; left -= len(chunk) {
				_, err = conn.Write(chunk[:min(left, len(chunk))])
			}
			if err == nil {
				err = conn.(interface{ CloseWrite() error }).CloseWrite()
			}
			if err == nil {
				_, err = io.ReadFull(conn, chunk[:1])
			}
			if err != nil {
				b.b.Error(err)
			}
		})
	}
	wg.Wait()
	return time.Since(began)
}

// replCPU is the processor time that this process has used.
func replCPU(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkReplicationThroughput publishes as fast as the slowest peer acknowledges,
// over mutual TLS on loopback, with a sink that costs nothing and with one that costs
// as much as writing a flow. of-floor is the speed beside that of copying the same
// bytes to the same sink over a bare connection of the same kind in the same run;
// cpu-ns is the processor time of all ends for each published record.
func BenchmarkReplicationThroughput(b *testing.B) {
	for _, peers := range []int{1, 2} {
		for _, record := range []time.Duration{0, 1500 * time.Nanosecond} {
			b.Run(fmt.Sprintf("peers=%d/sink=%v", peers, record), func(b *testing.B) {
				bench := newReplBench(b, peers, record)
				batch := make([]byte, 64*replTestRecord)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				cpu := replCPU(b)
				b.SetBytes(replTestRecord)
				b.ResetTimer()
				for sent := 0; sent < b.N; {
					for i := 0; i < 256 && sent < b.N; i++ {
						n := min(64, b.N-sent)
						bench.Publish(batch[:n*replTestRecord])
						sent += n
					}
					for bench.lagRecords() > 50000 {
						<-time.After(200 * time.Microsecond)
					}
				}
				replEventually(b, "all is acknowledged", func() bool { return bench.lagRecords() == 0 })
				b.StopTimer()
				cpu = replCPU(b) - cpu
				runtime.ReadMemStats(&after)
				took := b.Elapsed()
				floor := bench.floor(b.N * replTestRecord)
				b.ReportMetric(float64(b.N)/took.Seconds(), "records/s")
				b.ReportMetric(floor.Seconds()/took.Seconds(), "of-floor")
				b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N), "cpu-ns/record")
				b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(b.N), "allocs/record")
				if dropped := bench.worst(func(s ReplicationStatus) uint64 { return s.Dropped }); dropped != 0 {
					b.Errorf("dropped %d", dropped)
				}
			})
		}
	}
}

// BenchmarkReplicationAtRate publishes so many records a second, an equal part of
// them every millisecond as the reader of the ring does, to one peer over mutual
// TLS. An operation is a millisecond. It reports the lag and what both ends use of
// the processor.
func BenchmarkReplicationAtRate(b *testing.B) {
	for _, rate := range []int{1000, 50000, 200000} {
		b.Run(fmt.Sprint(rate), func(b *testing.B) {
			bench := newReplBench(b, 1, 0)
			batch := make([]byte, rate/1000*replTestRecord)
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			cpu, began, due := replCPU(b), time.Now(), 0
			for b.Loop() {
				<-tick.C
				// A tick that was missed is made up for: the rate counts.
				for ; due < int(time.Since(began)/time.Millisecond); due++ {
					bench.Publish(batch)
				}
			}
			records, took := float64(due*rate/1000), time.Since(began)
			cpu = replCPU(b) - cpu
			replEventually(b, "all is acknowledged", func() bool { return bench.lagRecords() == 0 })
			s := bench.Status()[0]
			b.ReportMetric(s.LagP50MS, "p50-ms")
			b.ReportMetric(s.LagP99MS, "p99-ms")
			b.ReportMetric(float64(cpu.Nanoseconds())/records, "cpu-ns/record")
			b.ReportMetric(100*cpu.Seconds()/took.Seconds(), "%core")
		})
	}
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
