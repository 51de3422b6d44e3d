package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/traffic"
)

// synAgain is how late a connection is that had to repeat its SYN: Linux does so
// after a second.
const synAgain = 900 * time.Millisecond

// slowDials counts connections whose handshake took long.
type slowDials struct {
	mu   sync.Mutex
	slow []time.Duration
}

func (s *slowDials) dial(h *lab.Host) traffic.DialFunc {
	return func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		began := time.Now()
		c, err := h.Dial(ctx, to)
		if took := time.Since(began); took > synAgain && ctx.Err() == nil {
			s.mu.Lock()
			s.slow = append(s.slow, took)
			s.mu.Unlock()
		}
		return c, err
	}
}

func (s *slowDials) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.slow)
}

// repeated is how many TCP segments a host has sent again (RFC 4022, tcpRetransSegs).
func repeated(t testing.TB, h *lab.Host) int {
	t.Helper()
	var raw []byte
	err := h.Do(func() (err error) {
		raw, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if f[0] != "Tcp:" {
			continue
		}
		if keys == nil {
			keys = f
			continue
		}
		for i, k := range keys {
			if k == "RetransSegs" {
				var n int
				if _, err := fmt.Sscan(f[i], &n); err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	t.Fatal("no tcpRetransSegs")
	return 0
}

// movedTraffic is what must not notice a planned move: old connections, new ones
// and datagrams.
type movedTraffic struct {
	l       *lab.Lab
	clients *traffic.Clients
	window  *traffic.Window
	prober  *traffic.Prober
	dials   *slowDials
	pings   *pings
	began   time.Time
	segs    int
}

// startMoved raises a cluster with traffic through it.
func startMoved(t testing.TB, mode string) *movedTraffic {
	t.Helper()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	for _, ep := range l.Endpoints() {
		echoDatagrams(t, ep, netip.AddrPortFrom(ep.Addr(), udpPort))
	}
	declare(t, l, mode, true)
	args := []string{"service", "create", "pings", "--vip", lab.ServiceVIP().String(), "--port", fmt.Sprint(udpPort), "--protocol", "udp", "--mode", mode}
	for _, ep := range l.Endpoints() {
		args = append(args, "--endpoint", netip.AddrPortFrom(ep.Addr(), udpPort).String())
	}
	cli(t, l.Nodes()[0], args...)
	waitApplied(t, l)
	m := &movedTraffic{l: l, clients: connect(t, l, 200), dials: &slowDials{}}
	var err error
	m.prober, err = traffic.NewProber(traffic.ProberConfig{
		Dial: m.dials.dial(l.Clients()[0]), Target: webVIP, Interval: 2 * time.Millisecond, Timeout: 8 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	background(t, "prober", m.prober.Run)
	m.pings = startPings(t, l.Clients()[0], netip.AddrPortFrom(lab.ServiceVIP(), udpPort))
	steady(t, m.clients)
	return m
}

func (m *movedTraffic) segments(t testing.TB) int {
	t.Helper()
	n := repeated(t, m.l.Clients()[0])
	for _, ep := range m.l.Endpoints() {
		n += repeated(t, ep)
	}
	return n
}

// mark begins to count.
func (m *movedTraffic) mark(t testing.TB) {
	t.Helper()
	m.window = m.clients.Window()
	m.prober.Window()
	m.segs, m.began = m.segments(t), time.Now()
}

// count tells what was noticed since mark.
func (m *movedTraffic) count(t testing.TB, what string) (lost, slow, segs, failed, reset int) {
	t.Helper()
	end := time.Now()
	pass(t, 100*time.Millisecond) // for answers under way
	lost, sent := m.pings.lost(m.began, end)
	r, p := m.window.Result(), m.prober.Result()
	slow, segs = m.dials.count(), m.segments(t)-m.segs
	t.Logf("%s: %d of %d pings lost, %d of %d new connections repeated their SYN and %d failed (%s), %d segments repeated, %d of %d old connections reset, worst gap %v",
		what, lost, sent, slow, p.OK+p.Failed, p.Failed, p.LastError, segs, r.Reset+r.Corrupted, r.Connections, r.Blackout)
	m.dials.mu.Lock()
	m.dials.slow = nil
	m.dials.mu.Unlock()
	return lost, slow, segs, p.Failed, r.Reset + r.Corrupted
}

// The old master goes on forwarding what still reaches it, and the new one holds
// all connections before it is told of: nobody notices.
func TestNobodyNoticesAPlannedMove(t *testing.T) {
	const moves, calmTime = 10, 3 * time.Second
	for _, mode := range []string{"fullnat", "dnat"} {
		t.Run(mode, func(t *testing.T) {
			m := startMoved(t, mode)
			m.mark(t)
			pass(t, calmTime)
			_, _, calm, _, _ := m.count(t, "in calm")
			m.mark(t)
			at := master(t, m.l, "")
			for i := range moves {
				to := m.l.Nodes()[i%len(m.l.Nodes())]
				if to == at {
					to = m.l.Nodes()[(i+1)%len(m.l.Nodes())]
				}
				cli(t, at, "instance", "move", "default", "--to", to.Name())
				at = master(t, m.l, at.Name())
				pass(t, 300*time.Millisecond)
			}
			pass(t, time.Second)
			took := time.Since(m.began)
			lost, slow, segs, failed, reset := m.count(t, fmt.Sprintf("%d moves", moves))
			// A busy machine loses a ping of the thousands, and it repeats segments also in calm, the more the longer it takes. One connection in
			// thousands was seen to repeat its SYN on such a one; before packets were brought back it was one in each run, and more segments.
			if lost > moves/2 || slow > moves/5 || failed > 0 || reset > 0 || segs > calm*int(took/calmTime+1)+moves {
				t.Error("the moves were noticed")
			}
		})
	}
}
