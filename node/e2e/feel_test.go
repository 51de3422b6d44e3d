package e2e

import (
	"context"
	bigendian "encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
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
	answered []time.Duration
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
		p.answered = append(p.answered, 0)
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
	p.answered = nil
}

// felt is the outage since window. What was sent in the last 100 ms may be on
// its way and does not count.
func (p *pings) felt() outage {
	p.mu.Lock()
	defer p.mu.Unlock()
	return outageOf(p.answered[:max(0, len(p.answered)-100)])
}

// arpAnswer is one answer to a question for an address.
type arpAnswer struct {
	at   time.Duration
	from [6]byte
}

// arpFelt is what asking for an address felt: for how long nobody answered, and
// for how long more than one machine did.
type arpFelt struct{ Silence, Overlap time.Duration }

func arpFeltOf(answers []arpAnswer) arpFelt {
	var f arpFelt
	spans := map[[6]byte][2]time.Duration{}
	for i, a := range answers {
		if i > 0 {
			f.Silence = max(f.Silence, a.at-answers[i-1].at)
		}
		span, known := spans[a.from]
		if !known {
			span[0] = a.at
		}
		span[1] = a.at
		spans[a.from] = span
	}
	for m, a := range spans {
		for n, b := range spans {
			if m != n {
				f.Overlap = max(f.Overlap, min(a[1], b[1])-max(a[0], b[0]))
			}
		}
	}
	return f
}

// asker asks for an IPv4 address by ARP, from a packet socket: the kernel's
// neighbour table has no part in it.
type asker struct {
	began time.Time

	mu      sync.Mutex
	answers []arpAnswer
}

// startAsker asks from a host's first leg until the test ends.
func startAsker(t testing.TB, h *lab.Host, about netip.Addr) *asker {
	t.Helper()
	a := &asker{began: time.Now()}
	var c *packet.Conn
	var own net.HardwareAddr
	err := h.Do(func() error {
		ifi, err := net.InterfaceByName(h.Interfaces()[0])
		if err != nil {
			return err
		}
		own = ifi.HardwareAddr
		c, err = packet.Listen(ifi, packet.Raw, etherARP, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	question := arpRequest(own, h.Addr(), about)
	background(t, "arp asker", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
		var g errgroup.Group
		g.Go(func() error { return a.send(ctx, c, question) })
		g.Go(func() error { return a.receive(ctx, c, own, about) })
		return g.Wait()
	})
	return a
}

const etherARP = 0x0806

// arpRequest is a question (RFC 826) to everybody, in an Ethernet frame.
func arpRequest(own net.HardwareAddr, from, about netip.Addr) []byte {
	f := slices.Concat(net.HardwareAddr{255, 255, 255, 255, 255, 255}, own, []byte{etherARP >> 8, etherARP & 255})
	f = append(f, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, request
	f = append(append(f, own...), from.AsSlice()...)
	return append(append(f, make([]byte, 6)...), about.AsSlice()...)
}

// arpReplyTo returns who says to own that it has the address.
func arpReplyTo(f []byte, own net.HardwareAddr, about netip.Addr) (from [6]byte, ok bool) {
	const arp, reply = 14, 2
	if len(f) < arp+28 || !slices.Equal(f[:6], []byte(own)) || f[arp+7] != reply || !slices.Equal(f[arp+14:arp+18], about.AsSlice()) {
		return from, false
	}
	return [6]byte(f[arp+8 : arp+14]), true
}

func (a *asker) send(ctx context.Context, c *packet.Conn, question []byte) error {
	tick := time.NewTicker(arpEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, err := c.WriteTo(question, &packet.Addr{HardwareAddr: net.HardwareAddr(question[:6])}); err != nil && ctx.Err() == nil {
			return fmt.Errorf("ask by arp: %w", err)
		}
	}
}

func (a *asker) receive(ctx context.Context, c *packet.Conn, own net.HardwareAddr, about netip.Addr) error {
	b := make([]byte, 2048)
	for ctx.Err() == nil {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			if ctx.Err() == nil {
				return fmt.Errorf("read arp: %w", err)
			}
			return nil
		}
		if from, ok := arpReplyTo(b[:n], own, about); ok {
			a.mu.Lock()
			a.answers = append(a.answers, arpAnswer{time.Since(a.began), from})
			a.mu.Unlock()
		}
	}
	return nil
}

func (a *asker) window() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers = nil
}

func (a *asker) felt() arpFelt {
	a.mu.Lock()
	defer a.mu.Unlock()
	return arpFeltOf(a.answers)
}

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
	const ms = time.Millisecond
	a, b := [6]byte{1}, [6]byte{2}
	for _, tc := range []struct {
		name    string
		answers []arpAnswer
		want    arpFelt
	}{
		{"nobody", nil, arpFelt{}},
		{"one machine", []arpAnswer{{0, a}, {5 * ms, a}, {10 * ms, a}}, arpFelt{Silence: 5 * ms}},
		{"one after the other", []arpAnswer{{0, a}, {5 * ms, a}, {90 * ms, b}}, arpFelt{Silence: 85 * ms}},
		{"both for a while", []arpAnswer{{0, a}, {5 * ms, b}, {5 * ms, a}, {10 * ms, a}, {10 * ms, b}, {15 * ms, b}}, arpFelt{Silence: 5 * ms, Overlap: 5 * ms}},
	} {
		if got := arpFeltOf(tc.answers); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func TestArpFramesAreAskedAndReadAlike(t *testing.T) {
	own, other := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	me, vip := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.200")
	f := arpRequest(other, vip, me) // as an answer, but for the kind and the destination
	if _, ok := arpReplyTo(f, own, vip); ok {
		t.Error("a question was taken for an answer")
	}
	copy(f, own)
	f[21] = 2
	if from, ok := arpReplyTo(f, own, vip); !ok || from != [6]byte(other) {
		t.Errorf("%x %v", from, ok)
	}
	if _, ok := arpReplyTo(f, own, me); ok {
		t.Error("an answer about another address was taken")
	}
}
