package announce

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/net/bpf"
)

// Neighbour discovery for IPv6 over Ethernet (RFC 4861, RFC 2464). Offsets
// within the whole frame: Ethernet header 14 bytes, then the IPv6 header with
// payload length 18, next header 20, hop limit 21, source 22, destination 38;
// the ICMPv6 message with type 54, code 55, checksum 56, flags 58, target 62;
// options from 78 on.
const (
	etherTypeIPv6  = 0x86dd
	protoICMPv6    = 58
	ndpHopLimit    = 255 // what no router lets through: the sender is on the link
	typeSolicit    = 135
	typeAdvertise  = 136
	flagRouter     = 0x80
	flagOverride   = 0x20
	optSourceHW    = 1
	optTargetHW    = 2
	etherLen       = 14
	ipv6Len        = 40
	icmpAt         = etherLen + ipv6Len
	ndpOptionsAt   = icmpAt + 24 // the same in both messages
	advertisedLen  = ndpOptionsAt + 8
	maxNDPFrame    = etherLen + 1500
	optionUnit     = 8 // bytes that an option's length counts
	nextHeaderAt   = 20
	ipv6SourceAt   = 22
	ipv6DestAt     = 38
	icmpChecksumAt = icmpAt + 2
	icmpFlagsAt    = icmpAt + 4
	icmpTargetAt   = icmpAt + 8
)

var (
	// allNodes is ff02::1, and allNodesMAC its Ethernet form (RFC 2464 section 7).
	allNodes    = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 1})
	allNodesMAC = mac{0x33, 0x33, 0, 0, 0, 1}

	// errNotNDP is returned for frames that are no valid neighbour solicitation or
	// advertisement over Ethernet.
	errNotNDP = errors.New("not a valid neighbour discovery frame over Ethernet")
)

// appendAdvertisement adds to b the unsolicited neighbour advertisement by which
// hw announces that it holds ip (RFC 4861 section 7.2.6): to all nodes, Solicited
// clear, and Override set, so that whoever knows another holder forgets it.
//
// It comes from the address itself, like the kernel's own, so that it needs no
// other IPv6 address on the link. router must say what the kernel's answers to
// solicitations say, which is whether the link forwards: a host that hears a
// router claim to be none drops the default routes it learned from it
// (section 7.2.5).
func appendAdvertisement(b []byte, hw mac, ip netip.Addr, router bool) []byte {
	start := len(b)
	addr := ip.As16()
	to := allNodes.As16()
	b = append(b, allNodesMAC[:]...)
	b = append(b, hw[:]...)
	b = binary.BigEndian.AppendUint16(b, etherTypeIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, advertisedLen-icmpAt)
	b = append(b, protoICMPv6, ndpHopLimit)
	b = append(b, addr[:]...)
	b = append(b, to[:]...)
	flags := byte(flagOverride)
	if router {
		flags |= flagRouter
	}
	b = append(b, typeAdvertise, 0, 0, 0, flags, 0, 0, 0)
	b = append(b, addr[:]...)
	b = append(b, optTargetHW, 1)
	b = append(b, hw[:]...)
	frame := b[start:]
	binary.BigEndian.PutUint16(frame[icmpChecksumAt:], ^icmpSum(frame))
	return b
}

// parseNDP reads who claims which address: an advertisement claims its target,
// and a solicitation the address it comes from. A solicitation without a sender
// (RFC 4862 section 5.4, somebody asks before taking an address) claims nothing,
// and neither does one that names no hardware address, since nobody learns from
// it; both give the zero claim. What the receivers of a frame must drop by RFC
// 4861 sections 7.1.1 and 7.1.2 is an error.
func parseNDP(b []byte) (claim, error) {
	if len(b) < ndpOptionsAt || binary.BigEndian.Uint16(b[12:]) != etherTypeIPv6 ||
		b[nextHeaderAt] != protoICMPv6 || b[nextHeaderAt+1] != ndpHopLimit || b[icmpAt+1] != 0 {
		return claim{}, errNotNDP
	}
	length := int(binary.BigEndian.Uint16(b[18:]))
	if length < ndpOptionsAt-icmpAt || len(b) < icmpAt+length {
		return claim{}, errNotNDP
	}
	b = b[:icmpAt+length] // the rest is padding
	if icmpSum(b) != 0xffff {
		return claim{}, errNotNDP
	}
	source := netip.AddrFrom16([16]byte(b[ipv6SourceAt:]))
	addr, option := netip.AddrFrom16([16]byte(b[icmpTargetAt:])), byte(optTargetHW)
	switch b[icmpAt] {
	case typeAdvertise:
	case typeSolicit:
		addr, option = source, optSourceHW
	default:
		return claim{}, errNotNDP
	}
	hw, found, err := hardwareOption(b[ndpOptionsAt:], option)
	if err != nil || source.IsUnspecified() || (!found && b[icmpAt] == typeSolicit) {
		return claim{}, err
	}
	if !found {
		// Allowed where the asker is known to have the sender's address already
		// (section 4.4): then the frame's own sender is meant.
		hw = mac(b[6:12])
	}
	return claim{addr: addr, hw: hw}, nil
}

// hardwareOption finds the Ethernet address in the option of the given type.
func hardwareOption(options []byte, kind byte) (hw mac, found bool, err error) {
	for len(options) > 0 {
		if len(options) < optionUnit {
			return mac{}, false, errNotNDP
		}
		size := int(options[1]) * optionUnit
		if size == 0 || size > len(options) {
			return mac{}, false, errNotNDP
		}
		if options[0] == kind && !found {
			hw, found = mac(options[2:8]), true
		}
		options = options[size:]
	}
	return hw, found, nil
}

// icmpSum is the one's complement sum over the pseudo-header and the ICMPv6
// message of a frame (RFC 8200 section 8.1); 0xffff where the checksum in it is
// right.
func icmpSum(frame []byte) uint16 {
	message := frame[icmpAt:]
	sum := uint32(len(message)) + protoICMPv6
	for _, part := range [][]byte{frame[ipv6SourceAt:icmpAt], message} {
		for ; len(part) >= 2; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
		if len(part) == 1 {
			sum += uint32(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// ndpFilter lets a packet socket for IPv6 see neighbour solicitations and
// advertisements only: it hangs on links that carry everybody's traffic.
func ndpFilter() ([]bpf.RawInstruction, error) {
	return bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: nextHeaderAt, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoICMPv6, SkipTrue: 4},
		bpf.LoadAbsolute{Off: icmpAt, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeSolicit, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeAdvertise, SkipTrue: 1},
		bpf.RetConstant{Val: maxNDPFrame},
		bpf.RetConstant{Val: 0},
	})
}
