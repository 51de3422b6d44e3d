package health

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

func TestErrorsAboutProbesFindThem(t *testing.T) {
	inner := pathOp(TypeUDP, "192.0.2.100", "10.0.0.1", "10.0.0.9")
	quotedPacket := inner.first(&pathSocket{})
	for code, want := range map[uint8]string{3: "port unreachable, says 10.0.0.254", 13: "forbidden by a firewall, says 10.0.0.254", 4: ""} {
		packet := build(t, "10.0.0.254", "10.0.0.1", &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, code)}, gopacket.Payload(quotedPacket[:28]))
		if !passes(t, false, packet) {
			t.Fatal("the filter drops it")
		}
		p := New(Options{})
		l, err := newLoop(p)
		must(t, err)
		c := *inner.check
		c.gen, c.flying = p.board.gen, true
		p.board.lane(&c).flying++
		o := &op{check: &c, fd: -1, path: inner.path}
		s := &pathSocket{slots: newSlots(61001, 1)}
		if !s.slots.give(o, ports{}) || s.slots.give(&op{}, ports{}) {
			t.Fatal("one slot is not one slot")
		}
		l.sockets.paths[0] = s
		a, ok := parseAnswer(false, packet)
		if ok != (want != "") {
			t.Fatalf("code %d: read is %t", code, ok)
		}
		if ok {
			l.refused(a.quote, a.from, a.to)
		}
		if c.why != want {
			t.Errorf("code %d: says %q, want %q", code, c.why, want)
		}
		l.sockets.paths[0] = nil
		l.close()
	}
}

// sentProbe is a probe under way by a shared socket, and the packet that it has sent.
type sentProbe struct {
	l      *loop
	o      *op
	packet []byte
	head   int // of packet
	sum    [2]int
}

// sendProbe puts a probe under way without sending anything.
func sendProbe(t *testing.T, kind Type, throughVIP bool, vip, source, addr string) *sentProbe {
	t.Helper()
	l, err := newLoop(New(Options{}))
	must(t, err)
	t.Cleanup(func() {
		l.sockets = sockets{} // none of them was opened
		l.close()
	})
	p := &sentProbe{l: l, o: pathOp(kind, vip, source, addr), head: ipv4Head}
	p.o.fd = -1
	c := p.o.check
	c.flying, c.factor = true, 1
	l.p.board.lane(c).flying++
	from, to := netip.MustParseAddr(source), c.addr.Addr()
	v, v6 := version(to), to.Is6()
	if v6 {
		p.head = ipv6Head
	}
	if throughVIP {
		s := &pathSocket{v6: v6, slots: newSlots(61001, 1)}
		s.slots.give(p.o, ports{})
		l.sockets.paths[v] = s
		p.packet, p.sum = p.o.first(s), map[Type][2]int{TypeTCP: {16, 18}, TypeUDP: {6, 8}, TypeICMP: {2, 4}}[kind]
		return p
	}
	c.vip, p.o.path, c.probe.Source = netip.AddrPort{}, path{}, from
	if kind == TypeSCTP {
		s := &sctpSocket{v6: v6, slots: newSlots(sctpPort, sctpPorts)}
		s.slots.give(p.o, ports{})
		l.sockets.sctp[v] = s
		init := sctpPacket(p.o.slot, c.addr.Port(), 0, initChunk(p.o.token))
		p.packet, p.sum = ipPacket(from, to, unix.IPPROTO_SCTP, init, 0), [2]int{8, 12}
		return p
	}
	s := &icmpSocket{v6: v6, id: 7, cookie: 0x01020304, slots: newSlots(0, 1<<16)}
	s.slots.give(p.o, ports{})
	l.sockets.icmp[v] = s
	protocol := byte(unix.IPPROTO_ICMP)
	if v6 {
		protocol = unix.IPPROTO_ICMPV6
	}
	p.packet, p.sum = ipPacket(from, to, protocol, echo(v6, s.id, p.o.slot, s.cookie, p.o.token), 2), [2]int{2, 4}
	return p
}

// refuse lets an error about a packet come in and tells whether it has ended the probe.
func (p *sentProbe) refuse(t *testing.T, packet []byte, to string) bool {
	t.Helper()
	v6, failures := p.head == ipv6Head, p.o.check.failures
	head := []byte{icmpUnreachable, 3, 0, 0, 0, 0, 0, 0}
	if v6 {
		head[0], head[1] = icmp6Unreachable, 4
	}
	if q, ok := quoted(v6, append(head, packet...)); ok {
		p.l.refused(q, netip.Addr{}, netip.MustParseAddr(to))
	}
	return p.o.check.failures > failures
}

// What is quoted must be what was sent, to the last byte that is quoted: anybody on the way, and whoever
// guesses a port, may send such errors.
func TestErrorsAboutPacketsOfOthersEndNoProbe(t *testing.T) {
	for _, f := range families {
		for _, tc := range []struct {
			kind    Type
			through bool
		}{{TypeSCTP, false}, {TypeICMP, false}, {TypeTCP, true}, {TypeUDP, true}, {TypeICMP, true}} {
			t.Run(fmt.Sprintf("%v through=%t %s", tc.kind, tc.through, f.addr), func(t *testing.T) {
				send := func() *sentProbe { return sendProbe(t, tc.kind, tc.through, f.vip, f.source, f.addr) }
				p := send()
				for at := range p.packet {
					forged := append([]byte(nil), p.packet...)
					forged[at] ^= 0x10
					inHead, at := at < p.head, at-p.head
					if inHead && !addressed(p.head, at+p.head) || at >= p.sum[0] && at < p.sum[1] {
						continue
					}
					if p.refuse(t, forged, f.source) {
						t.Fatalf("byte %d of %d behind the IP header is another one, and it is believed", at, len(p.packet)-p.head)
					}
				}
				if other := strings.TrimSuffix(f.source, "1") + "2"; p.refuse(t, p.packet, other) {
					t.Error("the error came to another address than the packet left from, and is believed")
				}
				for name, cut := range map[string]func(*sentProbe) []byte{
					"8 bytes":          func(p *sentProbe) []byte { return p.packet[:p.head+8] },
					"all":              func(p *sentProbe) []byte { return p.packet },
					"all, and padding": func(p *sentProbe) []byte { return append(p.packet, 0, 0, 0) },
				} {
					if own := send(); !own.refuse(t, cut(own), f.source) {
						t.Errorf("%s of its own packet: not believed", name)
					}
				}
			})
		}
	}
}

// addressed tells whether a byte of an IP header says what the packet is, or between whom: the rest may
// change on the way.
func addressed(head, at int) bool {
	if head == ipv6Head {
		return at == 6 || at >= 8
	}
	return at == 9 || at >= 12
}
