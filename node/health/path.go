package health

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A probe through the VIP bears the VIP as its destination and goes to one endpoint all the same: by
// the endpoint's MAC address, or in a packet addressed to the endpoint. No socket of the kernel's does
// that, so these packets are made here.
//
// The endpoint answers from the VIP. Where this node holds the VIP as well, the kernel takes such a
// packet for a forgery (unless accept_local is set), and it has no socket for it in any case; so answers
// are read by packet sockets, which see them before. They are bound to a protocol and not to all, and so
// see only what the data plane has let pass to the host: what it forwards itself costs nothing more.

// Our ports are those that the kernel gives to nobody by itself. What comes from a VIP belongs to no flow
// of the data plane, whatever its port.
const (
	ownPort  = 61000
	ownPorts = 1<<16 - ownPort
)

// pathSocket is what the probes through VIPs of one family share.
type pathSocket struct {
	packets int // AF_PACKET, without link headers: answers, and what goes out by MAC address
	tunnel  int // raw IP in IP: what goes out through tunnels
	v6      bool
	slots   *slots
}

// path is what an op through a VIP remembers.
type path struct {
	hop hop
}

func (s *pathSocket) close() {
	_ = unix.Close(s.packets)
	_ = unix.Close(s.tunnel)
}

func (l *loop) pathFor(a netip.Addr) (*pathSocket, error) {
	if s := l.sockets.paths[version(a)]; s != nil {
		return s, nil
	}
	ether, inner := unix.ETH_P_IP, unix.IPPROTO_IPIP
	if a.Is6() {
		ether, inner = unix.ETH_P_IPV6, unix.IPPROTO_IPV6
	}
	// Bound to its protocol only when the filter is there, so that nothing else is ever read.
	packets, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	tunnel, err := rawSocket(a, inner)
	if err != nil {
		return nil, errors.Join(err, unix.Close(packets))
	}
	s := &pathSocket{packets: packets, tunnel: tunnel, v6: a.Is6(), slots: newSlots(ownPort, ownPorts)}
	err = errors.Join(
		attachFilter(tunnel, []bpf.Instruction{bpf.RetConstant{Val: 0}}), // it only sends
		attachFilter(packets, answersOnly(a.Is6())),
		unix.Bind(packets, &unix.SockaddrLinklayer{Protocol: hostToNet(uint16(ether))}),
		l.share(packets, s))
	if err != nil {
		s.close()
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	l.sockets.paths[version(a)] = s
	return s, nil
}

// hostToNet turns a number round as the kernel wants it in a link address.
func hostToNet(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// answersOnly lets packets through that may be answers to probes: TCP and UDP to our ports, echo
// replies, and "destination unreachable".
func answersOnly(v6 bool) []bpf.Instruction {
	const accept, drop = 1 << 16, 0
	if v6 {
		return []bpf.Instruction{
			bpf.LoadAbsolute{Off: 6, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 5},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_TCP, SkipTrue: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 2},
			bpf.LoadAbsolute{Off: ipv6Head + 2, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: ownPort, SkipTrue: 4},
			bpf.RetConstant{Val: drop},
			bpf.LoadAbsolute{Off: ipv6Head, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmp6EchoReply, SkipTrue: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: icmp6Unreachable, SkipTrue: 1},
			bpf.RetConstant{Val: accept},
			bpf.RetConstant{Val: drop},
		}
	}
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 6, Size: 2}, // of fragments only the first could be read
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 12},
		bpf.LoadMemShift{Off: 0},
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMP, SkipTrue: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_TCP, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 7},
		bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: ownPort, SkipTrue: 4, SkipFalse: 5},
		bpf.LoadIndirect{Off: 0, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmpEchoReply, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmpUnreachable, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.RetConstant{Val: accept},
		bpf.RetConstant{Val: drop},
	}
}

