package announce

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// mac is an Ethernet address.
type mac [6]byte

var broadcast = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ARP for IPv4 over Ethernet (RFC 826). Offsets within the whole frame:
// Ethernet header 14 bytes, then hardware type 14, protocol type 16, hardware
// length 18, protocol length 19, operation 20, sender hardware 22, sender
// protocol 28, target hardware 32, target protocol 38; end 42.
const (
	etherTypeARP  = 0x0806
	etherTypeIPv4 = 0x0800
	hardwareEther = 1
	opRequest     = 1
	opReply       = 2
	frameLen      = 42
)

// arpFrame is an Ethernet frame that carries ARP for IPv4.
type arpFrame struct {
	dst, src mac // of the Ethernet header
	op       uint16
	senderHW mac
	senderIP netip.Addr
	targetHW mac
	targetIP netip.Addr
}

// errNotARP is returned for frames that are not ARP for IPv4 over Ethernet.
var errNotARP = errors.New("not an ARP frame for IPv4 over Ethernet")

// gratuitous returns the two forms in which hw announces that it holds ip. Both
// are broadcast and have the address as sender and as target.
//
// The request is the ARP Announcement of RFC 5227 section 1.1 and 2.3, with the
// target hardware address zero, and what RFC 826 makes every receiver with an
// entry for ip merge. Section 3 there tells why it is the better known form. The
// reply is the other form of RFC 5944 section 4.6, which has the sender's hardware
// address as target hardware address; some receivers update on replies only.
func gratuitous(hw mac, ip netip.Addr) [2]arpFrame {
	request := arpFrame{dst: broadcast, src: hw, op: opRequest, senderHW: hw, senderIP: ip, targetIP: ip}
	reply := request
	reply.op, reply.targetHW = opReply, hw
	return [2]arpFrame{request, reply}
}

// append adds the frame's 42 bytes to b. Drivers pad to the Ethernet minimum.
// Both addresses must be IPv4.
func (f arpFrame) append(b []byte) []byte {
	b = append(b, f.dst[:]...)
	b = append(b, f.src[:]...)
	b = binary.BigEndian.AppendUint16(b, etherTypeARP)
	b = binary.BigEndian.AppendUint16(b, hardwareEther)
	b = binary.BigEndian.AppendUint16(b, etherTypeIPv4)
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, f.op)
	b = append(b, f.senderHW[:]...)
	b = append(b, f.senderIP.AsSlice()...)
	b = append(b, f.targetHW[:]...)
	return append(b, f.targetIP.AsSlice()...)
}

// parseARP reads a frame. Bytes behind the ARP packet are padding.
func parseARP(b []byte) (arpFrame, error) {
	if len(b) < frameLen ||
		binary.BigEndian.Uint16(b[12:]) != etherTypeARP ||
		binary.BigEndian.Uint16(b[14:]) != hardwareEther ||
		binary.BigEndian.Uint16(b[16:]) != etherTypeIPv4 ||
		b[18] != 6 || b[19] != 4 {
		return arpFrame{}, errNotARP
	}
	return arpFrame{
		dst:      mac(b[0:6]),
		src:      mac(b[6:12]),
		op:       binary.BigEndian.Uint16(b[20:]),
		senderHW: mac(b[22:28]),
		senderIP: netip.AddrFrom4([4]byte(b[28:32])),
		targetHW: mac(b[32:38]),
		targetIP: netip.AddrFrom4([4]byte(b[38:42])),
	}, nil
}
