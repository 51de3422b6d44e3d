package health

import (
	"context"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
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

// web is a server whose answers the test chooses.
type web struct {
	*httptest.Server
	handler atomic.Pointer[http.HandlerFunc]
}

func newWeb(t *testing.T, tls bool, h http.HandlerFunc) *web {
	t.Helper()
	w := &web{}
	w.handler.Store(&h)
	f := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { (*w.handler.Load())(rw, r) })
	w.Server = httptest.NewUnstartedServer(f)
	w.Config.ErrorLog = log.New(io.Discard, "", 0)
	if tls {
		w.StartTLS()
	} else {
		w.Start()
	}
	t.Cleanup(w.Close)
	return w
}

func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	}
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func TestWebServersAreJudgedByTheirAnswers(t *testing.T) {
	for _, tls := range []bool{false, true} {
		kind := TypeHTTP
		if tls {
			kind = TypeHTTPS
		}
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			asked := make(chan *http.Request, 1)
			w := newWeb(t, tls, func(w http.ResponseWriter, r *http.Request) {
				select {
				case asked <- r:
				default:
				}
				fmt.Fprint(w, "all well")
			})
			probe := fast(kind)
			probe.Interval, probe.Timeout = 200*time.Millisecond, 150*time.Millisecond
			probe.Path, probe.Host, probe.Body = "/health?full=1", "shop.example", "all well"
			p := start(t, Options{}, Target{Key: 1, Addr: addrPort(t, w.Listener.Addr()), Probe: probe})
			becomes(t, p, 1, Up, "")
			r := <-asked
			if r.Method != "GET" || r.URL.String() != "/health?full=1" || r.Host != "shop.example" {
				t.Errorf("asked %s %s of %s", r.Method, r.URL, r.Host)
			}
			for _, tc := range []struct {
				handler http.HandlerFunc
				why     string
			}{
				{status(500, "all well"), "status 500, want 200-399"},
				{status(200, "well, well"), `the answer does not contain "all well"`},
				{hang, "no answer in 150ms"},
			} {
				w.handler.Store(&tc.handler)
				becomes(t, p, 1, Down, tc.why)
			}
			well := status(200, "at last all well")
			w.handler.Store(&well)
			becomes(t, p, 1, Up, "")
		})
	}
}

func TestServerThatAcceptsAndNeverAnswersGoesDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts
	must(t, err)
	defer l.Close()
	addr := addrPort(t, l.Addr())
	p := start(t, Options{},
		Target{Key: 1, Addr: addr, Probe: fast(TypeHTTP)},
		Target{Key: 2, Addr: addr, Probe: fast(TypeHTTPS)},
		Target{Key: 3, Addr: addr, Probe: fast(TypeGRPC)},
		Target{Key: 4, Addr: addr, Probe: fast(TypeTCP)})
	becomes(t, p, 1, Down, "connected, but no answer in 80ms")
	becomes(t, p, 2, Down, "no answer in 80ms")
	becomes(t, p, 3, Down, "no answer in 80ms")
	becomes(t, p, 4, Up, "")
}

func TestLongAnswerInPiecesIsRead(t *testing.T) {
	w := newWeb(t, false, func(w http.ResponseWriter, _ *http.Request) {
		for range 30 {
			fmt.Fprintf(w, "%01000d", 0)
			w.(http.Flusher).Flush()
		}
		fmt.Fprint(w, "needle")
	})
	probe := fast(TypeHTTP)
	probe.Interval, probe.Timeout, probe.Body = time.Second, time.Second, "needle"
	p := start(t, Options{}, Target{Key: 1, Addr: addrPort(t, w.Listener.Addr()), Probe: probe})
	becomes(t, p, 1, Up, "")
}

