package health

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

// listening opens a TCP listener on loopback that accepts and closes.
func listening(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l
}

func addrPort(t *testing.T, a net.Addr) netip.AddrPort {
	t.Helper()
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return ap
}

// deaf is the address of a listener that answers no SYN, because its queue is full.
func deaf(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	must(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(t, unix.Listen(fd, 0))
	sa, err := unix.Getsockname(fd)
	must(t, err)
	for range 2 {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { _ = unix.Close(c) })
		if err := unix.Connect(c, sa); err != nil && err != unix.EINPROGRESS {
			t.Fatal(err)
		}
	}
	return netip.AddrPortFrom(addrOf(sa), port(sa))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestServerDiesAndComesBack(t *testing.T) {
	l := listening(t, "127.0.0.1:0")
	addr := addrPort(t, l.Addr())
	told := make(chan struct{}, 1)
	p := start(t, Options{Notify: func() {
		select {
		case told <- struct{}{}:
		default:
		}
	}}, Target{Key: 7, Addr: addr, Probe: fast(TypeTCP)})
	up := becomes(t, p, 7, Up, "")
	if up.P50 <= 0 || up.P99 < up.P50 || up.Since.IsZero() || up.At.IsZero() || !up.Passed {
		t.Errorf("up: %+v", up)
	}
	<-told
	changed, version := p.Changed(0)
	if len(changed) != 1 || changed[0].Key != 7 {
		t.Errorf("changed: %+v", changed)
	}
	if again, _ := p.Changed(version); len(again) != 0 {
		t.Errorf("changed once more: %+v", again)
	}
	_ = l.Close()
	becomes(t, p, 7, Down, "connection refused")
	<-told
	if changed, _ := p.Changed(version); len(changed) != 1 || changed[0].Up {
		t.Errorf("changed: %+v", changed)
	}
	listening(t, addr.String())
	becomes(t, p, 7, Up, "")
}

func TestProbesLeaveNothingBehind(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // whose program never looks
	must(t, err)
	defer silent.Close()
	addr := addrPort(t, silent.Addr())
	p := start(t, Options{}, Target{Key: 1, Addr: addr, Probe: fast(TypeTCP)})
	roottest.Eventually(t, "some probes have ended", func() bool { return p.Stats().Probes >= 5 })
	table, err := os.ReadFile("/proc/net/tcp")
	must(t, err)
	closing := []string{"04", "05", "06"} // FIN-WAIT, TIME-WAIT
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); slices.Contains(closing, f[3]) && strings.HasSuffix(f[2], fmt.Sprintf(":%04X", addr.Port())) {
			t.Errorf("a connection is left: %s", line)
		}
	}
}

func TestServerThatAnswersNoSYNGoesDown(t *testing.T) {
	p := start(t, Options{}, Target{Key: 1, Addr: deaf(t), Probe: fast(TypeTCP)})
	becomes(t, p, 1, Down, "no answer in 80ms")
}

func TestOwnPortIsNotTakenForAServer(t *testing.T) {
	// Where nobody listens, a connection attempt from the very same address and port succeeds.
	l := listening(t, "127.0.0.1:0")
	addr := addrPort(t, l.Addr())
	_ = l.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Bind(fd, sockaddr(addr)))
	must(t, unix.Connect(fd, sockaddr(addr)))
	o := &op{fd: fd, check: &check{subject: subject{addr: addr}}}
	if err := o.connected(unix.EPOLLOUT); err != unix.ECONNREFUSED {
		t.Errorf("a socket connected to itself: %v", err)
	}
}

func TestDatagramsAreAnswered(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	var reply atomic.Pointer[string]
	set := func(s string) { reply.Store(&s) }
	set("pong")
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if r := *reply.Load(); r != "" && string(buf[:n]) == "\x00ping" {
				_, _ = conn.WriteTo([]byte(r), from)
			}
		}
	}()
	defer func() { _ = conn.Close(); <-done }()
	probe := fast(TypeUDP)
	probe.Send, probe.Body = "\x00ping", "pong"
	p := start(t, Options{}, Target{Key: 1, Addr: addrPort(t, conn.LocalAddr()), Probe: probe})
	becomes(t, p, 1, Up, "")
	set("pang")
	becomes(t, p, 1, Down, `the answer does not contain "pong"`)
	set("")
	becomes(t, p, 1, Down, "no answer in 80ms")
	set("ping pong")
	becomes(t, p, 1, Up, "")
	_ = conn.Close()
	becomes(t, p, 1, Down, "port unreachable")
}

