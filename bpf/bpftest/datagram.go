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

// IP protocol numbers of Datagram.
const (
	ProtocolICMP   = 1
	ProtocolTCP    = 6
	ProtocolUDP    = 17
	ProtocolICMPv6 = 58
	ProtocolSCTP   = 132
)

// Datagram describes an Ethernet frame of either IP family, which is that of its addresses. Zero
// values are filled in: hop limit 64, TCP.
type Datagram struct {
	SrcMAC, DstMAC net.HardwareAddr
	Src, Dst       netip.AddrPort
	Protocol       uint8
	HopLimit       uint8 // or TTL
	TrafficClass   uint8 // or TOS
	FlowLabel      uint32
	ID             uint32 // of the IPv4 header or the IPv6 fragment header
	DontFragment   bool
	Options        []byte // of IPv4, a multiple of 4 bytes
	Extensions     []byte // of IPv6, whole headers; the first field is that of the next header
	FirstExtension uint8  // its number

	// A fragment: Offset in units of 8 bytes, Length bytes of what follows the IP headers; 0: the rest.
	FragmentHeader, MoreFragments bool
	Offset                        uint16
	Length                        int

	Flags         uint8 // of TCP
	Seq, Ack      uint32
	TCPOptions    []byte // a multiple of 4 bytes
	NoUDPChecksum bool
	Payload       []byte // of TCP or UDP; of other protocols everything behind the IP headers
}

func (d Datagram) protocol() uint8 {
	if d.Protocol == 0 {
		return ProtocolTCP
	}
	return d.Protocol
}

// Six tells whether the addresses are IPv6.
func (d Datagram) Six() bool { return d.Src.Addr().Is6() }

// Transport is what follows the IP headers, whole, with its checksum.
func (d Datagram) Transport(tb testing.TB) []byte {
	tb.Helper()
	var network gopacket.NetworkLayer = &layers.IPv4{SrcIP: d.Src.Addr().AsSlice(), DstIP: d.Dst.Addr().AsSlice(), Protocol: layers.IPProtocol(d.protocol())}
	if d.Six() {
		network = &layers.IPv6{SrcIP: d.Src.Addr().AsSlice(), DstIP: d.Dst.Addr().AsSlice(), NextHeader: layers.IPProtocol(d.protocol())}
	}
	var stack []gopacket.SerializableLayer
	switch d.protocol() {
	case ProtocolTCP:
		tcp := &layers.TCP{
			SrcPort: layers.TCPPort(d.Src.Port()), DstPort: layers.TCPPort(d.Dst.Port()),
			Seq: d.Seq, Ack: d.Ack, Window: 1024, FIN: d.Flags&FIN != 0, SYN: d.Flags&SYN != 0,
			RST: d.Flags&RST != 0, PSH: d.Flags&PSH != 0, ACK: d.Flags&ACK != 0,
		}
		tcp.Options = rawOptions(d.TCPOptions)
		must(tb, tcp.SetNetworkLayerForChecksum(network))
		stack = append(stack, tcp)
	case ProtocolUDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(d.Src.Port()), DstPort: layers.UDPPort(d.Dst.Port())}
		must(tb, udp.SetNetworkLayerForChecksum(network))
		stack = append(stack, udp)
	}
	out := serialise(tb, append(stack, gopacket.Payload(d.Payload))...)
	if d.NoUDPChecksum && d.protocol() == ProtocolUDP {
		out[6], out[7] = 0, 0
	}
	return out
}

// rawOptions splits options, without padding of its own.
func rawOptions(b []byte) []layers.TCPOption {
	var out []layers.TCPOption
	for len(b) > 0 {
		if b[0] < 2 {
			out, b = append(out, layers.TCPOption{OptionType: layers.TCPOptionKind(b[0]), OptionLength: 1}), b[1:]
			continue
		}
		out = append(out, layers.TCPOption{OptionType: layers.TCPOptionKind(b[0]), OptionLength: b[1], OptionData: b[2:b[1]]})
		b = b[b[1]:]
	}
	return out
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func serialise(tb testing.TB, stack ...gopacket.SerializableLayer) []byte {
	tb.Helper()
	buffer := gopacket.NewSerializeBuffer()
	must(tb, gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...))
	return buffer.Bytes()
}

// Bytes serialises the frame with right lengths and checksums.
func (d Datagram) Bytes(tb testing.TB) []byte {
	tb.Helper()
	body := d.Transport(tb)[8*int(d.Offset):]
	if d.Length > 0 {
		body = body[:d.Length]
	}
	return d.Around(tb, body)
}

