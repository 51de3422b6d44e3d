package bpftest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
)

// IP protocol numbers of frames.
const (
	ProtoICMP   = 1
	ProtoIPIP   = 4
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoIP6IP6 = 41
	ProtoICMPv6 = 58
	ProtoSCTP   = 132
)

// Frame is an Ethernet frame that is built byte by byte, of either IP family and with what Packet
// cannot say. What stands in L4 is its transport header and payload, made by one of the functions
// below.
type Frame struct {
	SrcMAC, DstMAC net.HardwareAddr
	VLAN           uint16 // 0: no tag
	Src, Dst       netip.Addr
	Protocol       uint8
	TTL            uint8  // default 64
	Options        []byte // of IPv4, a multiple of four bytes
	Extensions     []byte // of IPv6, as Extension makes them
	FirstHeader    uint8  // of IPv6: what Extensions begin with
	ID             uint32
	Offset         int // of a fragment, in bytes
	More           bool
	L4             []byte
}

func (f Frame) ttl() uint8 {
	if f.TTL == 0 {
		return 64
	}
	return f.TTL
}

// Bytes is the frame.
func (f Frame) Bytes() []byte {
	out := append(append([]byte{}, f.DstMAC...), f.SrcMAC...)
	if f.VLAN != 0 {
		out = append(out, 0x81, 0, byte(f.VLAN>>8), byte(f.VLAN))
	}
	if f.Src.Is4() {
		return append(append(out, 8, 0), f.IP()...)
	}
	return append(append(out, 0x86, 0xdd), f.IP()...)
}

// IP is the frame from the IP header on.
func (f Frame) IP() []byte {
	if f.Src.Is4() {
		return f.ipv4()
	}
	return f.ipv6()
}

func (f Frame) ipv4() []byte {
	header := make([]byte, 20, 60)
	header = append(header, f.Options...)
	header[0] = 0x40 | byte(len(header)/4)
	binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(f.L4)))
	binary.BigEndian.PutUint16(header[4:], uint16(f.ID))
	place := uint16(f.Offset / 8)
	switch {
	case f.More:
		place |= 0x2000
	case f.Offset == 0:
		place |= 0x4000
	}
	binary.BigEndian.PutUint16(header[6:], place)
	header[8], header[9] = f.ttl(), f.Protocol
	copy(header[12:], f.Src.AsSlice())
	copy(header[16:], f.Dst.AsSlice())
	binary.BigEndian.PutUint16(header[10:], ^sum(header, 0))
	return append(header, f.L4...)
}

func (f Frame) ipv6() []byte {
	next, extensions := f.Protocol, append([]byte{}, f.Extensions...)
	if len(extensions) > 0 {
		next = f.FirstHeader
	}
	if f.Offset != 0 || f.More {
		fragment := make([]byte, 8)
		fragment[0] = f.Protocol
		place := uint16(f.Offset)
		if f.More {
			place |= 1
		}
		binary.BigEndian.PutUint16(fragment[2:], place)
		binary.BigEndian.PutUint32(fragment[4:], f.ID)
		if len(extensions) == 0 {
			next = 44
		}
		extensions = append(extensions, fragment...)
	}
	header := make([]byte, 40)
	header[0] = 0x60
	binary.BigEndian.PutUint16(header[4:], uint16(len(extensions)+len(f.L4)))
	header[6], header[7] = next, f.ttl()
	copy(header[8:], f.Src.AsSlice())
	copy(header[24:], f.Dst.AsSlice())
	return append(append(header, extensions...), f.L4...)
}

// Extension is an IPv6 extension header of size bytes that says nothing (padding), for
// hop-by-hop (0), routing (43) and destination options (60).
func Extension(next uint8, size int) []byte {
	out := make([]byte, size)
	out[0], out[1] = next, byte(size/8-1)
	out[2], out[3] = 1, byte(size-4)
	return out
}

// pseudo is the sum of the pseudo header.
func pseudo(src, dst netip.Addr, protocol uint8, length int) uint32 {
	return uint32(sum(append(src.AsSlice(), dst.AsSlice()...), uint32(protocol)+uint32(length)))
}