func TestFlappingServerIsDamped(t *testing.T) {
	var well atomic.Bool
	w := newWeb(t, false, func(w http.ResponseWriter, _ *http.Request) {
		if !well.Load() {
			w.WriteHeader(500)
		}
	})
	probe := fast(TypeHTTP)
	probe.Rise, probe.Fall = 1, 1
	p := start(t, Options{}, Target{Key: 1, Addr: addrPort(t, w.Listener.Addr()), Probe: probe})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // 5 Hz
		defer close(done)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				well.Store(!well.Load())
			case <-ctx.Done():
				return
			}
		}
	}()
	roottest.Eventually(t, "it is flapping, and down for it", func() bool {
		r, _ := p.Result(1)
		return r.Flapping && r.Health == Down
	})
	cancel()
	<-done
	well.Store(true)
	becomes(t, p, 1, Up, "")
	if r, _ := p.Result(1); !r.Flapping {
		t.Errorf("calm at once: %+v", r)
	}
}

func TestPauseOfThisProcessTakesNobodyDown(t *testing.T) {
	w := newWeb(t, false, func(http.ResponseWriter, *http.Request) { <-time.After(60 * time.Millisecond) })
	var jump atomic.Int64
	targets := make([]Target, 100) // many of which are under way at any time
	const interval = 500 * time.Millisecond
	for i := range targets {
		targets[i] = Target{Key: uint32(i), Addr: addrPort(t, w.Listener.Addr()), Probe: fast(TypeHTTP), Start: Up}
		// So patient that only a pause that counts could be too long, and no slow machine is.
		targets[i].Probe.Fall, targets[i].Probe.Interval, targets[i].Probe.Timeout = 1, interval, 10*interval
		targets[i].Probe.Path = fmt.Sprint("/", i) // each a check of its own
	}
	p := start(t, Options{Clock: func() time.Time { return time.Now().Add(time.Duration(jump.Load())) }}, targets...)
	roottest.Eventually(t, "all are probed", func() bool { return p.Stats().Probes >= 200 })
	before, began := p.Stats(), time.Now()
	const pauses = 5
	for range pauses {
		jump.Add(int64(time.Hour))
		stalls := p.Stats().Stalls
		roottest.Eventually(t, "the pause is noticed", func() bool { return p.Stats().Stalls > stalls })
	}
	after := p.Stats()
	if after.Failures != 0 || after.Down != 0 || after.Changes != before.Changes {
		t.Errorf("after pauses: %+v", after)
	}
	rounds := 2 + float64(time.Since(began)+pauses*grace)/float64(interval)/(1-jitter)
	if n := after.Probes - before.Probes; float64(n) > rounds*float64(len(targets)) {
		t.Errorf("%d probes in what was time for %.1f of each", n, rounds)
	}
}

func TestProbeNowIsOutOfTurn(t *testing.T) {
	l := listening(t, "127.0.0.1:0")
	probe := fast(TypeTCP)
	probe.Interval, probe.Timeout = time.Hour, time.Second
	p := start(t, Options{}, Target{Key: 1, Addr: addrPort(t, l.Addr()), Probe: probe})
	becomes(t, p, 1, Up, "")
	for want := uint64(2); want < 5; want++ {
		p.ProbeNow(1, 2)
		roottest.Eventually(t, "it is probed again", func() bool {
			r, _ := p.Result(1)
			return r.Probes == want
		})
	}
}

