package health

import (
	"bufio"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serverPort starts a server in a process of its own, which answers at every address of loopback.
func serverPort(b *testing.B) uint16 {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	port, err := strconv.ParseUint(strings.TrimSpace(line), 10, 16)
	if err != nil {
		b.Fatal(err)
	}
	return uint16(port)
}

// loopbackTargets are n addresses of loopback, with a check each.
func loopbackTargets(n int, port uint16, probe Probe) []Target {
	all := make([]Target, n)
	for i := range all {
		addr := netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})
		all[i] = Target{Key: uint32(i), Addr: netip.AddrPortFrom(addr, port), Probe: probe}
	}
	return all
}

// cpu is what this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// running starts a prober until the benchmark ends.
func running(b *testing.B, o Options, targets []Target) *Prober {
	b.Helper()
	p := New(o)
	p.Want(targets)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	return p
}

// reach waits for so many probes.
func reach(p *Prober, probes uint64) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	ended := func() uint64 { // Stats would count all checks
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.board.stats.Probes
	}
	for ended() < probes {
		<-tick.C
	}
}

// BenchmarkProbe asks as fast as it can. What the server's process costs is not counted, what loopback
// costs in the kernel is.
func BenchmarkProbe(b *testing.B) {
	for _, tc := range []struct {
		name  string
		probe Probe
	}{
		{"tcp", Probe{Type: TypeTCP}},
		{"http", Probe{Type: TypeHTTP}},
		{"http-body", Probe{Type: TypeHTTP, Body: "well"}},
		{"icmp", Probe{Type: TypeICMP}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			tc.probe.Interval, tc.probe.Timeout = MinInterval, time.Second
			p := running(b, Options{Rate: 1_000_000}, loopbackTargets(10_000, serverPort(b), tc.probe))
			reach(p, 10_000)
			used, from, at := cpu(b), p.Stats(), time.Now()
			b.ResetTimer()
			reach(p, from.Probes+uint64(b.N))
			b.StopTimer()
			s, took := p.Stats(), time.Since(at)
			probes := float64(s.Probes - from.Probes)
			b.ReportMetric(probes/took.Seconds(), "probes/s")
			b.ReportMetric(probes/(cpu(b)-used).Seconds(), "probes/s/core")
			if s.Failures > 0 {
				b.Errorf("%d failures", s.Failures)
			}
		})
	}
}

// BenchmarkTenThousandTargets is ten thousand endpoints at the default timers, for ten seconds; use
// -benchtime 1x. cpu-% is of one processor.
func BenchmarkTenThousandTargets(b *testing.B) {
	for _, tc := range []struct {
		name string
		kind Type
		dead bool
	}{{"tcp", TypeTCP, false}, {"http", TypeHTTP, false}, {"icmp", TypeICMP, false}, {"tcp-silent", TypeTCP, true}} {
		b.Run(tc.name, func(b *testing.B) {
			var port uint16
			if tc.dead {
				port = silentPort(b)
			} else {
				port = serverPort(b)
			}
			p := running(b, Options{}, loopbackTargets(10_000, port, Probe{Type: tc.kind}))
			reach(p, 20_000)
			for b.Loop() {
				used, from, at := cpu(b), p.Stats(), time.Now()
				<-time.After(10 * time.Second)
				s, took := p.Stats(), time.Since(at)
				b.ReportMetric(100*(cpu(b)-used).Seconds()/took.Seconds(), "cpu-%")
				b.ReportMetric(float64(s.Probes-from.Probes)/took.Seconds(), "probes/s")
				b.ReportMetric(float64(s.Late)/1e6, "late-ms")
				b.ReportMetric(float64(s.Stalls-from.Stalls), "stalls") // of a machine that does other things as well
				if want := map[bool]int{false: s.Up, true: s.Down}[tc.dead]; want != 10_000 || s.Void > 0 {
					b.Errorf("%+v", s)
				}
			}
		})
	}
}

// silentPort is a port at which no SYN is answered: its listener's queue is full.
func silentPort(b *testing.B) uint16 {
	b.Helper()
	open := func(flags int) int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	fd := open(0)
	if err := unix.Bind(fd, &unix.SockaddrInet4{}); err != nil {
		b.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		b.Fatal(err)
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		b.Fatal(err)
	}
	for range 2 {
		_ = unix.Connect(open(unix.SOCK_NONBLOCK), &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(port(self))})
	}
	return port(self)
}

func BenchmarkResults(b *testing.B) {
	p := New(Options{})
	p.board.want(loopbackTargets(10_000, 80, Probe{Type: TypeTCP}), 0)
	for _, c := range p.board.checks {
		for i := range 64 {
			c.latencies.add(time.Duration(i*7919%1000) * time.Microsecond)
		}
	}
	for b.Loop() {
		for _, c := range p.board.checks {
			c.latencies.stale = true
		}
		p.Results()
	}
}

func BenchmarkBoard(b *testing.B) {
	s := newSimulation(1_000_000, 100_000)
	s.board.want(many(10_000, nil), 0)
	var now time.Duration
	b.ReportAllocs()
	for b.Loop() {
		c, wait := s.board.next(now)
		if c == nil {
			now += wait
			continue
		}
		s.board.finish(c, pass, now, time.Time{})
	}
}
