package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
)

// BenchmarkCommitLatency reports how long a change takes from the request on a
// node's socket to the answer with its index: committed by a majority, on
// disk, applied on that node. Three nodes share this machine and its disk. With
// sixteen writers at once it also says how many changes a second there were.
func BenchmarkCommitLatency(b *testing.B) {
	const writes = 320
	l := newCluster(b, lab.Config{Topology: lab.OneLeg, Nodes: 3})
	cli(b, l.Nodes()[0], "vip", "create", lab.ServiceVIP().String())
	old := master(b, l, "")
	leader := leads(b, l, old, false) // it leaves the master once all is calm, which had better not be later
	follower := l.Nodes()[slices.IndexFunc(l.Nodes(), func(n *lab.Node) bool { return n != leader && n != old })]
	for b.Loop() {
		for _, via := range []struct {
			name    string
			node    *lab.Node
			writers int
		}{{"leader", leader, 1}, {"follower", follower, 1}, {"16-leader", leader, 16}, {"16-follower", follower, 16}} {
			began := time.Now()
			took := commits(b, via.node, via.writers, writes/via.writers)
			b.ReportMetric(ms(rank(took, 50)), "ms-p50-"+via.name)
			b.ReportMetric(ms(rank(took, 99)), "ms-p99-"+via.name)
			if via.writers > 1 {
				b.ReportMetric(float64(len(took))/time.Since(began).Seconds(), "writes/s-"+via.name)
			}
		}
	}
}

// commits has writers change a service of their own each, one change after the other, and returns how long each
// change took, the shortest first.
func commits(b *testing.B, n *lab.Node, writers, each int) []time.Duration {
	b.Helper()
	took := make([]time.Duration, writers*each)
	g, ctx := errgroup.WithContext(within(b, time.Minute))
	for w := range writers {
		g.Go(func() error {
			name := fmt.Sprintf("bench%d", w)
			for i := range each {
				began := time.Now()
				if err := commit(ctx, n, name, 2000+1000*w+i%1000); err != nil { // each write changes something
					return err
				}
				took[w*each+i] = time.Since(began)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	slices.Sort(took)
	return took
}

func commit(ctx context.Context, n *lab.Node, name string, port int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := put(ctx, n, "/v1/services/"+name, service(name, port))
	return err
}
