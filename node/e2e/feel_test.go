package e2e

import (
	"context"
	bigendian "encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
	"pontoon/internal/lab/arping"
)

// What hosts in the clients' segment feel of a failure: one that pings a UDP
// service once a millisecond, and one that asks for its address by ARP.

const (
	pingEvery = time.Millisecond
	arpEvery  = 5 * time.Millisecond
)

// outage is what the pings of a window felt.
type outage struct {
	// Blackout is the longest time from the last answer before lost pings to the
	// first after them; 0 when none was lost. A prober that was late itself lost
	// nothing.
	Blackout time.Duration
	Lost     int
	Sent     int
	Open     bool // the last ping had no answer: it was not over
}

// outageOf judges pings by when each was answered (0: never), in the order in
// which they were sent.
func outageOf(answered []time.Duration) outage {
	o := outage{Sent: len(answered)}
	var last time.Duration
	lost := 0 // since last
	for _, at := range answered {
		if at == 0 {
			lost++
			o.Lost++
			continue
		}
		if lost > 0 && last > 0 {
			o.Blackout = max(o.Blackout, at-last)
		}
		last, lost = max(last, at), 0
	}
	o.Open = lost > 0 || len(answered) == 0
	return o
}

// pings sends numbered datagrams to a service that sends them back.
type pings struct {
	began time.Time

	mu       sync.Mutex
	from     uint64 // number of answered[0]
	sent     []time.Duration
	answered []time.Duration // 0: not
}

// startPings pings until the test ends.
func startPings(t testing.TB, h *lab.Host, to netip.AddrPort) *pings {
	t.Helper()
	p := &pings{began: time.Now()}
	c := dialUDP(t, h, to)
	background(t, "pings", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
		var g errgroup.Group
		g.Go(func() error { return p.send(ctx, c) })
		g.Go(func() error { return p.receive(ctx, c) })
		return g.Wait()
	})
	return p
}

func (p *pings) send(ctx context.Context, c net.Conn) error {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	var b [64]byte
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		p.mu.Lock()
		bigendian.BigEndian.PutUint64(b[:], p.from+uint64(len(p.answered)))
		p.sent, p.answered = append(p.sent, time.Since(p.began)), append(p.answered, 0)
		p.mu.Unlock()
		_, _ = c.Write(b[:]) // while nobody is there the kernel refuses: a lost ping
	}
}

func (p *pings) receive(ctx context.Context, c net.Conn) error {
	var b [64]byte
	for ctx.Err() == nil {
		n, err := c.Read(b[:])
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil || n < 8 {
			continue // an ICMP error about an earlier one
		}
		at, seq := time.Since(p.began), bigendian.BigEndian.Uint64(b[:])
		p.mu.Lock()
		if i := seq - p.from; i < uint64(len(p.answered)) && p.answered[i] == 0 {
			p.answered[i] = at
		}
		p.mu.Unlock()
	}
	return nil
}

// window forgets what was.
func (p *pings) window() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.from += uint64(len(p.answered))
	p.sent, p.answered = nil, nil
}

// lost counts those of the window that were sent between two moments and not answered.
func (p *pings) lost(from, to time.Time) (lost, sent int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, at := range p.sent {
		if at < from.Sub(p.began) || at > to.Sub(p.began) {
			continue
		}
		sent++
		if p.answered[i] == 0 {
			lost++
		}
	}
	return lost, sent
}

// felt is the outage since window. What was sent in the last 100 ms may be on
// its way and does not count.
func (p *pings) felt() outage {
	p.mu.Lock()
	defer p.mu.Unlock()
	return outageOf(p.answered[:max(0, len(p.answered)-100)])
}

// arpFelt is what asking for an address felt: for how long nobody answered, and
// for how long more than one machine did.
type arpFelt struct{ Silence, Overlap time.Duration }

