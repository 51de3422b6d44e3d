package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// The ports of what is not ours.
const (
	iperfPort = 5201
	echoPort  = 7
	udpPort   = 7007
)

// needTool finds a program that is none of ours.
func needTool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("PONTOON_REQUIRE_PRIV") == "1" {
		t.Fatalf("needs %s: run make deps", name)
	}
	t.Skipf("needs %s", name)
	return ""
}

// start runs a program on a host until the lab ends, with its output in a
// file.
func start(t testing.TB, h *lab.Host, stdin *os.File, args ...string) (p *lab.Process, out string) {
	t.Helper()
	out = filepath.Join(t.TempDir(), h.Name()+".out")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(needTool(t, args[0]), args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, f, f
	if p, err = h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	return p, out
}

// iperfRun is one running iperf3 client.
type iperfRun struct {
	p    *lab.Process
	out  string
	from time.Time
}

const iperfSeconds = 8

// startIperf sends through the service for iperfSeconds, with a moderate rate:
// this is about whether data flows, not how much.
func startIperf(t testing.TB, l *lab.Lab) iperfRun {
	t.Helper()
	p, out := start(t, l.Clients()[0], nil, "iperf3", "--client", lab.ServiceVIP().String(), "--port", fmt.Sprint(iperfPort),
		"--time", fmt.Sprint(iperfSeconds), "--interval", "0.5", "--bitrate", "100M", "--json")
	return iperfRun{p: p, out: out, from: time.Now()}
}

// finish waits for the end of the run, which must be a good one, and returns
// the bytes of each interval.
func (r iperfRun) finish(t testing.TB) (intervals []int64) {
	t.Helper()
	werr := r.p.Wait(within(t, (iperfSeconds+10)*time.Second))
	raw, err := os.ReadFile(r.out)
	if err != nil {
		t.Fatal(err)
	}
	if werr != nil {
		t.Fatalf("iperf3: %v\n%s", werr, raw)
	}
	var report struct {
		Intervals []struct {
			Sum struct {
				Bytes int64 `json:"bytes"`
			} `json:"sum"`
		} `json:"intervals"`
		End struct {
			Received struct {
				Bytes int64 `json:"bytes"`
			} `json:"sum_received"`
		} `json:"end"`
		Error string `json:"error"`
	}
	if err := json.Unmarshal(raw, &report); err != nil {
		t.Fatalf("read report of iperf3: %v\n%s", err, raw)
	}
	for _, i := range report.Intervals {
		intervals = append(intervals, i.Sum.Bytes)
	}
	t.Logf("iperf3: %d bytes received; by half second: %v", report.End.Received.Bytes, intervals)
	if report.Error != "" || len(intervals) < 2*iperfSeconds-1 || report.End.Received.Bytes == 0 {
		t.Errorf("iperf3: error %q, %d intervals", report.Error, len(intervals))
	}
	return intervals
}

// echoSession is an nc that talks to a socat through the service.
type echoSession struct {
	in  *os.File
	out string
	n   int
}

// startEcho opens one session.
func startEcho(t testing.TB, l *lab.Lab) *echoSession {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	t.Cleanup(func() { w.Close() })
	_, out := start(t, l.Clients()[0], r, "nc", lab.ServiceVIP().String(), fmt.Sprint(echoPort))
	return &echoSession{in: w, out: out}
}

// talk says a line and waits for its echo.
func (e *echoSession) talk(t testing.TB) {
	t.Helper()
	e.n++
	line := fmt.Sprintf("line %d of this session\n", e.n)
	if _, err := e.in.WriteString(line); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the echo of line "+fmt.Sprint(e.n), func(context.Context) error {
		got, err := os.ReadFile(e.out)
		if err == nil && !bytes.HasSuffix(got, []byte(line)) {
			err = fmt.Errorf("got %q", got)
		}
		return err
	})
}

// udpEcho answers each datagram with its own name before it and the source it
// saw behind it.
func udpEcho(t testing.TB, h *lab.Host) {
	t.Helper()
	c, err := h.ListenUDP(netip.AddrPortFrom(h.Addr(), udpPort))
	if err != nil {
		t.Fatal(err)
	}
	background(t, "udp echo on "+h.Name(), func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return ctx.Err()
			}
			answer := fmt.Sprintf("%s %s %s", h.Name(), buf[:n], from)
			if _, err := c.WriteToUDPAddrPort([]byte(answer), from); err != nil && ctx.Err() == nil {
				continue // its own gateway is away for a moment: datagrams get lost
			}
		}
	})
}

// udpTalkers are clients that ask the UDP service again and again from the
// same ports.
type udpTalkers struct {
	answered []atomic.Uint64
	strange  atomic.Pointer[string] // an answer from another endpoint or port than the first
}

// talkUDP starts count of them.
func talkUDP(t testing.TB, l *lab.Lab, count int) *udpTalkers {
	t.Helper()
	u := &udpTalkers{answered: make([]atomic.Uint64, count)}
	for i := range count {
		c, err := l.Clients()[0].ListenUDP(netip.AddrPortFrom(l.Clients()[0].Addr(), uint16(20000+i)))
		if err != nil {
			t.Fatal(err)
		}
		background(t, "udp talker", func(ctx context.Context) error { u.ask(ctx, c); return nil })
		background(t, "udp listener", func(ctx context.Context) error {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			u.hear(i, c)
			return nil
		})
	}
	return u
}

func (u *udpTalkers) ask(ctx context.Context, c interface {
	WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error)
},
) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	to := netip.AddrPortFrom(lab.ServiceVIP(), udpPort)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_, _ = c.WriteToUDPAddrPort([]byte("hello"), to) // a lost datagram is what UDP is
	}
}

func (u *udpTalkers) hear(i int, c interface {
	ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error)
},
) {
	first := ""
	buf := make([]byte, 2048)
	for {
		n, _, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		got := string(buf[:n])
		if first == "" {
			first = got
		}
		if got != first {
			text := fmt.Sprintf("first %q, then %q", first, got)
			u.strange.CompareAndSwap(nil, &text)
		}
		u.answered[i].Add(1)
	}
}

// goOn waits until every talker was answered three more times, and checks that
// each still talks to the endpoint it began with, seen from the same port.
func (u *udpTalkers) goOn(t testing.TB) {
	t.Helper()
	before := make([]uint64, len(u.answered))
	for i := range u.answered {
		before[i] = u.answered[i].Load()
	}
	eventually(t, 10*time.Second, "each UDP talker to be answered", func(context.Context) error {
		for i := range u.answered {
			if u.answered[i].Load() < before[i]+3 {
				return fmt.Errorf("talker %d is not", i)
			}
		}
		return nil
	})
	if s := u.strange.Load(); s != nil {
		t.Errorf("a UDP flow changed its way: %s", *s)
	}
}
