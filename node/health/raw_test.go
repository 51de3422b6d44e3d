package health

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"pontoon/internal/lab/backend"
	"pontoon/internal/roottest"
)

func TestEchoesAreAnswered(t *testing.T) {
	roottest.Need(t)
	targets := []Target{
		{Key: 1, Addr: netip.MustParseAddrPort("127.0.0.1:0"), Probe: fast(TypeICMP)},
		{Key: 2, Addr: netip.MustParseAddrPort("127.3.2.1:80"), Probe: fast(TypeICMP)},
	}
	targets[1].Probe.Source = netip.MustParseAddr("127.0.0.77")
	if c, err := net.Listen("tcp", "[::1]:0"); err == nil { // this machine speaks IPv6
		_ = c.Close()
		targets = append(targets, Target{Key: 3, Addr: netip.MustParseAddrPort("[::1]:80"), Probe: fast(TypeICMP)})
	}
	p := start(t, Options{}, targets...)
	for _, target := range targets {
		if r := becomes(t, p, target.Key, Up, ""); r.P50 <= 0 {
			t.Errorf("took no time: %+v", r)
		}
	}
}

// sctpServer answers INITs on loopback as an SCTP stack would, by a raw socket: the kernel here need not
// know SCTP.
type sctpServer struct {
	fd      int
	answer  func(init sctpAnswer, tag uint32) []byte // a packet
	aborted chan uint32                              // tags
	stop    chan struct{}
}

// serve reads until it is to stop. The socket's reads end by themselves after a moment.
func (s *sctpServer) serve() {
	buf := make([]byte, 2048)
	for {
		select {
		case <-s.stop:
			return
		default:
		}
		n, _, err := unix.Recvfrom(s.fd, buf, 0)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		_, b, ok := split4(buf[:n])
		a, fine := parseSCTP(b)
		if !ok || !fine || a.to != sctpServerPort {
			continue
		}
		switch a.chunk {
		case sctpInit:
			if reply := s.answer(a, binary.BigEndian.Uint32(b[sctpHead+4:])); reply != nil {
				_ = unix.Sendto(s.fd, reply, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
			}
		case sctpAbort:
			select {
			case s.aborted <- a.tag:
			default:
			}
		}
	}
}

const sctpServerPort = 38412

func TestAssociationsAreBegunAndGivenUp(t *testing.T) {
	roottest.Need(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	must(t, err)
	mute, err := backend.MuteSCTP(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), sctpServerPort))
	must(t, err)
	t.Cleanup(func() { _ = mute.Close() })
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}))
	mode := make(chan byte, 1) // what is answered
	mode <- sctpInitAck
	s := &sctpServer{fd: fd, aborted: make(chan uint32, 1), answer: func(a sctpAnswer, tag uint32) []byte {
		kind := <-mode
		mode <- kind
		switch kind {
		case sctpInitAck:
			chunk := initChunk(0xbeef)
			chunk[0] = sctpInitAck
			return sctpPacket(a.to, a.from, tag, chunk)
		case sctpAbort:
			return sctpPacket(a.to, a.from, tag, abortChunk())
		case 99: // a blind guess at the tag
			return sctpPacket(a.to, a.from, tag^1, abortChunk())
		}
		return nil
	}}
	stop, done := make(chan struct{}), make(chan struct{})
	s.stop = stop
	go func() {
		defer close(done)
		s.serve()
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		_ = unix.Close(fd)
	})
	become := func(kind byte) { <-mode; mode <- kind }
	p := start(t, Options{}, Target{Key: 1, Addr: netip.MustParseAddrPort("127.0.0.1:38412"), Probe: fast(TypeSCTP)})
	becomes(t, p, 1, Up, "")
	if tag := <-s.aborted; tag != 0xbeef {
		t.Errorf("aborted tag %#x", tag)
	}
	become(sctpAbort)
	becomes(t, p, 1, Down, "association refused")
	become(0)
	becomes(t, p, 1, Down, "no answer in 80ms")
	become(99)
	before, _ := p.Result(1)
	roottest.Eventually(t, "some more are probed", func() bool {
		r, _ := p.Result(1)
		return r.Probes > before.Probes+2
	})
	becomes(t, p, 1, Down, "no answer in 80ms")
	become(sctpInitAck)
	becomes(t, p, 1, Up, "")
}

// The checksum of a known packet: an INIT that another implementation made (gopacket knows the format).
func TestSCTPPacketsAreWellFormed(t *testing.T) {
	b := sctpPacket(61234, 38412, 0, initChunk(0x01020304))
	packet := gopacket.NewPacket(b, layers.LayerTypeSCTP, gopacket.Default)
	if e := packet.ErrorLayer(); e != nil {
		t.Fatal(e.Error())
	}
	head := packet.Layer(layers.LayerTypeSCTP).(*layers.SCTP)
	chunk, ok := packet.Layer(layers.LayerTypeSCTPInit).(*layers.SCTPInit)
	if !ok || head.SrcPort != 61234 || head.DstPort != 38412 || head.VerificationTag != 0 {
		t.Fatalf("%v", packet)
	}
	if chunk.InitiateTag != 0x01020304 || chunk.OutboundStreams == 0 || chunk.InboundStreams == 0 || chunk.AdvertisedReceiverWindowCredit < 1500 || chunk.Length != sctpInitSize {
		t.Errorf("%+v", chunk)
	}
	sum := binary.LittleEndian.Uint32(b[8:])
	copy(b[8:12], make([]byte, 4))
	if want := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)); sum != want {
		t.Errorf("checksum %#x, want %#x", sum, want)
	}
}

