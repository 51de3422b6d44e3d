package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
)

// rank is the value that p percent of the values do not exceed.
func rank[T any](sorted []T, p int) T {
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// BenchmarkReplicationNewFlows opens and closes TCP connections through a
// fullnat service as fast as one client host can and reports how many there
// were, how many flow records the backups acknowledged, and how old the oldest
// record not yet acknowledged was, looked at every 20 ms.
func BenchmarkReplicationNewFlows(b *testing.B) {
	const during = 5 * time.Second
	l := newCluster(b, lab.Config{Topology: lab.OneLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	for _, ep := range l.Endpoints() {
		acceptAll(b, ep)
	}
	declare(b, l, "fullnat", false)
	m := master(b, l, "")
	waitOnlyHolder(b, 5*time.Second, l, m.Name(), lab.ServiceVIP())
	for b.Loop() {
		ctx, cancel := context.WithTimeout(b.Context(), during)
		var g errgroup.Group
		var opened, failed atomic.Uint64
		for range 32 {
			g.Go(func() error {
				for ctx.Err() == nil {
					if err := touch(ctx, l.Clients()[0]); err == nil {
						opened.Add(1)
					} else if ctx.Err() == nil {
						failed.Add(1)
					}
				}
				return nil
			})
		}
		_, before, _, err := replicationOf(b.Context(), m)
		if err != nil {
			b.Fatal(err)
		}
		lags := sampleLag(ctx, b, m)
		_ = g.Wait() // nobody returns an error
		cancel()
		sent, acked, dropped, err := replicationOf(b.Context(), m)
		if err != nil {
			b.Fatal(err)
		}
		if failed.Load() > opened.Load()/100 || dropped > 0 {
			b.Errorf("%d of %d connections failed, %d records dropped of %d", failed.Load(), failed.Load()+opened.Load(), dropped, sent)
		}
		b.ReportMetric(float64(opened.Load())/during.Seconds(), "conns/s")
		b.ReportMetric(float64(acked-before)/during.Seconds(), "acked-records/s")
		b.ReportMetric(rank(lags, 50), "ms-lag-p50")
		b.ReportMetric(rank(lags, 99), "ms-lag-p99")
	}
}

// acceptAll accepts connections and closes each when its client does.
func acceptAll(b *testing.B, ep *lab.Host) {
	b.Helper()
	ln, err := ep.Listen(netip.AddrPortFrom(ep.Addr(), webPort))
	if err != nil {
		b.Fatal(err)
	}
	background(b, "acceptor on "+ep.Name(), func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { ln.Close() })
		defer stop()
		var conns errgroup.Group
		for {
			c, err := ln.Accept()
			if err != nil {
				if ctx.Err() == nil {
					return errors.Join(err, conns.Wait())
				}
				return conns.Wait()
			}
			conns.Go(func() error {
				defer c.Close()
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				_, _ = c.Read(make([]byte, 1)) // ends with the client's reset
				return nil
			})
		}
	})
}

// touch opens a connection and resets it, which leaves no port waiting.
func touch(ctx context.Context, from *lab.Host) error {
	c, err := from.Dial(ctx, webVIP)
	if err != nil {
		return err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		if err := tcp.SetLinger(0); err != nil {
			return errors.Join(err, c.Close())
		}
	}
	return c.Close()
}

type replicationStatus struct {
	Replication []struct {
		Peer    string  `json:"peer"`
		Sent    uint64  `json:"sent"`
		Acked   uint64  `json:"acked"`
		Dropped uint64  `json:"dropped"`
		LagMS   float64 `json:"lag_ms"`
	} `json:"replication"`
}

// replicationOf sums up over the peers of n.
func replicationOf(ctx context.Context, n *lab.Node) (sent, acked, dropped uint64, err error) {
	var s replicationStatus
	err = get(ctx, n, "/v1/status", &s)
	for _, r := range s.Replication {
		sent, acked, dropped = sent+r.Sent, acked+r.Acked, dropped+r.Dropped
	}
	return sent, acked, dropped, err
}

// sampleLag looks until ctx ends and returns what it saw, sorted.
func sampleLag(ctx context.Context, b *testing.B, n *lab.Node) []float64 {
	b.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var lags []float64
	for {
		select {
		case <-ctx.Done():
			slices.Sort(lags)
			if len(lags) == 0 {
				b.Fatal("the lag was never seen")
			}
			return lags
		case <-tick.C:
		}
		var s replicationStatus
		if err := get(ctx, n, "/v1/status", &s); err != nil {
			continue // at the end of ctx
		}
		for _, r := range s.Replication {
			lags = append(lags, r.LagMS)
		}
	}
}
