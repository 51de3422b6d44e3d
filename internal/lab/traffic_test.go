package lab

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"pontoon/internal/lab/traffic"
)

// overWire runs n connections from client1 to client2 of a fresh lab.
func overWire(tb testing.TB, l *Lab, n int) *traffic.Clients {
	tb.Helper()
	return overWireTo(tb, l, l.Clients()[1].Addr(), n)
}

// overWireTo does so to the given address of client2.
func overWireTo(tb testing.TB, l *Lab, addr netip.Addr, n int) *traffic.Clients {
	tb.Helper()
	from, to := l.Clients()[0], l.Clients()[1]
	srv, err := traffic.NewServer(traffic.ServerConfig{Name: to.Name()})
	if err != nil {
		tb.Fatal(err)
	}
	at := netip.AddrPortFrom(addr, 8080)
	ln, err := to.Listen(at)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := traffic.NewClients(traffic.ClientsConfig{Dial: from.Dial, Target: at, Count: n})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	tb.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			tb.Error(err)
		}
	})
	g.Go(func() error { return srv.Serve(ctx, ln) })
	opening, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	if err := c.Open(opening); err != nil {
		tb.Fatal(err)
	}
	g.Go(func() error { return c.Run(ctx) })
	return c
}

func TestCutLinkIsSeenAsBlackout(t *testing.T) {
	l := newLab(t, Config{Topology: OneLeg, Clients: 2})
	c := overWire(t, l, 100)
	w := c.Window()
	if err := w.Wait(deadline(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if r := w.Result(); r.Blackout > 400*time.Millisecond {
		t.Errorf("without any failure: %+v", r)
	}
	w = c.Window()
	cut := l.Clients()[1]
	if err := cut.LinksDown(); err != nil {
		t.Fatal(err)
	}
	w.Mark()
	<-deadline(t, 500*time.Millisecond).Done()
	if got := w.Pending(); got != 100 {
		t.Errorf("%d of 100 stand still over a cut link", got)
	}
	if err := cut.LinksUp(); err != nil {
		t.Fatal(err)
	}
	if err := w.Wait(deadline(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	// TCP tries again after 0.2, 0.6 and 1.4 s, so the cut of 0.5 s is felt
	// for 0.5 to about 0.7 s, by an unlucky one longer.
	if r := w.Result(); r.Survived != 100 || r.Blackout < 500*time.Millisecond || r.Blackout > 3*time.Second {
		t.Errorf("got %+v", r)
	}
}

// BenchmarkThousandConnections reports what 1000 clients, their server and
// the network between them cost: percent of one core.
func BenchmarkThousandConnections(b *testing.B) {
	if unix.Geteuid() != 0 {
		b.Skip("needs root")
	}
	l, err := New(Config{Topology: OneLeg, Clients: 2})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := l.Close(); err != nil {
			b.Error(err)
		}
	})
	c := overWire(b, l, 1000)
	b.ResetTimer()
	for range b.N {
		w, before, began := c.Window(), cpuTime(b), time.Now()
		ctx, cancel := context.WithTimeout(b.Context(), 5*time.Second)
		<-ctx.Done()
		cancel()
		used := cpuTime(b) - before
		r := w.Result()
		if r.Survived != 1000 {
			b.Fatalf("got %+v", r)
		}
		b.ReportMetric(100*used.Seconds()/time.Since(began).Seconds(), "%core")
		b.ReportMetric(r.Blackout.Seconds()*1e3, "ms-max-gap")
	}
}

func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