// pathOp is a probe through a VIP that was sent.
func pathOp(kind Type, vip, source, addr string) *op {
	c := &check{subject: subject{
		addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 80), vip: netip.AddrPortFrom(netip.MustParseAddr(vip), 80),
		probe: Probe{Type: kind, Send: "ping", Body: "pong"}.withDefaults(),
	}}
	return &op{check: c, slot: 61001, token: 0xfffffffe, path: path{hop{source: netip.MustParseAddr(source)}}}
}

var families = []struct{ vip, source, addr string }{
	{"192.0.2.100", "10.0.0.1", "10.0.0.9"},
	{"2001:db8::100", "fd00::1", "fd00::9"},
}

// What is sent is what gopacket would have made of it, checksums included.
func TestPacketsThroughTheVIPAreWellFormed(t *testing.T) {
	for _, f := range families {
		v6 := strings.Contains(f.vip, ":")
		for _, kind := range []Type{TypeTCP, TypeUDP, TypeICMP} {
			o := pathOp(kind, f.vip, f.source, f.addr)
			b := o.first(&pathSocket{v6: v6})
			first := gopacket.Decoder(layers.LayerTypeIPv4)
			if v6 {
				first = layers.LayerTypeIPv6
			}
			packet := gopacket.NewPacket(b, first, gopacket.Default)
			if e := packet.ErrorLayer(); e != nil {
				t.Fatalf("%v: %v", kind, e.Error())
			}
			var again []gopacket.SerializableLayer
			for _, l := range packet.Layers() {
				if s, ok := l.(gopacket.SerializableLayer); ok {
					again = append(again, s)
				}
				switch l := l.(type) {
				case *layers.TCP:
					must(t, l.SetNetworkLayerForChecksum(packet.NetworkLayer()))
					if !l.SYN || l.Seq != o.token || l.DstPort != 80 || l.SrcPort != 61001 {
						t.Errorf("%+v", l)
					}
				case *layers.UDP:
					must(t, l.SetNetworkLayerForChecksum(packet.NetworkLayer()))
					if string(l.Payload) != "ping" {
						t.Errorf("%+v", l)
					}
				case *layers.ICMPv6:
					must(t, l.SetNetworkLayerForChecksum(packet.NetworkLayer()))
				}
			}
			if src, dst := packet.NetworkLayer().NetworkFlow().Endpoints(); src.String() != f.source || dst.String() != f.vip {
				t.Errorf("%v: from %v to %v", kind, src, dst)
			}
			buf := gopacket.NewSerializeBuffer()
			must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, again...))
			if !bytes.Equal(buf.Bytes(), b) {
				t.Errorf("%v %s:\n%s, want\n%s", kind, f.vip, hex.Dump(b), hex.Dump(buf.Bytes()))
			}
		}
	}
}

// build makes a packet from the VIP, or from whoever it is to come from.
func build(t *testing.T, from, to string, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	var ip gopacket.SerializableLayer
	var network gopacket.NetworkLayer
	protocol := layers.IPProtocolTCP
	switch ls[0].(type) {
	case *layers.UDP:
		protocol = layers.IPProtocolUDP
	case *layers.ICMPv4:
		protocol = layers.IPProtocolICMPv4
	case *layers.ICMPv6:
		protocol = layers.IPProtocolICMPv6
	}
	if strings.Contains(from, ":") {
		l := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: protocol, SrcIP: net.ParseIP(from), DstIP: net.ParseIP(to)}
		ip, network = l, l
	} else {
		l := &layers.IPv4{Version: 4, TTL: 64, Protocol: protocol, SrcIP: net.ParseIP(from).To4(), DstIP: net.ParseIP(to).To4()}
		ip, network = l, l
	}
	for _, l := range ls {
		if s, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			must(t, s.SetNetworkLayerForChecksum(network))
		}
	}
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append([]gopacket.SerializableLayer{ip}, ls...)...))
	return buf.Bytes()
}

// passes tells whether the filter of answers lets a packet through.
func passes(t *testing.T, v6 bool, packet []byte) bool {
	t.Helper()
	vm, err := bpf.NewVM(answersOnly(v6))
	must(t, err)
	n, err := vm.Run(packet)
	must(t, err)
	return n > 0
}

