package node

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/node/health"
)

// listening is an address on loopback where connections are taken, or, if not open, refused.
func listening(t *testing.T, open bool) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if open {
		t.Cleanup(func() { ln.Close() })
	} else {
		ln.Close()
	}
	return netip.MustParseAddrPort(ln.Addr().String())
}

// runProber is a node's prober, which runs until the test ends.
func runProber(t *testing.T) (*probing, context.Context) {
	t.Helper()
	p := &probing{prober: health.New(health.Options{})}
	ctx, cancel := context.WithCancel(context.Background())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.prober.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	return p, ctx
}

// Between two probes of a node that is not the prober lies more time than anybody waits for an answer.
func TestANodeThatIsAskedProbesAtOnce(t *testing.T) {
	p, ctx := runProber(t)
	target := func(key uint32, at netip.AddrPort) health.Target {
		return health.Target{Key: key, Addr: at, Probe: health.Probe{Type: health.TypeTCP, Interval: time.Hour}, Factor: restingFactor, Start: health.Up}
	}
	p.prober.Want([]health.Target{target(1, listening(t, true)), target(2, listening(t, false)), target(3, listening(t, true))})
	awaitTargets(t, p.prober, 3)
	// Asked again where this machine stood still for longer than an answer may take.
	var got []uint32
	for began := time.Now(); time.Since(began) < 10*time.Second && len(got) == 0; {
		got = p.reach(ctx, []uint32{1, 2, 99})
	}
	if !slices.Equal(got, []uint32{1}) {
		t.Errorf("reached: %v", got)
	}
	if r, _ := p.prober.Result(3); !r.At.IsZero() {
		t.Error("what was not asked about was probed as well")
	}
}

func TestAnAskedNodeAnswersInTime(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	p, ctx := runProber(t)
	p.prober.Want([]health.Target{{
		Key: 1, Addr: netip.MustParseAddrPort(silent.LocalAddr().String()), Start: health.Up,
		Probe: health.Probe{Type: health.TypeUDP, Interval: time.Hour, Timeout: time.Minute},
	}})
	awaitTargets(t, p.prober, 1)
	began := time.Now()
	soon, end := context.WithTimeout(ctx, 50*time.Millisecond)
	defer end()
	if got := p.reach(soon, []uint32{1}); got != nil || time.Since(began) < 50*time.Millisecond {
		t.Errorf("reached %v after %s", got, time.Since(began))
	}
}

// awaitTargets waits until the prober knows as many targets.
func awaitTargets(t *testing.T, p *health.Prober, n int) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); len(p.Results()) < n; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("the prober does not begin")
		}
	}
}
