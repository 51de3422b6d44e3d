package health

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

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