// TCPBytes is a TCP header of 20 bytes and payload with a right checksum.
func TCPBytes(src, dst netip.AddrPort, flags uint8, seq, ack uint32, payload []byte) []byte {
	out := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(out, src.Port())
	binary.BigEndian.PutUint16(out[2:], dst.Port())
	binary.BigEndian.PutUint32(out[4:], seq)
	binary.BigEndian.PutUint32(out[8:], ack)
	out[12], out[13] = 5<<4, flags
	binary.BigEndian.PutUint16(out[14:], 1024)
	out = append(out, payload...)
	binary.BigEndian.PutUint16(out[16:], ^sum(out, pseudo(src.Addr(), dst.Addr(), ProtoTCP, len(out))))
	return out
}

// UDPBytes is a UDP header and payload with a right checksum.
func UDPBytes(src, dst netip.AddrPort, payload []byte) []byte {
	out := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(out, src.Port())
	binary.BigEndian.PutUint16(out[2:], dst.Port())
	binary.BigEndian.PutUint16(out[4:], uint16(8+len(payload)))
	out = append(out, payload...)
	check := ^sum(out, pseudo(src.Addr(), dst.Addr(), ProtoUDP, len(out)))
	if check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(out[6:], check)
	return out
}

// SCTPBytes is an SCTP packet with a right checksum.
func SCTPBytes(src, dst netip.AddrPort, tag uint32, chunks ...[]byte) []byte {
	out := make([]byte, 12)
	binary.BigEndian.PutUint16(out, src.Port())
	binary.BigEndian.PutUint16(out[2:], dst.Port())
	binary.BigEndian.PutUint32(out[4:], tag)
	for _, c := range chunks {
		out = append(out, c...)
	}
	binary.LittleEndian.PutUint32(out[8:], crc32.Checksum(out, crc32.MakeTable(crc32.Castagnoli)))
	return out
}

// Chunk is one SCTP chunk.
func Chunk(kind, flags uint8, value []byte) []byte {
	out := []byte{kind, flags, 0, 0}
	binary.BigEndian.PutUint16(out[2:], uint16(4+len(value)))
	out = append(out, value...)
	return append(out, make([]byte, -len(out)&3)...)
}

// Error is an ICMP error (or, with ICMPv6 set by the family of src, an ICMPv6 one) about the
// quoted packet, from src to dst.
func Error(src, dst netip.Addr, kind, code uint8, number uint32, quoted []byte) []byte {
	out := make([]byte, 8, 8+len(quoted))
	out[0], out[1] = kind, code
	binary.BigEndian.PutUint32(out[4:], number)
	out = append(out, quoted...)
	start := uint32(0)
	if src.Is6() {
		start = pseudo(src, dst, ProtoICMPv6, len(out))
	}
	binary.BigEndian.PutUint16(out[2:], ^sum(out, start))
	return out
}

// Layers are the parts of a frame that VerifyFrame has looked at.
type Layers struct {
	VLAN       uint16
	Src, Dst   netip.Addr
	TTL        uint8
	Protocol   uint8
	Fragment   bool // later fragment: L4 has no header
	More       bool
	Options    []byte // or extension headers
	L4         []byte
	IP         []byte
	Link       []byte // the MAC addresses
	SrcP, DstP netip.AddrPort
}

// VerifyFrame checks every length and checksum of a frame of either family: IPv4, TCP, UDP, SCTP,
// ICMP, ICMPv6. Those of a fragment's payload are left alone, as they cover what is not there.
func VerifyFrame(frame []byte) (Layers, error) {
	if len(frame) < 34 {
		return Layers{}, fmt.Errorf("frame of %d bytes", len(frame))
	}
	l := Layers{Link: frame[:12], IP: frame[14:]}
	if frame[12] == 0x81 && frame[13] == 0 {
		l.VLAN = binary.BigEndian.Uint16(frame[14:])
		l.IP = frame[18:]
	}
	var err error
	if l.IP[0]>>4 == 4 {
		err = l.split4()
	} else {
		err = l.split6()
	}
	if err != nil {
		return l, err
	}
	return l, l.verify()
}

// VerifyIP is VerifyFrame without a link header; cut says that the packet may end early, as a quoted
// one does.
func VerifyIP(ip []byte, cut bool) (Layers, error) {
	l := Layers{IP: ip}
	var err error
	if ip[0]>>4 == 4 {
		err = l.split4()
	} else {
		err = l.split6()
	}
	if err != nil && !cut {
		return l, err
	}
	if cut {
		l.ports()
		return l, nil
	}
	return l, l.verify()
}

