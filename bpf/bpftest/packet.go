package bpftest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// TCP flags of Packet.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// Packet describes an Ethernet frame with IPv4. Zero values are filled in: TTL 64, TCP.
type Packet struct {
	SrcMAC, DstMAC net.HardwareAddr
	Src, Dst       netip.AddrPort
	Protocol       layers.IPProtocol
	Flags          uint8 // of TCP
	Seq, Ack       uint32
	TTL            uint8
	IPOptions      bool   // four bytes of no-operation
	TCPOptions     bool   // a maximum segment size
	Fragment       uint16 // offset in units of 8 bytes
	MoreFragments  bool
	ICMPType       uint8
	NoUDPChecksum  bool
	Payload        []byte
}

// Bytes serialises the packet with right lengths and checksums.
func (p Packet) Bytes(tb testing.TB) []byte {
	tb.Helper()
	eth := &layers.Ethernet{SrcMAC: p.SrcMAC, DstMAC: p.DstMAC, EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{
		Version: 4, TTL: p.TTL, Protocol: p.Protocol, Id: 0x1234, FragOffset: p.Fragment,
		SrcIP: p.Src.Addr().AsSlice(), DstIP: p.Dst.Addr().AsSlice(), Flags: layers.IPv4DontFragment,
	}
	if ip.TTL == 0 {
		ip.TTL = 64
	}
	if ip.Protocol == 0 {
		ip.Protocol = layers.IPProtocolTCP
	}
	if p.Fragment > 0 || p.MoreFragments {
		ip.Flags = 0
		if p.MoreFragments {
			ip.Flags = layers.IPv4MoreFragments
		}
	}
	if p.IPOptions {
		ip.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
	}
	stack := append([]gopacket.SerializableLayer{eth, ip}, p.transport(ip)...)
	stack = append(stack, gopacket.Payload(p.Payload))
	buffer := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buffer, options, stack...); err != nil {
		tb.Fatalf("serialise packet: %v", err)
	}
	out := buffer.Bytes()
	if p.NoUDPChecksum && ip.Protocol == layers.IPProtocolUDP {
		at := 14 + 4*int(ip.IHL) + 6
		out[at], out[at+1] = 0, 0
	}
	return out
}

func (p Packet) transport(ip *layers.IPv4) []gopacket.SerializableLayer {
	switch ip.Protocol {
	case layers.IPProtocolTCP:
		tcp := &layers.TCP{
			SrcPort: layers.TCPPort(p.Src.Port()), DstPort: layers.TCPPort(p.Dst.Port()),
			Seq: p.Seq, Ack: p.Ack, Window: 1024,
			FIN: p.Flags&FIN != 0, SYN: p.Flags&SYN != 0, RST: p.Flags&RST != 0,
			PSH: p.Flags&PSH != 0, ACK: p.Flags&ACK != 0,
		}
		if p.TCPOptions {
			tcp.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}}
		}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		return []gopacket.SerializableLayer{tcp}
	case layers.IPProtocolUDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(p.Src.Port()), DstPort: layers.UDPPort(p.Dst.Port())}
		_ = udp.SetNetworkLayerForChecksum(ip)
		return []gopacket.SerializableLayer{udp}
	case layers.IPProtocolICMPv4:
		return []gopacket.SerializableLayer{&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(p.ICMPType, 0)}}
	}
	return nil
}

// VerifyChecksums recomputes the IPv4 and TCP or UDP checksums of a frame over all its bytes.
func VerifyChecksums(frame []byte) error {
	if len(frame) < 34 {
		return fmt.Errorf("frame of %d bytes", len(frame))
	}
	ip := frame[14:]
	header := int(ip[0]&15) * 4
	if sum(ip[:header], 0) != 0xffff {
		return fmt.Errorf("ipv4 header checksum is wrong")
	}
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if total > len(ip) || total < header {
		return fmt.Errorf("ipv4 length %d does not fit %d bytes", total, len(ip))
	}
	segment := ip[header:total]
	if ip[9] != 6 && ip[9] != 17 {
		return nil
	}
	if ip[9] == 17 && segment[6] == 0 && segment[7] == 0 {
		return nil // none
	}
	pseudo := make([]byte, 12)
	copy(pseudo, ip[12:20])
	pseudo[9] = ip[9]
	binary.BigEndian.PutUint16(pseudo[10:], uint16(len(segment)))
	if sum(segment, uint32(sum(pseudo, 0))) != 0xffff {
		return fmt.Errorf("checksum of protocol %d is wrong", ip[9])
	}
	return nil
}

// sum is the one's complement sum of RFC 1071.
func sum(b []byte, s uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
