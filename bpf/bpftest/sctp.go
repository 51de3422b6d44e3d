package bpftest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
)

// SCTP chunk types (RFC 9260, 3.2).
const (
	SCTPData             = 0
	SCTPInit             = 1
	SCTPInitAck          = 2
	SCTPSack             = 3
	SCTPHeartbeat        = 4
	SCTPHeartbeatAck     = 5
	SCTPAbort            = 6
	SCTPShutdown         = 7
	SCTPShutdownAck      = 8
	SCTPError            = 9
	SCTPCookieEcho       = 10
	SCTPCookieAck        = 11
	SCTPShutdownComplete = 14
)

// SCTPChunk is one chunk; it is padded to four bytes on the wire.
type SCTPChunk struct {
	Type, Flags uint8
	Value       []byte
	Length      uint16 // 0: what it is
}

// SCTP describes an Ethernet frame with IPv4 or IPv6, as the addresses are, and an SCTP packet.
type SCTP struct {
	SrcMAC, DstMAC net.HardwareAddr
	Src, Dst       netip.AddrPort
	Tag            uint32
	Chunks         []SCTPChunk
	MoreFragments  bool // of IPv4: it is the first fragment
	Length         int  // of the SCTP packet, cut off there; 0: whole
}

// castagnoli is the table of CRC32c.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Bytes serialises the packet with right lengths and checksums.
func (p SCTP) Bytes() []byte {
	b := make([]byte, 12)
	binary.BigEndian.PutUint16(b, p.Src.Port())
	binary.BigEndian.PutUint16(b[2:], p.Dst.Port())
	binary.BigEndian.PutUint32(b[4:], p.Tag)
	for _, c := range p.Chunks {
		length := c.Length
		if length == 0 {
			length = uint16(4 + len(c.Value))
		}
		b = append(b, c.Type, c.Flags, byte(length>>8), byte(length))
		b = append(b, c.Value...)
		b = append(b, make([]byte, -len(c.Value)&3)...)
	}
	if p.Length > 0 {
		b = b[:p.Length]
	}
	if len(b) >= 12 {
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	}
	frame := append(append([]byte{}, p.DstMAC...), p.SrcMAC...)
	if p.Src.Addr().Is4() {
		return append(p.appendV4(append(frame, 8, 0), len(b)), b...)
	}
	return append(p.appendV6(append(frame, 0x86, 0xdd), len(b)), b...)
}

func (p SCTP) appendV4(frame []byte, payload int) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, 132
	binary.BigEndian.PutUint16(h[2:], uint16(20+payload))
	if p.MoreFragments {
		h[6] = 0x20
	}
	copy(h[12:], p.Src.Addr().AsSlice())
	copy(h[16:], p.Dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(h[10:], ^sum(h, 0))
	return append(frame, h...)
}

func (p SCTP) appendV6(frame []byte, payload int) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, 132, 64
	binary.BigEndian.PutUint16(h[4:], uint16(payload))
	copy(h[8:], p.Src.Addr().AsSlice())
	copy(h[24:], p.Dst.Addr().AsSlice())
	return append(frame, h...)
}

// SplitSCTP returns the IP header and the SCTP packet of a frame, and checks both checksums.
func SplitSCTP(frame []byte) (ip, packet []byte, err error) {
	header, at := 20, 9
	if len(frame) > 14 && frame[14]>>4 == 6 {
		header, at = 40, 6
	}
	if len(frame) < 14+header+12 {
		return nil, nil, fmt.Errorf("frame of %d bytes", len(frame))
	}
	ip, packet = frame[14:14+header], frame[14+header:]
	if ip[at] != 132 {
		return nil, nil, fmt.Errorf("protocol is %d", ip[at])
	}
	if header == 20 && sum(ip, 0) != 0xffff {
		return nil, nil, fmt.Errorf("ipv4 header checksum is wrong")
	}
	blank := append([]byte{}, packet...)
	clear(blank[8:12])
	if have, want := binary.LittleEndian.Uint32(packet[8:]), crc32.Checksum(blank, castagnoli); have != want {
		return nil, nil, fmt.Errorf("sctp checksum is %08x, want %08x", have, want)
	}
	return ip, packet, nil
}
