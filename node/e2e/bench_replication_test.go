package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/bpf/bpftest"
	"pontoon/internal/lab"
)

// usage is what a process has used of the machine.
type usage struct {
	cpu time.Duration
	rss uint64 // bytes
}

// usageOf reads proc(5) stat, of which utime and stime count in clock ticks of
// 10 ms on every architecture Go runs on, and statm.
func usageOf(b *testing.B, n *lab.Node) usage {
	b.Helper()
	dir := fmt.Sprintf("/proc/%d/", n.Process().PID)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		b.Fatal(err)
	}
	// The name in the second field may hold blanks; it ends with the last bracket.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	ticks := uint64(0)
	for _, f := range fields[11:13] {
		n, err := strconv.ParseUint(string(f), 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	rss, err := strconv.ParseUint(string(fields[21]), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return usage{cpu: time.Duration(ticks) * 10 * time.Millisecond, rss: rss * uint64(os.Getpagesize())}
}

// newFlowCluster is a cluster of so many nodes with the service for made-up
// clients, and its master.
func newFlowCluster(b *testing.B, nodes, room int) (*lab.Lab, *flowMaker, *lab.Node) {
	b.Helper()
	l := newCluster(b, lab.Config{
		Topology: lab.TwoLeg, Nodes: nodes, Clients: 1, Endpoints: 1, NodeArgs: []string{"--max-flows", fmt.Sprint(room)},
	})
	cli(b, l.Nodes()[0], "vip", "create", lab.ServiceVIP().String())
	cli(b, l.Nodes()[0], "vip", "create", lab.GatewayVIP().String(), "--kind", "gateway")
	f := declareBulk(b, l)
	waitApplied(b, l)
	return l, f, master(b, l, "")
}

// BenchmarkReplicationOfNewFlows makes connections in the master's data plane by
// packets, at a rate and as fast as they can be made, and reports what the real
// daemons made of it: the rate at which the peers had them, the lag, and what the
// daemons took of a processor. Making them takes a processor, too. The machine's
// own limit of writing entries into such a table stands beside it.
func BenchmarkReplicationOfNewFlows(b *testing.B) {
	const during = 5 * time.Second
	for _, peers := range []int{1, 2} {
		for _, rate := range []int{10000, 50000, 0} {
			b.Run(fmt.Sprintf("peers=%d/rate=%d", peers, rate), func(b *testing.B) {
				l, f, m := newFlowCluster(b, 1+peers, 2_000_000)
				for b.Loop() {
					before := map[string]usage{}
					for _, n := range l.Nodes() {
						before[n.Name()] = usageOf(b, n)
					}
					made, began := f.made.Load(), time.Now()
					makeFlows(b, f, m, rate, during)
					count := f.made.Load() - made
					waitEqualTables(b, int(f.made.Load()), l.Nodes()...)
					took := time.Since(began)
					b.ReportMetric(float64(count)/took.Seconds(), "flows/s")
					for _, n := range l.Nodes() {
						role := "backup"
						if n == m {
							role = "master"
						}
						u := usageOf(b, n)
						b.ReportMetric((u.cpu-before[n.Name()].cpu).Seconds()/took.Seconds(), "cpus-"+role)
						b.ReportMetric(float64(u.rss)/(1<<20), "MB-"+role)
					}
					for _, p := range replicatedBy(b, m).Peers {
						b.ReportMetric(p.LagP50MS, "ms-lag-p50")
						b.ReportMetric(p.LagP99MS, "ms-lag-p99")
						b.ReportMetric(float64(p.Resyncs), "resyncs")
					}
					b.ReportMetric(batchLimit(b), "entries/s-limit")
				}
			})
		}
	}
}

// makeFlows makes connections for a while: at a rate a second, or on all
// processors as fast as it goes (0).
func makeFlows(b *testing.B, f *flowMaker, n *lab.Node, rate int, during time.Duration) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), during)
	defer cancel()
	var g errgroup.Group
	if rate > 0 {
		g.Go(func() error { return f.openAt(ctx, n, rate) })
	} else {
		for range 2 {
			g.Go(func() error { return f.open(ctx, n, 1<<30) })
		}
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}

// batchLimit is how many entries a second this machine writes into a table of
// the same form, in batches; a connection takes two.
func batchLimit(b *testing.B) float64 {
	b.Helper()
	perSecond, err := bpftest.BatchLimit(1 << 20)
	if err != nil {
		b.Fatal(err)
	}
	return perSecond
}

// BenchmarkReplicationResync cuts a peer off a master with many connections,
// and reports how long the snapshot takes that follows, from its first record to
// the acknowledgement of its end. PONTOON_BENCH_FLOWS says how many connections;
// default a million.
func BenchmarkReplicationResync(b *testing.B) {
	count := fromEnv("PONTOON_BENCH_FLOWS", 1_000_000)
	l, f, m := newFlowCluster(b, 2, count+count/4)
	if err := f.open(b.Context(), m, count); err != nil {
		b.Fatal(err)
	}
	waitEqualTables(b, count, l.Nodes()...)
	peer := (&bigTest{Lab: l}).backup(m)
	for b.Loop() {
		before, began := usageOf(b, m), time.Now()
		beforePeer := usageOf(b, peer)
		resyncs := replicatedBy(b, m).Peers[0].Resyncs
		var r replicated
		for r = replicatedBy(b, m); r.Peers[0].Resyncs == resyncs; r = replicatedBy(b, m) {
			cutStreams(b, peer)
			pass(b, 200*time.Millisecond)
		}
		eventually(b, 2*time.Minute, "the peer to have everything", func(ctx context.Context) error {
			if err := get(ctx, m, "/v1/replication", &r); err != nil {
				return err
			}
			if p := r.Peers[0]; p.State != "streaming" || p.LastSnapshot.Records < uint64(count) {
				return fmt.Errorf("%+v", p)
			}
			return nil
		})
		took := time.Since(began)
		b.ReportMetric(r.Peers[0].LastSnapshot.MS/1000, "s-resync")
		b.ReportMetric(float64(r.Peers[0].LastSnapshot.Records), "records")
		b.ReportMetric((usageOf(b, m).cpu-before.cpu).Seconds()/took.Seconds(), "cpus-master")
		b.ReportMetric((usageOf(b, peer).cpu-beforePeer.cpu).Seconds()/took.Seconds(), "cpus-backup")
		b.ReportMetric(float64(usageOf(b, m).rss)/(1<<20), "MB-master")
		b.ReportMetric(float64(usageOf(b, peer).rss)/(1<<20), "MB-backup")
		b.ReportMetric(batchLimit(b), "entries/s-limit")
	}
}

// openAt opens connections at a rate a second until ctx ends.
func (f *flowMaker) openAt(ctx context.Context, n *lab.Node, rate int) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	began, opened := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		due := int(time.Since(began).Seconds() * float64(rate))
		if err := f.open(ctx, n, due-opened); err != nil {
			return err
		}
		opened = due
	}
}