func TestCertificatesAreVerifiedWhenAsked(t *testing.T) {
	w := newWeb(t, true, status(200, ""))
	addr := addrPort(t, w.Listener.Addr())
	verified := fast(TypeHTTPS)
	verified.TLSVerify, verified.ServerName = true, "example.com"
	verified.Interval, verified.Timeout = 200*time.Millisecond, time.Second
	plain := newWeb(t, false, status(200, ""))
	mixed := verified
	mixed.TLSVerify = false
	p := start(t, Options{},
		Target{Key: 1, Addr: addr, Probe: verified},
		Target{Key: 2, Addr: addr, Probe: mixed},
		Target{Key: 3, Addr: addrPort(t, plain.Listener.Addr()), Probe: mixed})
	becomes(t, p, 1, Down, "certificate: certificate signed by unknown authority")
	becomes(t, p, 2, Up, "")
	becomes(t, p, 3, Down, "no TLS is spoken there")
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
	targets := make([]Target, 50) // most of which are under way at any time
	for i := range targets {
		targets[i] = Target{Key: uint32(i), Addr: addrPort(t, w.Listener.Addr()), Probe: fast(TypeHTTP), Start: Up}
		targets[i].Probe.Fall, targets[i].Probe.Timeout = 1, time.Second
		targets[i].Probe.Path = fmt.Sprint("/", i) // each a check of its own
	}
	p := start(t, Options{Clock: func() time.Time { return time.Now().Add(time.Duration(jump.Load())) }}, targets...)
	roottest.Eventually(t, "all are probed", func() bool { return p.Stats().Probes >= 200 })
	before := p.Stats()
	for range 5 {
		jump.Add(int64(time.Hour))
		stalls := p.Stats().Stalls
		roottest.Eventually(t, "the pause is noticed", func() bool { return p.Stats().Stalls > stalls })
	}
	after := p.Stats()
	if after.Failures != 0 || after.Down != 0 || after.Changes != before.Changes {
		t.Errorf("after pauses: %+v", after)
	}
	if n := after.Probes - before.Probes; n > 1000 {
		t.Errorf("%d probes were made up for", n)
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

func TestProbesKeepOffPortsOfTheDataPlane(t *testing.T) {
	kernel := kernelPorts()
	first, last := kernel.low, kernel.high-2000
	var plainly, securely, wrong atomic.Int32
	note := func(seen *atomic.Int32) http.HandlerFunc {
		return func(_ http.ResponseWriter, r *http.Request) {
			seen.Add(1)
			if ap := netip.MustParseAddrPort(r.RemoteAddr); ap.Port() >= first && ap.Port() <= last {
				wrong.Add(1)
			}
		}
	}
	plain, secured := newWeb(t, false, note(&plainly)), newWeb(t, true, note(&securely))
	p := New(Options{})
	p.AvoidPorts(first, last)
	var targets []Target
	for i := range uint32(20) {
		probe := fast(TypeHTTP)
		probe.Timeout = time.Second
		probe.Path = fmt.Sprint("/", i)
		targets = append(targets, Target{Key: i, Addr: addrPort(t, plain.Listener.Addr()), Probe: probe})
		probe.Type = TypeHTTPS
		targets = append(targets, Target{Key: 100 + i, Addr: addrPort(t, secured.Listener.Addr()), Probe: probe})
	}
	p.Want(targets)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	roottest.Eventually(t, "many were asked", func() bool { return plainly.Load() > 60 && securely.Load() > 60 })
	cancel()
	must(t, <-done)
	if wrong.Load() > 0 {
		t.Errorf("%d of %d and %d came from ports to be avoided; %+v", wrong.Load(), plainly.Load(), securely.Load(), p.Stats())
	}
}

// The few ports that are left may be in use by others.
func TestPortThatIsInUseIsNoVerdictAndIsTriedAgainSoon(t *testing.T) {
	taken := addrPort(t, listening(t, "127.0.0.1:0").Addr())
	only := ports{low: taken.Port(), high: taken.Port() + 1, first: taken.Port() + 1, last: taken.Port() + 1}
	c := &check{subject: subject{addr: addrPort(t, listening(t, "127.0.0.1:0").Addr()), probe: fast(TypeTCP)}}
	c.probe.Source = taken.Addr()
	for name, dial := range map[string]func() error{
		"by the loop": func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			must(t, err)
			defer unix.Close(fd)
			return (&op{fd: fd, check: c}).bind(only)
		},
		"by a helper": func() error {
			conn, err := c.dialHelper(t.Context(), only)
			if err == nil {
				_ = conn.Close()
			}
			return err
		},
	} {
		if err := dial(); err == nil {
			t.Errorf("%s: port %d is somebody else's and was used", name, taken.Port())
		} else if out := c.judge(err); !out.void || !out.again {
			t.Errorf("%s: %v is taken for %+v", name, err, out)
		}
	}
}

// onlyPort leaves probes one port of those that they may use, which nobody has, and which the kernel gives
// to nobody by itself.
func onlyPort(t *testing.T) ports {
	t.Helper()
	for range 100 {
		port := 20_000 + uint16(rand.IntN(8000))
		at := fmt.Sprint("127.0.0.1:", port)
		datagrams, err := net.ListenPacket("udp", at)
		if err != nil {
			continue
		}
		must(t, datagrams.Close())
		connections, err := net.Listen("tcp", at)
		if err != nil {
			continue
		}
		must(t, connections.Close())
		return ports{low: port, high: port + 1, first: port + 1, last: port + 1}
	}
	t.Fatal("no port is free")
	return ports{}
}

// Two probes of one endpoint that ask different things would have the same addresses and ports.
func TestDatagramOfOneProbeIsNotReadByAnother(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer server.Close()
	l, err := newLoop(New(Options{}))
	must(t, err)
	defer l.close()
	l.ports = onlyPort(t)
	var ops [2]*op
	for i, text := range []string{"one", "two"} {
		probe := fast(TypeUDP)
		probe.Send, probe.Source = text, netip.MustParseAddr("127.0.0.1")
		ops[i] = &op{fd: -1, check: &check{subject: subject{addr: addrPort(t, server.LocalAddr()), probe: probe}}}
		defer l.release(ops[i])
	}
	if out, over := (udpKind{}).begin(l, ops[0]); over {
		t.Fatalf("the first probe: %+v", out)
	}
	if out, over := (udpKind{}).begin(l, ops[1]); !over || !out.void || !out.again {
		t.Errorf("the second probe has the port of the first: over is %t, %+v", over, out)
	}
}

// Connections to different endpoints may share what ports there are.
func TestConnectionsToTwoEndpointsMayShareAPort(t *testing.T) {
	l, err := newLoop(New(Options{}))
	must(t, err)
	defer l.close()
	l.ports = onlyPort(t)
	for range 2 {
		probe := fast(TypeTCP)
		probe.Source = netip.MustParseAddr("127.0.0.1")
		o := &op{fd: -1, check: &check{subject: subject{addr: addrPort(t, listening(t, "127.0.0.1:0").Addr()), probe: probe}}}
		defer l.release(o)
		if out, over := (tcpKind{}).begin(l, o); over {
			t.Errorf("%+v", out)
		}
	}
}

func TestPortsArePickedOutsideTheAvoidedOnes(t *testing.T) {
	for _, tc := range []struct {
		name  string
		ports ports
		any   bool // the kernel may choose
	}{
		{"none avoided", ports{low: 100, high: 200}, true},
		{"avoided elsewhere", ports{low: 100, high: 200, first: 201, last: 300}, true},
		{"all avoided", ports{low: 100, high: 200, first: 50, last: 300}, true},
		{"the lower part", ports{low: 100, high: 200, first: 50, last: 198}, false},
		{"the upper part", ports{low: 100, high: 200, first: 102, last: 65535}, false},
		{"the middle", ports{low: 100, high: 200, first: 102, last: 198}, false},
	} {
		seen := map[uint16]bool{}
		for range 200 {
			p := tc.ports.pick()
			if (p == 0) != tc.any || p != 0 && (p < 100 || p > 200 || tc.ports.avoids(p)) {
				t.Fatalf("%s: picked %d", tc.name, p)
			}
			seen[p] = true
		}
		if !tc.any && len(seen) < 2 {
			t.Errorf("%s: always %v", tc.name, seen)
		}
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
