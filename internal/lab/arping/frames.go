package arping

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

const (
	frameLen = 14 + 28 // Ethernet and ARP for IPv4
	adverLen = 14 + 40 + 24
)

// request is the question who has target.
func request(mac net.HardwareAddr, self, target netip.Addr) []byte {
	if !self.IsValid() {
		return nil
	}
	f := make([]byte, 0, frameLen)
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, mac...)
	f = append(f, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(f, mac...)
	f = append(f, self.AsSlice()...)
	f = append(f, make([]byte, 6)...)
	return append(f, target.AsSlice()...)
}

// solicitation is the same question for IPv6, to the group of the address (RFC 4861, 4.3).
func solicitation(mac net.HardwareAddr, self, target netip.Addr) []byte {
	if !self.IsValid() {
		return nil
	}
	last := target.As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], last[13:])
	message := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, last[:]...)
	message = append(append(message, 1, 1), mac...)
	pseudo := slices.Concat(self.AsSlice(), group[:], []byte{0, 0, 0, byte(len(message)), 0, 0, 0, 58}, message)
	binary.BigEndian.PutUint16(message[2:], checksum(pseudo))
	f := append([]byte{0x33, 0x33, 0xff, last[13], last[14], last[15]}, mac...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(message)), 58, 255)
	f = append(append(f, self.AsSlice()...), group[:]...)
	return append(f, message...)
}

// checksum is the internet's (RFC 1071), of an even number of bytes.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// claimIn reads who says in a frame that it has which address, and to whom. Both
// forms of ARP count: a request names its sender as a reply does. Of neighbour discovery
// it is the advertisement.
func claimIn(frame []byte) (mac net.HardwareAddr, addr netip.Addr, to net.HardwareAddr, ok bool) {
	switch {
	case len(frame) >= frameLen && bytes.Equal(frame[12:20], []byte{8, 6, 0, 1, 8, 0, 6, 4}):
		arp := frame[14:]
		if op := binary.BigEndian.Uint16(arp[6:]); op != 1 && op != 2 {
			return nil, netip.Addr{}, nil, false
		}
		mac, addr = bytes.Clone(arp[8:14]), netip.AddrFrom4([4]byte(arp[14:18]))
	case len(frame) >= adverLen && binary.BigEndian.Uint16(frame[12:]) == etherIPv6 && frame[20] == 58 && frame[54] == 136:
		mac, addr = bytes.Clone(frame[6:12]), netip.AddrFrom16([16]byte(frame[62:78]))
		if option := frame[adverLen:]; len(option) >= 8 && option[0] == 2 && option[1] == 1 { // target link-layer address
			mac = bytes.Clone(option[2:8])
		}
	default:
		return nil, netip.Addr{}, nil, false
	}
	return mac, addr, bytes.Clone(frame[:6]), true
}
