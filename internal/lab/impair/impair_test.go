package impair_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
	"pontoon/internal/lab/impair"
	"pontoon/internal/roottest"
)

// wire is two hosts on one Ethernet; the cable of the second can be hurt.
type wire struct {
	*lab.Lab
	near, far *lab.Host
	port      *impair.Port
}

func newWire(t *testing.T) *wire {
	t.Helper()
	roottest.Need(t)
	l, err := lab.New(lab.Config{Topology: lab.OneLeg, Clients: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &wire{Lab: l, near: l.Clients()[0], far: l.Clients()[1]}
	do, name, err := w.far.Cable("eth1")
	if err != nil {
		t.Fatal(err)
	}
	if w.port, err = impair.Open(impair.Config{Do: do, Interface: name}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.port.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, w.port.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *wire) set(t *testing.T, r impair.Rules) {
	t.Helper()
	if err := w.port.Set(r); err != nil {
		t.Fatal(err)
	}
}

// probe is one numbered datagram.
const probePort = 9000

// ends are a socket on each host; the far one's is returned second.
func (w *wire) ends(t *testing.T, f lab.Family) (near, far *net.UDPConn, to netip.AddrPort) {
	t.Helper()
	var err error
	if near, err = w.near.ListenUDP(netip.AddrPortFrom(f.Unspecified(), probePort)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	if far, err = w.far.ListenUDP(netip.AddrPortFrom(f.Unspecified(), probePort)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	return near, far, netip.AddrPortFrom(w.far.AddrIn(f), probePort)
}

// burst sends numbered datagrams, a few in each millisecond, and lists those that
// arrive until all are sent and then nothing has come for a while.
func burst(t *testing.T, from, at *net.UDPConn, to netip.AddrPort, count int) (got []uint32) {
	t.Helper()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := range count {
			if i%5 == 0 {
				<-tick.C
			}
			_, _ = from.WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, uint32(i)), to)
		}
	}()
	b := make([]byte, 64)
	for {
		over := false
		select {
		case <-sent:
			over = true
		default:
		}
		if err := at.SetReadDeadline(time.Now().Add(roottest.Patient(150 * time.Millisecond))); err != nil {
			t.Fatal(err)
		}
		n, _, err := at.ReadFromUDPAddrPort(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if over {
				return got
			}
			<-sent
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if n == 4 {
			got = append(got, binary.BigEndian.Uint32(b))
		}
	}
}

// onlyProbes is the rule for the datagrams of a burst, so that ARP is not hurt.
func onlyProbes(r impair.Rule) impair.Rule {
	r.Protocol, r.Port = unix.IPPROTO_UDP, probePort
	return r
}

func inOrder(got []uint32) bool {
	for i := 1; i < len(got); i++ {
		if got[i] < got[i-1] {
			return false
		}
	}
	return true
}

// Each action, in each direction and family, does to real datagrams what it says,
// and nothing to those that go the other way.
func TestEachActionHurtsOneDirection(t *testing.T) {
	w := newWire(t)
	const count = 400
	for _, tc := range []struct {
		name  string
		rule  impair.Rule
		check func(t *testing.T, got []uint32)
		want  func(c impair.Counts) bool
	}{
		{"loss", impair.Rule{Drop: 0.3}, func(t *testing.T, got []uint32) {
			if len(got) < count/2 || len(got) > count*85/100 {
				t.Errorf("%d of %d arrived with 30 %% loss", len(got), count)
			}
		}, func(c impair.Counts) bool { return c.Dropped > count/7 && c.Matched == count }},
		{"all lost", impair.Rule{Drop: 1}, func(t *testing.T, got []uint32) {
			if len(got) > 0 {
				t.Errorf("%d arrived", len(got))
			}
		}, func(c impair.Counts) bool { return c.Dropped == count }},
		{"duplicate", impair.Rule{Duplicate: 1}, func(t *testing.T, got []uint32) {
			if len(got) != 2*count {
				t.Errorf("%d arrived, want each of %d twice", len(got), count)
			}
		}, func(c impair.Counts) bool { return c.Duplicated == count }},
		{"some doubled", impair.Rule{Duplicate: 0.2}, func(t *testing.T, got []uint32) {
			if len(got) < count*108/100 || len(got) > count*135/100 {
				t.Errorf("%d arrived with 20 %% doubled", len(got))
			}
		}, func(c impair.Counts) bool { return c.Duplicated > count/12 }},
		{"delay", impair.Rule{Delay: 30 * time.Millisecond}, func(t *testing.T, got []uint32) {
			if len(got) != count {
				t.Errorf("%d of %d arrived", len(got), count)
			}
		}, func(c impair.Counts) bool { return c.Delayed == count }},
		{"reorder", impair.Rule{Jitter: 20 * time.Millisecond}, func(t *testing.T, got []uint32) {
			if len(got) != count || inOrder(got) {
				t.Errorf("%d of %d arrived, in order: %v", len(got), count, inOrder(got))
			}
		}, func(c impair.Counts) bool { return c.Delayed == count }},
	} {
		for _, f := range lab.Families() {
			t.Run(f.String()+" "+tc.name, func(t *testing.T) {
				near, far, to := w.ends(t, f)
				back := netip.AddrPortFrom(w.near.AddrIn(f), probePort)
				if len(burst(t, near, far, to, 1)) != 1 {
					t.Fatal("the wire does not work unhurt")
				}
				for _, toHost := range []bool{true, false} {
					rules := impair.Rules{FromHost: []impair.Rule{onlyProbes(tc.rule)}}
					hurt, other := func() []uint32 { return burst(t, far, near, back, count) }, func() []uint32 { return burst(t, near, far, to, 50) }
					if toHost {
						rules = impair.Rules{ToHost: rules.FromHost}
						hurt, other = func() []uint32 { return burst(t, near, far, to, count) }, func() []uint32 { return burst(t, far, near, back, 50) }
					}
					w.set(t, rules)
					tc.check(t, hurt())
					from, gone, err := w.port.Counts()
					if err != nil {
						t.Fatal(err)
					}
					if c := append(from, gone...); len(c) != 1 || !tc.want(c[0]) {
						t.Errorf("counted %+v", c)
					}
					if got := other(); len(got) != 50 || !inOrder(got) {
						t.Errorf("the other direction: %d of 50 arrived, in order: %v", len(got), inOrder(got))
					}
				}
				w.set(t, impair.Rules{})
			})
		}
	}
}

func TestADelayIsAsLongAsItSays(t *testing.T) {
	w := newWire(t)
	near, far, to := w.ends(t, lab.IPv4)
	burst(t, near, far, to, 1) // so that the neighbour is known
	w.set(t, impair.Both(onlyProbes(impair.Rule{Delay: 40 * time.Millisecond})))
	began := time.Now()
	if _, err := near.WriteToUDPAddrPort([]byte("there"), to); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	_ = far.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, from, err := far.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := far.WriteToUDPAddrPort(b[:n], from); err != nil {
		t.Fatal(err)
	}
	_ = near.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, _, err = near.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != "there" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	if rtt := time.Since(began); rtt < 80*time.Millisecond || rtt > roottest.Patient(400*time.Millisecond) {
		t.Errorf("there and back took %s with 40 ms each way", rtt)
	}
}

// Rules are about what they name and nothing else.
func TestRulesMatchWhatTheyName(t *testing.T) {
	w := newWire(t)
	near, far, to := w.ends(t, lab.IPv4)
	third := w.Clients()[2]
	other, err := third.ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), probePort))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, 48<<2)
	}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name        string
		rule        impair.Rule
		near, third bool // does it arrive from there
	}{
		{"nothing", impair.Rule{Protocol: unix.IPPROTO_TCP}, true, true},
		{"protocol", impair.Rule{Protocol: unix.IPPROTO_UDP}, false, false},
		{"port", impair.Rule{Port: probePort}, false, false},
		{"another port", impair.Rule{Port: probePort + 1}, true, true},
		{"code point", impair.Rule{DSCP: []uint8{10, 48}}, false, true},
		{"peer", impair.Rule{Peer: third.MACs()[0]}, true, false},
		{"type", impair.Rule{EtherType: 0x86dd}, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.set(t, impair.Rules{})
			if len(burst(t, near, far, to, 1)) != 1 || len(burst(t, other, far, to, 1)) != 1 {
				t.Fatal("the wire does not work unhurt")
			}
			tc.rule.Drop = 1
			w.set(t, impair.Rules{ToHost: []impair.Rule{tc.rule}})
			if got := len(burst(t, near, far, to, 1)) == 1; got != tc.near {
				t.Errorf("from the first host arrives: %v", got)
			}
			if got := len(burst(t, other, far, to, 1)) == 1; got != tc.third {
				t.Errorf("from the third host arrives: %v", got)
			}
		})
	}
}