func (l *Layers) split4() error {
	ip, header := l.IP, int(l.IP[0]&15)*4
	if len(ip) < header || header < 20 || sum(ip[:header], 0) != 0xffff {
		return fmt.Errorf("ipv4 header or its checksum is wrong")
	}
	total := int(binary.BigEndian.Uint16(ip[2:]))
	l.Src, _ = netip.AddrFromSlice(ip[12:16])
	l.Dst, _ = netip.AddrFromSlice(ip[16:20])
	l.TTL, l.Protocol, l.Options = ip[8], ip[9], ip[20:header]
	place := binary.BigEndian.Uint16(ip[6:])
	l.Fragment, l.More = place&0x1fff != 0, place&0x2000 != 0
	l.L4 = ip[header:]
	if total > len(ip) || total < header {
		return fmt.Errorf("ipv4 length %d does not fit %d bytes", total, len(ip))
	}
	l.L4 = ip[header:total]
	return nil
}

func (l *Layers) split6() error {
	ip := l.IP
	if len(ip) < 40 || ip[0]>>4 != 6 {
		return fmt.Errorf("no ipv6 header")
	}
	payload := int(binary.BigEndian.Uint16(ip[4:]))
	l.Src, _ = netip.AddrFromSlice(ip[8:24])
	l.Dst, _ = netip.AddrFromSlice(ip[24:40])
	l.TTL = ip[7]
	next, at := ip[6], 40
	for next == 0 || next == 43 || next == 44 || next == 60 {
		if at+8 > len(ip) {
			return fmt.Errorf("extension header at %d is cut", at)
		}
		size := int(ip[at+1])*8 + 8
		if next == 44 {
			size = 8
			place := binary.BigEndian.Uint16(ip[at+2:])
			l.Fragment, l.More = place&^7 != 0, place&1 != 0
		}
		next, at = ip[at], at+size
		if l.Fragment {
			break
		}
	}
	l.Protocol = next
	if 40+payload > len(ip) || at > len(ip) {
		if at < len(ip) {
			l.Options, l.L4 = ip[40:at], ip[at:]
		}
		return fmt.Errorf("ipv6 length %d does not fit %d bytes", payload, len(ip))
	}
	l.Options, l.L4 = ip[40:at], ip[at:40+payload]
	return nil
}

func (l *Layers) ports() {
	if len(l.L4) >= 4 && !l.Fragment && (l.Protocol == ProtoTCP || l.Protocol == ProtoUDP || l.Protocol == ProtoSCTP) {
		l.SrcP = netip.AddrPortFrom(l.Src, binary.BigEndian.Uint16(l.L4))
		l.DstP = netip.AddrPortFrom(l.Dst, binary.BigEndian.Uint16(l.L4[2:]))
	}
}

func (l *Layers) verify() error {
	l.ports()
	if l.Fragment || l.More {
		return nil
	}
	start := uint32(0)
	switch l.Protocol {
	case ProtoUDP:
		if len(l.L4) >= 8 && l.L4[6] == 0 && l.L4[7] == 0 && l.Src.Is4() {
			return nil
		}
		start = pseudo(l.Src, l.Dst, l.Protocol, len(l.L4))
	case ProtoTCP, ProtoICMPv6:
		start = pseudo(l.Src, l.Dst, l.Protocol, len(l.L4))
	case ProtoICMP:
	case ProtoSCTP:
		return l.verifySCTP()
	default:
		return nil
	}
	if sum(l.L4, start) != 0xffff {
		return fmt.Errorf("checksum of protocol %d is wrong", l.Protocol)
	}
	return nil
}

func (l *Layers) verifySCTP() error {
	if len(l.L4) < 12 {
		return fmt.Errorf("sctp packet of %d bytes", len(l.L4))
	}
	zeroed := append([]byte{}, l.L4...)
	copy(zeroed[8:12], make([]byte, 4))
	if binary.LittleEndian.Uint32(l.L4[8:]) != crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)) {
		return fmt.Errorf("sctp checksum is wrong")
	}
	return nil
}