func TestRunGivesBackWhatItOpened(t *testing.T) {
	l := listening(t, "127.0.0.1:0")
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	slow := fast(TypeTCP)
	slow.Timeout = time.Second
	https := slow
	https.Type = TypeHTTPS
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer silent.Close()
	p := New(Options{})
	p.Want([]Target{
		{Key: 1, Addr: addrPort(t, l.Addr()), Probe: fast(TypeTCP)},
		{Key: 2, Addr: deaf(t), Probe: slow},
		{Key: 3, Addr: addrPort(t, silent.Addr()), Probe: https},
	})
	before := count()
	for range 3 {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		probes := p.Stats().Probes
		roottest.Eventually(t, "probes end and others are under way", func() bool {
			s := p.Stats()
			return s.Probes > probes+2 && s.Flying >= 2
		})
		if err := p.Run(ctx); err != errRunning {
			t.Errorf("a second run: %v", err)
		}
		cancel()
		must(t, <-done)
		if s := p.Stats(); s.Flying != 0 || s.Checks != 3 {
			t.Errorf("after the run: %+v", s)
		}
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestAnotherRunGoesOnWhereTheLastOneEnded(t *testing.T) {
	l := listening(t, "127.0.0.1:0")
	p := New(Options{})
	p.lived = time.Hour // by a run before
	p.Want([]Target{{Key: 1, Addr: addrPort(t, l.Addr()), Probe: fast(TypeTCP)}})
	for range 2 {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		probes := p.Stats().Probes
		roottest.Eventually(t, "probes go on", func() bool { return p.Stats().Probes > probes })
		cancel()
		must(t, <-done)
	}
	if p.lived < time.Hour {
		t.Errorf("the clock stands at %v", p.lived)
	}
}

func TestHelpersThatAllWaitLeaveTheLoopItsProbes(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer silent.Close()
	hung := fast(TypeHTTPS)
	hung.Interval, hung.Timeout = time.Minute, 10*time.Minute
	targets := []Target{{Key: 1000, Addr: addrPort(t, listening(t, "127.0.0.1:0").Addr()), Probe: fast(TypeTCP)}}
	for key := range uint32(100) {
		hung.Path = fmt.Sprint("/", key)
		targets = append(targets, Target{Key: key, Addr: addrPort(t, silent.Addr()), Probe: hung})
	}
	p := start(t, Options{Concurrent: 32}, targets...)
	const helpers = 32 / 8
	roottest.Eventually(t, "every helper waits", func() bool { return p.Stats().Flying >= helpers })
	before := becomes(t, p, 1000, Up, "")
	roottest.Eventually(t, "the endpoint that needs none is probed again and again", func() bool {
		r, _ := p.Result(1000)
		return r.Probes >= before.Probes+5
	})
	if s := p.Stats(); s.Flying > helpers+1 {
		t.Errorf("more helpers than there may be: %+v", s)
	}
}

func TestRunEndsAtOnceWhileAHelperWaitsForAnAnswer(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer silent.Close()
	plain := fast(TypeGRPC)
	plain.Interval, plain.Timeout = time.Minute, 10*time.Minute
	p := New(Options{})
	p.Want([]Target{{Key: 1, Addr: addrPort(t, silent.Addr()), Probe: plain}})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	conn, err := silent.Accept()
	must(t, err)
	defer conn.Close()
	_, err = conn.Read(make([]byte, 16)) // asked, and now it waits
	must(t, err)
	cancel()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for the endpoint")
	}
}

func TestSourceThatIsNotHereIsNoVerdict(t *testing.T) {
	l := listening(t, "127.0.0.1:0")
	here, away := fast(TypeTCP), fast(TypeTCP)
	here.Source = netip.MustParseAddr("127.0.0.9")
	away.Source = netip.MustParseAddr("192.0.2.77")
	addr := addrPort(t, l.Addr())
	p := start(t, Options{}, Target{Key: 1, Addr: addr, Probe: here}, Target{Key: 2, Addr: addr, Probe: away, Start: Up})
	becomes(t, p, 1, Up, "")
	roottest.Eventually(t, "it says that the source is not here", func() bool {
		r, _ := p.Result(2)
		return r.LastError == "192.0.2.77 is not an address of this node"
	})
	if r, _ := p.Result(2); r.Health != Up {
		t.Errorf("taken down by this node's own fault: %+v", r)
	}
}

func TestResultsAreSettledOnceTheyAreAboutTheNewTargets(t *testing.T) {
	p := New(Options{})
	if !p.Settled() {
		t.Error("not settled although nothing was asked for")
	}
	p.Want([]Target{{Key: 7, Addr: netip.MustParseAddrPort("127.0.0.1:9"), Probe: Probe{Type: TypeTCP}}})
	if p.Settled() || len(p.Results()) != 0 {
		t.Error("settled before anybody has looked at the targets")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !p.Settled() && time.Now().Before(deadline); {
		<-tick.C
	}
	if r := p.Results(); len(r) != 1 || r[0].Key != 7 {
		t.Errorf("settled on %v", r)
	}
	cancel()
	must(t, <-done)
}