// Around serialises the frame with the given bytes behind its IP headers.
func (d Datagram) Around(tb testing.TB, body []byte) []byte {
	tb.Helper()
	if d.HopLimit == 0 {
		d.HopLimit = 64
	}
	if d.Six() {
		return d.frame(0x86dd, serialise(tb, d.headerSix(), gopacket.Payload(append(d.extensions(), body...))))
	}
	ip := &layers.IPv4{
		Version: 4, TTL: d.HopLimit, TOS: d.TrafficClass, Protocol: layers.IPProtocol(d.protocol()), Id: uint16(d.ID),
		FragOffset: d.Offset, SrcIP: d.Src.Addr().AsSlice(), DstIP: d.Dst.Addr().AsSlice(),
	}
	if d.DontFragment {
		ip.Flags |= layers.IPv4DontFragment
	}
	if d.MoreFragments {
		ip.Flags |= layers.IPv4MoreFragments
	}
	for b := d.Options; len(b) > 0; {
		if b[0] < 2 {
			ip.Options, b = append(ip.Options, layers.IPv4Option{OptionType: b[0], OptionLength: 1}), b[1:]
			continue
		}
		ip.Options = append(ip.Options, layers.IPv4Option{OptionType: b[0], OptionLength: b[1], OptionData: b[2:b[1]]})
		b = b[b[1]:]
	}
	return d.frame(0x0800, serialise(tb, ip, gopacket.Payload(body)))
}

// frame puts an Ethernet header before b, without the padding of short frames.
func (d Datagram) frame(kind uint16, b []byte) []byte {
	out := append(append([]byte(nil), d.DstMAC...), d.SrcMAC...)
	return append(binary.BigEndian.AppendUint16(out, kind), b...)
}

func (d Datagram) headerSix() *layers.IPv6 {
	ip := &layers.IPv6{
		Version: 6, TrafficClass: d.TrafficClass, FlowLabel: d.FlowLabel, HopLimit: d.HopLimit,
		NextHeader: layers.IPProtocol(d.protocol()), SrcIP: d.Src.Addr().AsSlice(), DstIP: d.Dst.Addr().AsSlice(),
	}
	if d.FragmentHeader {
		ip.NextHeader = layers.IPProtocolIPv6Fragment
	}
	if len(d.Extensions) > 0 {
		ip.NextHeader = layers.IPProtocol(d.FirstExtension)
	}
	return ip
}

// extensions are the extension headers, of which the last one names what follows.
func (d Datagram) extensions() []byte {
	out := append([]byte(nil), d.Extensions...)
	last := 0
	for at := 0; at < len(out); at += 8 + 8*int(out[at+1]) {
		last = at
	}
	if !d.FragmentHeader {
		if len(out) > 0 {
			out[last] = d.protocol()
		}
		return out
	}
	if len(out) > 0 {
		out[last] = 44
	}
	offset := d.Offset << 3
	if d.MoreFragments {
		offset |= 1
	}
	out = binary.BigEndian.AppendUint16(append(out, d.protocol(), 0), offset)
	return binary.BigEndian.AppendUint32(out, d.ID)
}

// VerifyDatagram recomputes the checksums of a whole frame of either family: IPv4 header, TCP,
// UDP, ICMP and ICMPv6. Fragments have no L4 checksum of their own.
func VerifyDatagram(frame []byte) error {
	if binary.BigEndian.Uint16(frame[12:]) == 0x0800 {
		ip := frame[14:]
		header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 && sum(ip[:header], 0) == 0xffff {
			return nil
		}
		if ip[9] != ProtocolICMP {
			return VerifyChecksums(frame)
		}
		if sum(ip[:header], 0) != 0xffff || total > len(ip) || sum(ip[header:total], 0) != 0xffff {
			return fmt.Errorf("icmp or ipv4 checksum is wrong")
		}
		return nil
	}
	ip := frame[14:]
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || 40+length > len(ip) {
		return fmt.Errorf("ipv6 length %d does not fit %d bytes", length, len(ip))
	}
	segment := ip[40 : 40+length]
	if p := ip[6]; p != ProtocolTCP && p != ProtocolUDP && p != ProtocolICMPv6 {
		return nil
	}
	pseudo := append([]byte(nil), ip[8:40]...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(length))
	pseudo = append(pseudo, 0, 0, 0, ip[6])
	if sum(segment, uint32(sum(pseudo, 0))) != 0xffff {
		return fmt.Errorf("checksum of protocol %d is wrong", ip[6])
	}
	return nil
}

// EnableSix switches IPv6 on, with forwarding and without the wait for duplicate addresses.
func (n *NS) EnableSix() {
	n.tb.Helper()
	n.Do(func() {
		for _, scope := range []string{"all", "default"} {
			n.Sysctl("net/ipv6/conf/"+scope+"/accept_dad", "0")
			n.Sysctl("net/ipv6/conf/"+scope+"/disable_ipv6", "0")
		}
		n.Sysctl("net/ipv6/conf/all/forwarding", "1")
	})
}

// Error builds an ICMP or ICMPv6 error, whichever the addresses ask for; rest is its second word.
func (d Datagram) Error(tb testing.TB, kind, code uint8, rest uint32, quoted []byte) []byte {
	tb.Helper()
	message := binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest)
	message = append(message, quoted...)
	start := uint32(0)
	d.Protocol = ProtocolICMP
	if d.Six() {
		d.Protocol = ProtocolICMPv6
		src, dst := d.Src.Addr().As16(), d.Dst.Addr().As16()
		pseudo := append(append([]byte(nil), src[:]...), dst[:]...)
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(message)))
		start = uint32(sum(append(pseudo, 0, 0, 0, ProtocolICMPv6), 0))
	}
	binary.BigEndian.PutUint16(message[2:], ^sum(message, start))
	return d.Around(tb, message)
}
