package health

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// quote is what an ICMP error says.
type quote struct {
	why      string
	protocol byte
	from, to netip.Addr // of the packet that it is about
	rest     []byte     // behind that packet's IP header: at least 8 bytes (RFC 792), mostly all of it
}

// unreachable4 and unreachable6 are the words for the codes of "destination unreachable".
var (
	unreachable4 = map[byte]string{
		0: "network is unreachable", 1: "host is unreachable", 2: "protocol is not spoken there", 3: "port unreachable",
		9: "forbidden by a firewall", 10: "forbidden by a firewall", 13: "forbidden by a firewall",
	}
	unreachable6 = map[byte]string{
		0: "no route to host", 1: "forbidden by a firewall", 3: "host is unreachable", 4: "port unreachable",
		5: "forbidden by a firewall", 6: "no route to host",
	}
)

// quoted reads an ICMP error that ends a probe; ok is false when it is none.
func quoted(v6 bool, b []byte) (q quote, ok bool) {
	kind, code, inner := b[0], b[1], b[icmpHead:]
	words := unreachable4
	unreachable, exceeded := byte(icmpUnreachable), byte(icmpExceeded)
	if v6 {
		words, unreachable, exceeded = unreachable6, icmp6Unreachable, icmp6Exceeded
	}
	switch {
	case kind == exceeded:
		q.why = "the hop limit was exceeded on the way"
	case v6 && kind == icmp6Problem && code == 1: // next header not known
		q.why = unreachable4[2]
	case kind == unreachable && words[code] != "":
		q.why = words[code]
	case kind == unreachable && (v6 || code != 4): // 4: too big, and no probe is
		q.why = fmt.Sprintf("unreachable (ICMP code %d)", code)
	default:
		return quote{}, false
	}
	if v6 {
		if len(inner) < ipv6Head+8 || inner[0]>>4 != 6 {
			return quote{}, false
		}
		q.protocol, q.rest = inner[6], inner[ipv6Head:]
		q.from, q.to = netip.AddrFrom16([16]byte(inner[8:24])), netip.AddrFrom16([16]byte(inner[24:40]))
		return q, true
	}
	head, rest, ok := split4(inner)
	if !ok || len(rest) < 8 {
		return quote{}, false
	}
	q.protocol, q.rest = head[9], rest
	q.from, q.to = netip.AddrFrom4([4]byte(head[12:16])), netip.AddrFrom4([4]byte(head[16:20]))
	return q, true
}

// refused ends the probe that an ICMP error is about, which came from one address to another; to is invalid
// where that is not known. Anybody may send one, so what shows that a packet of ours called it forth is
// what it quotes.
func (l *loop) refused(q quote, from, to netip.Addr) {
	o := l.quoted(q)
	if o == nil || o.asked() != q.to || to.IsValid() && to != q.from {
		return
	}
	if sender := o.sender(); sender.IsValid() && sender != q.from {
		return
	}
	if from != o.check.addr.Addr().WithZone("") && from.IsValid() {
		q.why = fmt.Sprintf("%s, says %v", q.why, from)
	}
	l.finish(o, failed("%s", q.why))
}

// quoted finds the probe whose packet is quoted; nil: it is none of ours.
func (l *loop) quoted(q quote) *op {
	v, number := version(q.to), binary.BigEndian.Uint16
	paths := l.sockets.paths[v]
	switch q.protocol {
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		sequence := number(q.rest[6:])
		if s := l.sockets.icmp[v]; s != nil {
			if o := s.slots.ops[sequence]; o != nil && quotes(q.rest, echo(s.v6, s.id, o.slot, s.cookie, o.token), 2, 2) {
				return o
			}
		}
		return paths.quoted(q, sequence, TypeICMP, 2)
	case unix.IPPROTO_SCTP:
		if s := l.sockets.sctp[v]; s != nil {
			o := s.slots.ops[number(q.rest)]
			if o != nil && quotes(q.rest, sctpPacket(o.slot, o.check.addr.Port(), 0, initChunk(o.token)), 8, 4) {
				return o
			}
		}
	case unix.IPPROTO_TCP:
		return paths.quoted(q, number(q.rest), TypeTCP, 16)
	case unix.IPPROTO_UDP:
		return paths.quoted(q, number(q.rest), TypeUDP, 6)
	}
	return nil
}

// quoted finds the probe through a VIP by its number; sum is where its checksum stands.
func (s *pathSocket) quoted(q quote, slot uint16, kind Type, sum int) *op {
	if s == nil {
		return nil
	}
	head := ipv4Head
	if s.v6 {
		head = ipv6Head
	}
	o := s.slots.ops[slot]
	if o == nil || o.check.probe.Type != kind || !quotes(q.rest, o.first(s)[head:], sum, 2) {
		return nil
	}
	return o
}

// quotes tells whether a quoted packet is the one that was sent, as far as it is quoted: RFC 792 asks for
// 8 bytes, RFC 1812 and RFC 4443 for as much as fits. What follows may be padding. The checksum, width
// bytes at sum, may be filled in, or changed by who translates addresses, after it has left us.
func quotes(quoted, sent []byte, sum, width int) bool {
	n := min(len(quoted), len(sent))
	before, after := min(n, sum), min(n, sum+width)
	return bytes.Equal(quoted[:before], sent[:before]) && bytes.Equal(quoted[after:n], sent[after:n])
}

// sender is the address that the op's packets are from; invalid: the kernel's choice, which is not known.
func (o *op) sender() netip.Addr {
	if o.path.hop.source.IsValid() {
		return o.path.hop.source
	}
	return o.check.probe.Source
}

// asked is the address that the op's packets bear.
func (o *op) asked() netip.Addr {
	if o.check.vip.IsValid() {
		return o.check.vip.Addr()
	}
	return o.check.addr.Addr().WithZone("")
}