// arpFeltOf judges the answers among what an arping.Prober heard.
func arpFeltOf(claims []arping.Claim) arpFelt {
	var f arpFelt
	var last time.Time
	spans := map[string][2]time.Time{}
	for _, c := range claims {
		if !c.Asked {
			continue
		}
		if !last.IsZero() {
			f.Silence = max(f.Silence, c.At.Sub(last))
		}
		last = c.At
		span, known := spans[c.MAC]
		if !known {
			span[0] = c.At
		}
		span[1] = c.At
		spans[c.MAC] = span
	}
	for m, a := range spans {
		for n, b := range spans {
			if m != n {
				f.Overlap = max(f.Overlap, min(a[1].Sub(b[0]), b[1].Sub(a[0]), a[1].Sub(a[0]), b[1].Sub(b[0])))
			}
		}
	}
	return f
}

// asker asks for an IPv4 address by ARP; the kernel's neighbour table has no part
// in it.
type asker struct {
	prober *arping.Prober
	began  time.Time // the window
}

// startAsker asks from a host's first leg until the test ends.
func startAsker(t testing.TB, h *lab.Host, about netip.Addr) *asker {
	t.Helper()
	p, err := arping.New(arping.Config{Do: h.Do, Interface: h.Interfaces()[0], Targets: []netip.Addr{about}, Interval: arpEvery})
	if err != nil {
		t.Fatal(err)
	}
	background(t, "arp asker", p.Run)
	return &asker{prober: p, began: time.Now()}
}

func (a *asker) window() { a.began = time.Now() }

func (a *asker) felt() arpFelt { return arpFeltOf(a.prober.Since(time.Since(a.began))) }

func TestABlackoutIsBetweenTheAnswersAroundWhatWasLost(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		name     string
		answered []time.Duration
		want     outage
	}{
		{"none lost", []time.Duration{1 * ms, 2 * ms, 3 * ms}, outage{Sent: 3}},
		{"the prober was late", []time.Duration{1 * ms, 50 * ms, 51 * ms}, outage{Sent: 3}},
		{"two lost", []time.Duration{1 * ms, 0, 0, 4 * ms}, outage{Blackout: 3 * ms, Lost: 2, Sent: 4}},
		{"the longest counts", []time.Duration{1 * ms, 0, 3 * ms, 0, 0, 9 * ms, 0, 11 * ms}, outage{Blackout: 6 * ms, Lost: 4, Sent: 8}},
		{"overtaken", []time.Duration{5 * ms, 4 * ms, 0, 7 * ms}, outage{Blackout: 2 * ms, Lost: 1, Sent: 4}},
		{"not over", []time.Duration{1 * ms, 0}, outage{Lost: 1, Sent: 2, Open: true}},
		{"nothing sent", nil, outage{Open: true}},
	} {
		if got := outageOf(tc.answered); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func TestArpAnswersAreSilenceAndOverlap(t *testing.T) {
	type answer struct {
		ms   int
		from string
	}
	for _, tc := range []struct {
		name    string
		answers []answer
		want    arpFelt
	}{
		{"nobody", nil, arpFelt{}},
		{"one machine", []answer{{0, "a"}, {5, "a"}, {10, "a"}}, arpFelt{Silence: 5 * time.Millisecond}},
		{"one after the other", []answer{{0, "a"}, {5, "a"}, {90, "b"}}, arpFelt{Silence: 85 * time.Millisecond}},
		{"both for a while", []answer{{0, "a"}, {5, "b"}, {5, "a"}, {10, "a"}, {10, "b"}, {15, "b"}}, arpFelt{Silence: 5 * time.Millisecond, Overlap: 5 * time.Millisecond}},
		{"one within the other's time", []answer{{0, "a"}, {5, "b"}, {10, "b"}, {15, "a"}}, arpFelt{Silence: 5 * time.Millisecond, Overlap: 5 * time.Millisecond}},
	} {
		var claims []arping.Claim
		for _, a := range tc.answers {
			at := time.Unix(0, 0).Add(time.Duration(a.ms) * time.Millisecond)
			claims = append(claims, arping.Claim{At: at, MAC: a.from, Asked: true}, arping.Claim{At: at.Add(time.Millisecond), MAC: "unasked"})
		}
		if got := arpFeltOf(claims); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}