func attachFilter(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// resolvePause is how long a neighbour that is not known yet is given, again and again.
const resolvePause = 20 * time.Millisecond

// pathKind sends a TCP SYN, a datagram or an echo request through the VIP.
type pathKind struct{}

func (pathKind) begin(l *loop, o *op) (outcome, bool) {
	s, err := l.pathFor(o.check.addr.Addr())
	if err != nil {
		return o.judge(err), true
	}
	r, err := l.routeFor()
	if err != nil {
		return o.judge(err), true
	}
	o.path.hop, err = r.route(o.check.addr.Addr())
	if err != nil {
		return o.judge(err), true
	}
	if src := o.check.probe.Source; src.IsValid() {
		o.path.hop.source = src
	}
	if !o.path.hop.source.IsValid() {
		return void("no address here to reach %v from", o.check.addr.Addr()), true
	}
	if !o.check.tunnel && o.path.hop.gateway.IsValid() {
		return void("%v is in no network of this node, and without a tunnel packets reach no further", o.check.addr.Addr()), true
	}
	if !s.slots.give(o, ports{}) {
		return void("too many probes through VIPs are under way"), true
	}
	o.token = rand.Uint32()
	return o.depart(l)
}

// depart sends the op's packet, or waits for the neighbour.
func (o *op) depart(l *loop) (outcome, bool) {
	s := l.sockets.paths[version(o.check.addr.Addr())]
	if o.check.tunnel {
		if err := o.check.sendTunnel(s, o.first(s)); err != nil {
			return o.judge(err), true
		}
		return outcome{}, false
	}
	mac, ok, err := l.sockets.route.neighbour(o.path.hop.link, o.check.addr.Addr())
	if err == nil && (!ok || o.stage == stageBegun) {
		err = l.sockets.route.use(o.path.hop.link, o.check.addr.Addr()) // also lets a stale one be made sure of
	}
	if err != nil {
		return o.judge(err), true
	}
	if !ok {
		o.stage = stageResolving
		l.nextDeadline(o, resolvePause)
		return outcome{}, false
	}
	o.stage = stageBegun
	l.deadlines.move(o, o.end)
	if err := o.sendFrame(s, mac, o.first(s)); err != nil {
		return o.judge(err), true
	}
	return outcome{}, false
}

func (pathKind) ready(*loop, *op, uint32) (outcome, bool) { return outcome{}, false }

func (pathKind) late(l *loop, o *op) (outcome, bool) {
	if o.stage != stageResolving {
		return o.noAnswer(), true
	}
	if l.clock.lived >= o.end {
		return failed("%v is not on its network: no neighbour has this address", o.check.addr.Addr()), true
	}
	return o.depart(l)
}

// sendFrame sends a packet to a MAC address.
func (o *op) sendFrame(s *pathSocket, mac [6]byte, packet []byte) error {
	to := &unix.SockaddrLinklayer{Protocol: hostToNet(unix.ETH_P_IP), Ifindex: o.path.hop.link, Halen: uint8(len(mac))}
	if s.v6 {
		to.Protocol = hostToNet(unix.ETH_P_IPV6)
	}
	copy(to.Addr[:], mac[:])
	if err := unix.Sendto(s.packets, packet, 0, to); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// sendTunnel sends a packet in one to the endpoint; the kernel makes the outer header.
func (c *check) sendTunnel(s *pathSocket, packet []byte) error { return c.sendRaw(s.tunnel, packet) }

// send sends a further packet of an op whose first one has gone.
func (o *op) send(l *loop, s *pathSocket, packet []byte) {
	if o.check.tunnel {
		_ = o.check.sendTunnel(s, packet) // the outcome stands already
		return
	}
	if mac, ok, err := l.sockets.route.neighbour(o.path.hop.link, o.check.addr.Addr()); ok && err == nil {
		_ = o.sendFrame(s, mac, packet)
	}
}

// ready is handler's.
func (s *pathSocket) ready(l *loop, _ uint32) {
	l.drain(s.packets, func(packet []byte, _ netip.Addr) {
		a, ok := parseAnswer(s.v6, packet)
		if !ok {
			return
		}
		if a.quote.why != "" {
			l.refused(a.quote, a.from, a.to)
			return
		}
		o := s.slots.ops[a.slot]
		if o == nil || a.from != o.check.vip.Addr() || a.to != o.path.hop.source {
			return
		}
		if out, over := o.answeredThrough(l, s, a); over {
			l.finish(o, out)
		}
	})
}

// answeredThrough judges an answer from the VIP.
func (o *op) answeredThrough(l *loop, s *pathSocket, a answer) (outcome, bool) {
	c := o.check
	switch {
	case c.probe.Type == TypeICMP && isICMP(a.protocol) && a.token == o.token:
		return pass, true
	case a.port != c.vip.Port():
	case c.probe.Type == TypeUDP && a.protocol == unix.IPPROTO_UDP:
		return c.answered(string(a.data)), true
	case c.probe.Type == TypeTCP && a.protocol == unix.IPPROTO_TCP && a.token == o.token+1:
		switch {
		case a.flags&tcpRST != 0:
			return failed("connection refused"), true
		case a.flags&(tcpSYN|tcpACK) == tcpSYN|tcpACK:
			o.send(l, s, o.tcp(tcpRST, o.token+1))
			return pass, true
		}
	}
	return outcome{}, false
}
