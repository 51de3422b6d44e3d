package e2e

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
)

// door is an echo server whose port is closed and opened while its connections go on, as those of a process
// that takes no more clients do.
type door struct {
	host  *lab.Host
	at    netip.AddrPort
	taken atomic.Int64 // connections

	ctx context.Context // of its connections
	g   errgroup.Group

	mu sync.Mutex
	ln net.Listener
}

// doors are one on each endpoint, open.
func doors(t testing.TB, l *lab.Lab) (out []*door) {
	t.Helper()
	for _, ep := range l.Endpoints() {
		out = append(out, doorAt(t, ep, netip.AddrPortFrom(ep.Addr(), webPort)))
	}
	return out
}

// doorAt is an open one.
func doorAt(t testing.TB, h *lab.Host, at netip.AddrPort) *door {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d := &door{host: h, at: at, ctx: ctx}
	t.Cleanup(func() {
		d.shut()
		cancel()
		_ = d.g.Wait() // connections end as the test wants it
	})
	d.open(t)
	return d
}

func (d *door) open(t testing.TB) {
	t.Helper()
	ln, err := d.host.Listen(d.at)
	if err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.ln = ln
	d.mu.Unlock()
	d.g.Go(func() error {
		for {
			c, err := ln.Accept()
			if err != nil {
				return nil
			}
			d.taken.Add(1)
			d.g.Go(func() error {
				defer context.AfterFunc(d.ctx, func() { c.Close() })()
				defer c.Close()
				_, _ = io.Copy(c, c)
				return nil
			})
		}
	})
}

func (d *door) shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ln != nil {
		d.ln.Close()
		d.ln = nil
	}
}