// A bulk transfer has frames of many segments, whose checksums nobody has made
// yet; late and shuffled they arrive as they were.
func TestBulkTransfersSurviveDelayAndReordering(t *testing.T) {
	w := newWire(t)
	w.set(t, impair.Both(impair.Rule{Delay: 2 * time.Millisecond, Jitter: 2 * time.Millisecond, Duplicate: 0.05, Drop: 0.01}))
	for _, f := range lab.Families() {
		t.Run(f.String(), func(t *testing.T) {
			at := netip.AddrPortFrom(w.far.AddrIn(f), 9100)
			ln, err := w.far.Listen(at)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			sent := make([]byte, 1<<20)
			for i := range sent {
				sent[i] = byte(rand.Uint32())
			}
			ctx, cancel := context.WithTimeout(t.Context(), roottest.Patient(30*time.Second))
			defer cancel()
			stop := context.AfterFunc(ctx, func() { ln.Close() })
			defer stop()
			var g errgroup.Group
			g.Go(func() error { // back comes what was sent
				c, err := ln.Accept()
				if err != nil {
					return err
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(roottest.Patient(30 * time.Second)))
				_, err = io.Copy(c, io.LimitReader(c, int64(len(sent))))
				return err
			})
			c, err := w.near.Dial(ctx, at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(roottest.Patient(30 * time.Second)))
			g.Go(func() error { _, err := io.Copy(c, bytes.NewReader(sent)); return err })
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(c, got); err != nil {
				t.Fatal(err)
			}
			if sha256.Sum256(got) != sha256.Sum256(sent) {
				t.Error("what came back is not what was sent")
			}
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
	if n := w.port.Overrun(); n > 0 {
		t.Errorf("%d frames were lost for want of room", n)
	}
}

func TestAHurtPortThatGoesIsNoTrouble(t *testing.T) {
	w := newWire(t)
	near, far, to := w.ends(t, lab.IPv4)
	w.set(t, impair.Both(impair.Rule{Delay: 50 * time.Millisecond}))
	burst(t, near, far, to, 20)
	if err := w.far.LinksDown(); err != nil {
		t.Fatal(err)
	}
	burst(t, near, far, to, 1)
	if err := w.far.LinksUp(); err != nil {
		t.Fatal(err)
	}
	w.set(t, impair.Rules{})
	roottest.Eventually(t, "the unhurt wire to work", func() bool { return len(burst(t, near, far, to, 1)) == 1 })
	if err := w.port.Close(); err != nil {
		t.Error(err)
	}
	if err := w.port.Set(impair.Rules{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("setting rules of a closed port: %v", err)
	}
}

func TestImpossibleRulesAreRefusedTogether(t *testing.T) {
	r := impair.Rules{FromHost: []impair.Rule{{Drop: 2, Delay: -1, DSCP: []uint8{64}, Peer: net.HardwareAddr{1}}}, ToHost: make([]impair.Rule, 17)}
	err := r.Validate()
	for _, want := range []string{"drop 2", "delay -1ns", "code point 64", "peer 01", "17 rules"} {
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestCodePointsAreReadFromIPv6Too(t *testing.T) {
	w := newWire(t)
	near, far, to := w.ends(t, lab.IPv6)
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 10<<2)
	}); err != nil {
		t.Fatal(err)
	}
	if len(burst(t, near, far, to, 1)) != 1 {
		t.Fatal("the wire does not work unhurt")
	}
	for dscp, arrives := range map[uint8]bool{10: false, 48: true, 0: true} {
		w.set(t, impair.Rules{ToHost: []impair.Rule{onlyProbes(impair.Rule{DSCP: []uint8{dscp}, Drop: 1})}})
		if got := len(burst(t, near, far, to, 1)) == 1; got != arrives {
			t.Errorf("with %d lost, what has 10 arrives: %v", dscp, got)
		}
	}
}
