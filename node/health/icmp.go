package health

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443) messages that are sent or read.
const (
	icmpEchoReply   = 0
	icmpUnreachable = 3
	icmpEcho        = 8
	icmpExceeded    = 11

	icmp6Unreachable = 1
	icmp6Exceeded    = 3
	icmp6Problem     = 4
	icmp6Echo        = 128
	icmp6EchoReply   = 129
)

const (
	icmpHead = 8 // of an echo, and of an error before what it quotes
	echoSize = icmpHead + 8
	ipv4Head = 20 // without options
	ipv6Head = 40
)

// icmpSocket is the raw socket that all echoes of one family go out and come back by, and errors
// about the probes of other shared sockets as well.
type icmpSocket struct {
	fd     int
	v6     bool
	id     uint16
	cookie uint32 // so that an answer cannot be made up by who has not seen the probe
	slots  *slots
}

// icmpFilter lets through only what is read here (linux/icmp.h: a set bit holds back).
const icmpFilter = ^(1<<icmpEchoReply | 1<<icmpUnreachable | 1<<icmpExceeded)

// filterOption is ICMP_FILTER and ICMPV6_FILTER.
const filterOption = 1

// icmpFor opens the socket of a family, unless it is open.
func (l *loop) icmpFor(a netip.Addr) (*icmpSocket, error) {
	if s := l.sockets.icmp[version(a)]; s != nil {
		return s, nil
	}
	protocol := unix.IPPROTO_ICMP
	if a.Is6() {
		protocol = unix.IPPROTO_ICMPV6
	}
	fd, err := rawSocket(a, protocol)
	if err != nil {
		return nil, err
	}
	s := &icmpSocket{fd: fd, v6: a.Is6(), id: uint16(rand.Uint32()), cookie: rand.Uint32(), slots: newSlots(0, 1<<16)}
	if a.Is6() {
		var filter unix.ICMPv6Filter
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0)
		}
		for _, t := range []int{icmp6Unreachable, icmp6Exceeded, icmp6Problem, icmp6EchoReply} {
			filter.Data[t/32] &^= 1 << (t % 32)
		}
		err = unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, filterOption, &filter)
	} else {
		err = unix.SetsockoptInt(fd, unix.SOL_RAW, filterOption, icmpFilter)
	}
	if err == nil {
		err = l.share(fd, s)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open icmp socket: %w", err), unix.Close(fd))
	}
	l.sockets.icmp[version(a)] = s
	return s, nil
}

// rawSocket opens a raw socket with room for the answers of a burst of probes.
func rawSocket(a netip.Addr, protocol int) (int, error) {
	fd, err := unix.Socket(family(a), unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("open raw socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20) // the default does as well, mostly
	return fd, nil
}

// control makes the kernel use a source address.
func (c *check) control() []byte {
	src := c.probe.Source
	switch {
	case !src.IsValid():
		return nil
	case src.Is4():
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: src.As4()})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: src.As16()})
}

// sendRaw sends one packet of a check by a shared socket.
func (c *check) sendRaw(fd int, packet []byte) error {
	to, _ := c.ends()
	if in6, ok := to.(*unix.SockaddrInet6); ok && in6.Port != 0 {
		to = &unix.SockaddrInet6{Addr: in6.Addr, ZoneId: in6.ZoneId} // a raw socket wants no port
	}
	if err := unix.Sendmsg(fd, packet, c.control(), to, 0); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// echo is an echo request without its checksum: for ICMPv6 the kernel fills that in.
func echo(v6 bool, id, sequence uint16, cookie, token uint32) []byte {
	b := make([]byte, echoSize)
	b[0] = icmpEcho
	if v6 {
		b[0] = icmp6Echo
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], sequence)
	binary.BigEndian.PutUint32(b[8:], cookie)
	binary.BigEndian.PutUint32(b[12:], token)
	return b
}

// checksum is that of RFC 1071, over b and what was summed up before.
func checksum(sum uint32, b []byte) uint16 {
	return ^fold(add(sum, b))
}

func add(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return uint32(fold(sum))
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// icmpKind sends an echo request.
type icmpKind struct{}

func (icmpKind) begin(l *loop, o *op) (outcome, bool) {
	s, err := l.icmpFor(o.check.addr.Addr())
	if err != nil {
		return o.judge(err), true
	}
	if !s.slots.give(o, ports{}) {
		return void("too many echoes are under way"), true
	}
	o.token = rand.Uint32()
	request := echo(s.v6, s.id, o.slot, s.cookie, o.token)
	if !s.v6 {
		binary.BigEndian.PutUint16(request[2:], checksum(0, request))
	}
	if err := o.check.sendRaw(s.fd, request); err != nil {
		return o.judge(err), true
	}
	return outcome{}, false
}

func (icmpKind) ready(*loop, *op, uint32) (outcome, bool) { return outcome{}, false }
func (icmpKind) late(_ *loop, o *op) (outcome, bool)      { return o.noAnswer(), true }

// ready is handler's.
func (s *icmpSocket) ready(l *loop, _ uint32) {
	l.drain(s.fd, func(packet []byte, from netip.Addr) {
		b, to := packet, netip.Addr{} // of IPv6 there is no header
		if !s.v6 {
			head, rest, ok := split4(packet)
			if !ok {
				return
			}
			b, to = rest, netip.AddrFrom4([4]byte(head[16:20]))
		}
		if len(b) < icmpHead {
			return
		}
		if isEchoReply(s.v6, b[0]) {
			s.answer(l, b, from)
			return
		}
		if q, ok := quoted(s.v6, b); ok {
			l.refused(q, from, to)
		}
	})
}

func isEchoReply(v6 bool, kind byte) bool {
	if v6 {
		return kind == icmp6EchoReply
	}
	return kind == icmpEchoReply
}

// answer takes in an echo reply.
func (s *icmpSocket) answer(l *loop, b []byte, from netip.Addr) {
	if len(b) < echoSize || binary.BigEndian.Uint16(b[4:]) != s.id || binary.BigEndian.Uint32(b[8:]) != s.cookie {
		return
	}
	o := s.slots.ops[binary.BigEndian.Uint16(b[6:])]
	if o != nil && o.token == binary.BigEndian.Uint32(b[12:]) && from == o.check.addr.Addr().WithZone("") {
		l.finish(o, pass)
	}
}

// split4 takes an IPv4 packet apart.
func split4(b []byte) (head, rest []byte, ok bool) {
	if len(b) < ipv4Head || b[0]>>4 != 4 {
		return nil, nil, false
	}
	n := int(b[0]&0xf) * 4
	if n < ipv4Head || len(b) < n {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}
