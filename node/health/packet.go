package health

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flags of TCP (RFC 9293, 3.1).
const (
	tcpSYN = 1 << 1
	tcpRST = 1 << 2
	tcpACK = 1 << 4

	tcpHead = 20
	udpHead = 8
)

const hopLimit = 64

func isICMP(protocol byte) bool {
	return protocol == unix.IPPROTO_ICMP || protocol == unix.IPPROTO_ICMPV6
}

// ipPacket puts an IP header before a payload, and its checksum into the payload at the offset sum,
// unless that is 0.
func ipPacket(from, to netip.Addr, protocol byte, payload []byte, sum int) []byte {
	if sum > 0 {
		var pseudo uint32
		if protocol != unix.IPPROTO_ICMP { // RFC 9293, 768, 4443: not ICMP over IPv4
			pseudo = add(add(0, from.AsSlice()), to.AsSlice())
			pseudo += uint32(protocol) + uint32(len(payload))
		}
		value := checksum(pseudo, payload)
		if value == 0 && protocol == unix.IPPROTO_UDP {
			value = 0xffff // 0 is "none"
		}
		binary.BigEndian.PutUint16(payload[sum:], value)
	}
	if from.Is6() {
		b := make([]byte, ipv6Head, ipv6Head+len(payload))
		b[0] = 6 << 4
		binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
		b[6], b[7] = protocol, hopLimit
		copy(b[8:], from.AsSlice())
		copy(b[24:], to.AsSlice())
		return append(b, payload...)
	}
	b := make([]byte, ipv4Head, ipv4Head+len(payload))
	b[0] = 4<<4 | ipv4Head/4
	binary.BigEndian.PutUint16(b[2:], uint16(ipv4Head+len(payload)))
	b[6] = 1 << 6 // do not fragment
	b[8], b[9] = hopLimit, protocol
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	binary.BigEndian.PutUint16(b[10:], checksum(0, b))
	return append(b, payload...)
}

// first is the packet that begins an op through a VIP.
func (o *op) first(s *pathSocket) []byte {
	switch o.check.probe.Type {
	case TypeTCP:
		return o.tcp(tcpSYN, o.token)
	case TypeUDP:
		send := o.check.probe.Send
		b := make([]byte, udpHead, udpHead+len(send))
		binary.BigEndian.PutUint16(b, o.slot)
		binary.BigEndian.PutUint16(b[2:], o.check.vip.Port())
		binary.BigEndian.PutUint16(b[4:], uint16(udpHead+len(send)))
		return o.through(unix.IPPROTO_UDP, append(b, send...), 6)
	}
	protocol := byte(unix.IPPROTO_ICMP)
	if s.v6 {
		protocol = unix.IPPROTO_ICMPV6
	}
	return o.through(protocol, echo(s.v6, o.slot, o.slot, o.token, o.token), 2)
}

// through is a packet from this node to the VIP.
func (o *op) through(protocol byte, payload []byte, sum int) []byte {
	return ipPacket(o.path.hop.source, o.check.vip.Addr(), protocol, payload, sum)
}

// tcp is a segment without data.
func (o *op) tcp(flags byte, sequence uint32) []byte {
	b := make([]byte, tcpHead)
	binary.BigEndian.PutUint16(b, o.slot)
	binary.BigEndian.PutUint16(b[2:], o.check.vip.Port())
	binary.BigEndian.PutUint32(b[4:], sequence)
	b[12], b[13] = tcpHead/4<<4, flags
	if flags&tcpSYN != 0 {
		binary.BigEndian.PutUint16(b[14:], 0xfaf0) // window
	}
	return o.through(unix.IPPROTO_TCP, b, 16)
}

// answer is what is read of a packet that may answer a probe through a VIP.
type answer struct {
	from, to netip.Addr
	protocol byte
	port     uint16 // it comes from
	slot     uint16 // it goes to
	token    uint32 // TCP: the acknowledgement; echo: what was sent
	flags    byte   // TCP
	data     []byte // UDP
	quote    quote  // ICMP error; why is "" in all else
}

// parseAnswer reads a whole IP packet. Checksums are not looked at: what comes by a virtual interface
// often has none yet.
func parseAnswer(v6 bool, b []byte) (a answer, ok bool) {
	var rest []byte
	if v6 {
		if len(b) < ipv6Head || b[0]>>4 != 6 {
			return a, false
		}
		a.from, a.to = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		a.protocol, rest = b[6], b[ipv6Head:]
	} else {
		head, payload, fine := split4(b)
		if !fine {
			return a, false
		}
		a.from, a.to = netip.AddrFrom4([4]byte(head[12:16])), netip.AddrFrom4([4]byte(head[16:20]))
		a.protocol, rest = head[9], payload
	}
	switch {
	case a.protocol == unix.IPPROTO_TCP && len(rest) >= tcpHead:
		a.token, a.flags = binary.BigEndian.Uint32(rest[8:]), rest[13]
	case a.protocol == unix.IPPROTO_UDP && len(rest) >= udpHead:
		a.data = rest[udpHead:min(len(rest), max(udpHead, int(binary.BigEndian.Uint16(rest[4:]))))]
	case isICMP(a.protocol) && len(rest) >= icmpHead:
		return a.icmp(v6, rest)
	default:
		return a, false
	}
	a.port, a.slot = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	return a, true
}

// icmp reads the ICMP part of an answer.
func (a answer) icmp(v6 bool, b []byte) (answer, bool) {
	if !isEchoReply(v6, b[0]) {
		var ok bool
		a.quote, ok = quoted(v6, b)
		return a, ok
	}
	if len(b) < echoSize {
		return a, false
	}
	a.slot, a.token = binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint32(b[12:])
	return a, true
}
