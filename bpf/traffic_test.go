package bpf

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

const bulk = 50 << 20

func (l *lab) sync(d *Dataplane, mode Mode, protocol uint8) {
	l.tb.Helper()
	s := service(mode, l.endpointAddrs(8080)...)
	s.Protocol = protocol
	if err := d.Sync(context.Background(), Desired{VIPs: []netip.Addr{vip}, Services: numbered(s)}); err != nil {
		l.tb.Fatal(err)
	}
}

func TestRealTrafficArrivesWhole(t *testing.T) {
	for _, row := range []struct {
		mode   Mode
		oneLeg bool
		hook   string
	}{
		{ModeFullNAT, false, HookAuto},
		{ModeDNAT, false, HookAuto},
		{ModeFullNAT, true, HookAuto},
		{ModeOneArm, true, HookAuto},
		{ModeFullNAT, false, HookClsact},
		{ModeFullNAT, false, HookXDP},
		{ModeDNAT, false, HookXDP},
		{ModeOneArm, true, HookXDP},
		{ModeFullNAT, false, HookXDPGeneric},
	} {
		legs := "two legs"
		if row.oneLeg {
			legs = "one leg"
		}
		t.Run(fmt.Sprintf("%s %s %s", row.mode, legs, row.hook), func(t *testing.T) {
			l := newLab(t, row.oneLeg, 1)
			xdp := row.hook == HookXDP || row.hook == HookXDPGeneric
			if xdp {
				l.forXDP()
			}
			l.serve()
			d := l.open(0, func(o *Options) { o.Hook = row.hook })
			want := map[string]string{
				HookAuto: usedTCX, HookClsact: usedClsact, HookXDP: usedXDP + usedTCX, HookXDPGeneric: usedXDPGeneric + usedTCX,
			}[row.hook]
			for name, used := range d.Interfaces() {
				if used.Hook != want && !(row.hook != HookClsact && used.Hook == strings.Replace(want, usedTCX, usedClsact, 1)) {
					t.Errorf("%s: %+v", name, used)
				}
			}
			runDataplane(t, d)
			l.sync(d, row.mode, protoTCP)
			for range 2 { // one per endpoint
				start := time.Now()
				c := l.dial()
				if err := transfer(c, bulk, nil); err != nil {
					t.Fatalf("%v\n%+v", err, d.Stats())
				}
				t.Logf("%.2f Gbit/s each way", bulk*8/time.Since(start).Seconds()/1e9)
				_ = c.Close()
			}
			stats := d.Stats()
			for reason, n := range stats.Drops {
				if n > 0 && reason != "no_flow" {
					t.Errorf("%d drops for %s", n, reason)
				}
			}
			if n := stats.Counters["xdp_forward"]; xdp && n < bulk/1500 {
				t.Errorf("XDP forwarded %d packets: %v", n, stats.Counters)
			}
			if stats.Counters["next_hop_miss"] > 200 {
				t.Errorf("%d FIB lookups: next hops are not cached", stats.Counters["next_hop_miss"])
			}
		})
	}
}

func TestRealUDPIsAnswered(t *testing.T) {
	for _, mode := range []Mode{ModeFullNAT, ModeDNAT} {
		t.Run(mode.String(), func(t *testing.T) {
			l := newLab(t, false, 1)
			for _, e := range l.endpoints {
				server := e.ListenUDP("0.0.0.0:8080")
				go func() {
					buffer := make([]byte, 2048)
					for {
						n, from, err := server.ReadFromUDPAddrPort(buffer)
						if err != nil {
							return
						}
						_, _ = server.WriteToUDPAddrPort(buffer[:n], from)
					}
				}()
			}
			d := l.open(0, nil)
			l.sync(d, mode, protoUDP)
			for i := range 20 {
				c, err := l.client.Dial(&net.Dialer{}, "udp4", vipPort.String())
				if err != nil {
					t.Fatal(err)
				}
				message := bytes.Repeat([]byte{byte(i)}, 10+60*i)
				answer := make([]byte, 2048)
				eventually(t, "echo", func() error {
					if _, err := c.Write(message); err != nil {
						return err
					}
					_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
					n, err := c.Read(answer)
					if err == nil && !bytes.Equal(answer[:n], message) {
						err = fmt.Errorf("answer of %d bytes differs", n)
					}
					return err
				})
			}
		})
	}
}

func TestRealClientSeesUnknownPortRefused(t *testing.T) {
	l := newLab(t, false, 1)
	d := l.open(0, nil)
	l.sync(d, ModeFullNAT, protoTCP)
	start := time.Now()
	_, err := l.client.Dial(&net.Dialer{Timeout: 5 * time.Second}, "tcp4", netip.AddrPortFrom(vip, 81).String())
	if err == nil || time.Since(start) > 2*time.Second || !bytes.Contains([]byte(err.Error()), []byte("refused")) {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
	if n := d.Stats().Counters["refused"]; n == 0 {
		t.Error("not counted")
	}
}
