package benchtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	bulkBuffer  = 256 << 10
	bulkWarmUp  = 500 * time.Millisecond // slow start and the first buffers
	dialTimeout = 5 * time.Second
)

// bulk sends on so many connections at once and measures what arrives.
func (b *bench) bulk(ctx context.Context, p *path, streams int) (Sample, error) {
	conns := make([]net.Conn, 0, streams)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range streams {
		dctx, cancel := context.WithTimeout(ctx, dialTimeout)
		c, err := b.client.Dial(dctx, netip.AddrPortFrom(p.target, BulkPort))
		cancel()
		if err != nil {
			return Sample{}, err
		}
		conns = append(conns, c)
	}
	sctx, stop := context.WithCancel(ctx)
	defer stop()
	var g errgroup.Group
	for _, c := range conns {
		g.Go(func() error {
			stop := context.AfterFunc(sctx, func() { c.Close() })
			defer stop()
			buf := make([]byte, bulkBuffer)
			for {
				if _, err := c.Write(buf); err != nil {
					if sctx.Err() != nil {
						return nil
					}
					return fmt.Errorf("send: %w", err)
				}
			}
		})
	}
	m, err := b.measure(ctx, bulkWarmUp, b.server.swallowed.Load)
	stop()
	if err := errors.Join(err, g.Wait()); err != nil {
		return Sample{}, err
	}
	if m.count == 0 {
		return Sample{}, errors.New("nothing arrived")
	}
	const mib = 1 << 20
	return Sample{
		Rate:  float64(m.count) * 8 / 1e9 / m.took.Seconds(),
		Cost:  float64(m.cpu.busy.Microseconds()) / (float64(m.count) / mib),
		Steal: m.stealShare(),
	}, nil
}
