package impair

import (
	"encoding/binary"
)

// vnetHeaderLen is struct virtio_net_hdr (include/uapi/linux/virtio_net.h), which
// goes before each frame on a socket with PACKET_VNET_HDR.
const vnetHeaderLen = 10

// Values of its fields.
const (
	vnetNeedsChecksum = 1

	vnetGSONone  = 0
	vnetGSOTCP4  = 1
	vnetGSOTCP6  = 4
	vnetGSOUDPL4 = 5
)

const (
	protoTCP, protoUDP = 6, 17
	etherHeader        = ethLen
)

// vnetHeader tells the kernel what it knew of the frame before it was copied:
// whether the sender left the checksum to the card, and how it wanted a long
// frame cut into segments. The first cannot be asked of the kernel, but seen: such
// a frame carries the sum of the pseudo header alone. Should that by chance be the
// true checksum too, computing it anew gives the same.
func vnetHeader(frame []byte, gsoSize uint32) (h [vnetHeaderLen]byte) {
	l4, proto, pseudo, v6 := transportOf(frame)
	if l4 == 0 {
		return h
	}
	field := 16 // of TCP (RFC 9293)
	if proto == protoUDP {
		field = 6
	}
	if len(frame) < l4+field+2 {
		return h
	}
	if binary.BigEndian.Uint16(frame[l4+field:]) == pseudo {
		h[0] = vnetNeedsChecksum
		binary.NativeEndian.PutUint16(h[6:], uint16(l4))
		binary.NativeEndian.PutUint16(h[8:], uint16(field))
	}
	if gsoSize == 0 {
		return h
	}
	headers := l4 + 8
	switch {
	case proto == protoUDP:
		h[1] = vnetGSOUDPL4
	case v6:
		h[1] = vnetGSOTCP6
	default:
		h[1] = vnetGSOTCP4
	}
	if proto == protoTCP {
		headers = l4 + int(frame[l4+12]>>4)*4
	}
	binary.NativeEndian.PutUint16(h[2:], uint16(headers))
	binary.NativeEndian.PutUint16(h[4:], uint16(gsoSize))
	return h
}

// transportOf finds the TCP or UDP header of a frame, 0 when there is none, and
// sums up the pseudo header that belongs to it.
func transportOf(frame []byte) (l4 int, proto byte, pseudo uint16, v6 bool) {
	if len(frame) < etherHeader+20 {
		return 0, 0, 0, false
	}
	ip := frame[etherHeader:]
	var addrs []byte
	var length int
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
		head, total := int(ip[0]&0xf)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
			return 0, 0, 0, false // a fragment: its checksum is of the whole
		}
		if total == 0 || total > len(ip) { // a frame of 64 kB and more says 0
			total = len(ip)
		}
		l4, proto, addrs, length = etherHeader+head, ip[9], ip[12:20], total-head
	case etherIPv6:
		if len(ip) < 40 {
			return 0, 0, 0, false
		}
		length = int(binary.BigEndian.Uint16(ip[4:]))
		if length == 0 {
			length = len(ip) - 40
		}
		l4, proto, addrs, v6 = etherHeader+40, ip[6], ip[8:40], true
	}
	if (proto != protoTCP && proto != protoUDP) || len(frame) < l4+8 || (proto == protoTCP && len(frame) < l4+20) {
		return 0, 0, 0, false
	}
	sum := uint32(proto) + uint32(length>>16) + uint32(length&0xffff)
	for i := 0; i < len(addrs); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(addrs[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return l4, proto, uint16(sum), v6
}