func TestAnswersFromTheVIPAreRecognized(t *testing.T) {
	for _, f := range families {
		v6 := strings.Contains(f.vip, ":")
		tcp := func(change func(*layers.TCP)) []byte {
			l := &layers.TCP{SrcPort: 80, DstPort: 61001, Seq: 5, Ack: 0xffffffff, SYN: true, ACK: true}
			change(l)
			return build(t, f.vip, f.source, l)
		}
		udp := func(port layers.UDPPort, text string) []byte {
			return build(t, f.vip, f.source, &layers.UDP{SrcPort: port, DstPort: 61001}, gopacket.Payload(text))
		}
		for _, tc := range []struct {
			name   string
			kind   Type
			packet []byte
			seen   bool // by the filter
			over   bool
			why    string
		}{
			{"SYN-ACK", TypeTCP, tcp(func(*layers.TCP) {}), true, true, ""},
			{"reset", TypeTCP, tcp(func(l *layers.TCP) { l.SYN, l.RST = false, true }), true, true, "connection refused"},
			{"another acknowledgement", TypeTCP, tcp(func(l *layers.TCP) { l.Ack-- }), true, false, ""},
			{"another port", TypeTCP, tcp(func(l *layers.TCP) { l.SrcPort = 81 }), true, false, ""},
			{"a plain ACK", TypeTCP, tcp(func(l *layers.TCP) { l.SYN = false }), true, false, ""},
			{"to a port that is not ours", TypeTCP, tcp(func(l *layers.TCP) { l.DstPort = 60999 }), false, false, ""},
			{"a datagram", TypeUDP, udp(80, "a pong"), true, true, ""},
			{"a wrong datagram", TypeUDP, udp(80, "ping"), true, true, `the answer does not contain "pong"`},
			{"from another port", TypeUDP, udp(81, "pong"), true, false, ""},
			{"a datagram for a TCP probe", TypeTCP, udp(80, "pong"), true, false, ""},
		} {
			t.Run(tc.name+" "+f.vip, func(t *testing.T) {
				if got := passes(t, v6, tc.packet); got != tc.seen {
					t.Errorf("the filter says %t", got)
				}
				a, ok := parseAnswer(v6, tc.packet)
				if !ok || a.from.String() != f.vip || a.to.String() != f.source {
					t.Fatalf("not read: %+v", a)
				}
				if !tc.seen {
					return
				}
				o := pathOp(tc.kind, f.vip, f.source, f.addr)
				o.check.tunnel = true
				out, over := o.answeredThrough(nil, &pathSocket{tunnel: -1, v6: v6}, a)
				if over != tc.over || over && (out.passed != (tc.why == "") || out.why != tc.why) {
					t.Errorf("%+v, over is %t", out, over)
				}
			})
		}
	}
}

func TestEchoesOfOthersProveNothing(t *testing.T) {
	p := New(Options{})
	l, err := newLoop(p)
	must(t, err)
	defer l.close()
	s := &icmpSocket{id: 7, cookie: 8, slots: newSlots(0, 1<<16)}
	addr := netip.MustParseAddr("10.0.0.9")
	for _, tc := range []struct {
		name  string
		from  string
		reply func(slot uint16) []byte
		want  uint64 // probes that have ended
	}{
		{"another address", "10.0.0.8", func(n uint16) []byte { return echo(false, 7, n, 8, 9) }, 0},
		{"another process", "10.0.0.9", func(n uint16) []byte { return echo(false, 6, n, 8, 9) }, 0},
		{"a guess at the cookie", "10.0.0.9", func(n uint16) []byte { return echo(false, 7, n, 7, 9) }, 0},
		{"an earlier probe", "10.0.0.9", func(n uint16) []byte { return echo(false, 7, n-1, 8, 9) }, 0},
		{"an earlier one with its number", "10.0.0.9", func(n uint16) []byte { return echo(false, 7, n, 8, 8) }, 0},
		{"a short one", "10.0.0.9", func(n uint16) []byte { return echo(false, 7, n, 8, 9)[:icmpHead] }, 0},
		{"its own", "10.0.0.9", func(n uint16) []byte { return echo(false, 7, n, 8, 9) }, 1},
	} {
		c := &check{subject: subject{addr: netip.AddrPortFrom(addr, 0)}, flying: true, factor: 1}
		p.board.lane(c).flying++
		o := &op{check: c, fd: -1, token: 9}
		s.slots.give(o, ports{})
		s.answer(l, tc.reply(o.slot), netip.MustParseAddr(tc.from))
		if c.probes != tc.want {
			t.Errorf("%s: %d probes have ended, want %d", tc.name, c.probes, tc.want)
		}
	}
}

// Nothing that comes by the network may do more than not be understood.
func FuzzAnswersAreParsed(f *testing.F) {
	for _, family := range families {
		v6 := strings.Contains(family.vip, ":")
		f.Add(v6, pathOp(TypeUDP, family.vip, family.source, family.addr).first(&pathSocket{v6: v6}))
		f.Add(v6, pathOp(TypeICMP, family.vip, family.source, family.addr).first(&pathSocket{v6: v6}))
	}
	f.Fuzz(func(_ *testing.T, v6 bool, b []byte) {
		parseAnswer(v6, b)
		parseSCTP(b)
		if len(b) >= icmpHead {
			quoted(v6, b)
		}
		attributes(b)
	})
}
