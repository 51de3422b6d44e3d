package bpf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func TestOldSegmentIsWellFormed(t *testing.T) {
	for _, row := range [][2]string{{"10.9.0.100:80", "10.9.0.5:40000"}, {"[fd00::100]:80", "[fd00::5]:40000"}} {
		src, dst := netip.MustParseAddrPort(row[0]), netip.MustParseAddrPort(row[1])
		segment := oldSegment(src, dst, 0x12345678, 0x9abcdef0)
		first, etherType := gopacket.LayerType(layers.LayerTypeIPv4), []byte{8, 0}
		if src.Addr().Is6() {
			first, etherType = layers.LayerTypeIPv6, []byte{0x86, 0xdd}
		}
		p := gopacket.NewPacket(segment, first, gopacket.Default)
		tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
		if !ok || !tcp.ACK || tcp.Seq != 0x12345678 || tcp.Ack != 0x9abcdef0 || len(tcp.Payload) != 0 ||
			uint16(tcp.SrcPort) != src.Port() || uint16(tcp.DstPort) != dst.Port() {
			t.Fatalf("%s: %v", row[0], p)
		}
		if n := p.NetworkLayer().NetworkFlow(); n.Src().String() != src.Addr().String() || n.Dst().String() != dst.Addr().String() {
			t.Errorf("%s: it goes %s", row[0], n)
		}
		if src.Addr().Is4() {
			if err := bpftest.VerifyChecksums(append(append(make([]byte, 12), etherType...), segment...)); err != nil {
				t.Errorf("%s: %v", row[0], err)
			}
		}
		if err := tcp.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
			t.Fatal(err)
		}
		if err, mismatch := p.VerifyChecksums(); err != nil || len(mismatch) > 0 {
			t.Errorf("%s: %v, %v", row[0], err, mismatch)
		}
	}
}

// idlePair is a real connection that nothing is sent on.
type idlePair struct {
	client net.Conn
	server net.Conn
}

func (l *lab) idlePair(t *testing.T) idlePair {
	t.Helper()
	accepted := make(chan net.Conn, 2)
	for _, e := range l.endpoints {
		listener := e.Listen("0.0.0.0:8080")
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
	}
	p := idlePair{client: l.dial()}
	p.server = <-accepted
	t.Cleanup(func() {
		_ = p.client.Close()
		_ = p.server.Close()
	})
	return p
}

// expectResets demands that both sides see a reset although neither sends anything.
func (p idlePair) expectResets(t *testing.T) {
	t.Helper()
	for who, c := range map[string]net.Conn{"client": p.client, "endpoint": p.server} {
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", who, err)
		}
	}
}

func TestBothEndsOfAnIdleConnectionAreReset(t *testing.T) {
	for _, mode := range []Mode{ModeFullNAT, ModeDNAT} {
		t.Run(mode.String(), func(t *testing.T) {
			l := newLab(t, false, 1)
			d := l.open(0, nil)
			s := service(mode, l.endpointAddrs(8080)...)
			s.IdleTimeout, s.IdleReset = time.Second, true
			if err := d.Sync(context.Background(), Desired{VIPs: []netip.Addr{vip}, Services: numbered(s)}); err != nil {
				t.Fatal(err)
			}
			p := l.idlePair(t)
			runDataplane(t, d)
			p.expectResets(t)
		})
	}
}

func TestBothEndsOfAnIdleConnectionHearThatTheEndpointIsGone(t *testing.T) {
	l := newLab(t, false, 1)
	d := l.open(0, nil)
	s := service(ModeFullNAT, l.endpointAddrs(8080)...)
	want := Desired{VIPs: []netip.Addr{vip}, Services: numbered(s)}
	if err := d.Sync(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	p := l.idlePair(t)
	runDataplane(t, d)
	for i := range want.Services[0].Endpoints {
		want.Services[0].Endpoints[i].State = EndpointDown
	}
	if err := d.Sync(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	p.expectResets(t)
}

func TestBothEndsOfAnIdleIPv6ConnectionAreReset(t *testing.T) {
	l := newLab(t, false, 1)
	for _, ns := range append([]*bpftest.NS{l.client, l.lbs[0]}, l.endpoints...) {
		ns.Do(func() {
			for _, name := range []string{"all", "eth1", "eth2"} {
				ns.Sysctl("net/ipv6/conf/"+name+"/accept_dad", "0")
				ns.Sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "0")
			}
			ns.Sysctl("net/ipv6/conf/all/forwarding", "1")
		})
	}
	v, e := netip.MustParseAddr("fd00:9::100"), netip.MustParseAddrPort("[fd00:8::21]:8080")
	l.client.Lookup("eth1").Address("fd00:9::5/64")
	for _, a := range []string{"fd00:9::1/64", v.String() + "/128"} {
		l.lbs[0].Lookup("eth1").Address(a)
	}
	l.lbs[0].Lookup("eth2").Address("fd00:8::1/64")
	l.endpoints[0].Lookup("eth1").Address("fd00:8::21/64")
	d := l.open(0, func(o *Options) {
		o.timeouts = defaultTimeouts()
		o.timeouts.doomed, o.timeouts.lastWord = time.Hour, time.Hour
	})
	s := Service{
		ID: 7, VIP: netip.AddrPortFrom(v, 80), Protocol: protoTCP, Mode: ModeFullNAT, Algorithm: AlgorithmRR,
		IdleTimeout: time.Second, IdleReset: true,
		Endpoints: []Endpoint{{ID: 1, Addr: e, Weight: 1, Sources: []netip.Addr{netip.MustParseAddr("fd00:8::1")}}},
	}
	if err := d.Sync(context.Background(), Desired{VIPs: []netip.Addr{v}, Services: []Service{s}}); err != nil {
		t.Fatal(err)
	}
	listener := l.endpoints[0].Listen("[::]:8080")
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := listener.Accept(); err == nil {
			accepted <- c
		}
	}()
	var c net.Conn
	eventually(t, "connection", func() (err error) {
		c, err = l.client.Dial(&net.Dialer{Timeout: time.Second}, "tcp6", s.VIP.String())
		return err
	})
	defer c.Close()
	server := <-accepted
	defer server.Close()
	runDataplane(t, d)
	idlePair{client: c, server: server}.expectResets(t)
	eventually(t, "both told", func() error {
		if n := entriesOf(t, d); n > 0 {
			return fmt.Errorf("%d halves", n)
		}
		return nil
	})
}
