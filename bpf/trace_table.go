package bpf

import "encoding/binary"

// counterWords says what it means that a packet was counted. An empty sentence: another step says
// it. A counter that is not here is told by its name.
var counterWords = map[pontoonCounter]string{
	pontoonCounterDROP_NO_FLOW:        "a segment of a connection nobody knows",
	pontoonCounterDROP_NO_SERVICE:     "no service listens there",
	pontoonCounterDROP_NO_ENDPOINT:    "the service has no endpoint that takes new connections",
	pontoonCounterDROP_PROTOCOL:       "a protocol no service can have",
	pontoonCounterDROP_ICMP:           "ICMP to a VIP that is neither an echo request nor an error about a connection",
	pontoonCounterDROP_FRAGMENT:       "a fragment whose first one is not known",
	pontoonCounterDROP_TTL:            "it would live no longer: its TTL is used up",
	pontoonCounterDROP_SNAT_EXHAUSTED: "no free source port towards any endpoint",
	pontoonCounterDROP_DNAT_COLLISION: "the tuple towards the endpoint belongs to another connection",
	pontoonCounterDROP_TABLE_FULL:     "the flow table is full",
	pontoonCounterDROP_HALF_OPEN:      "the half-open table lost or refused the entry",
	pontoonCounterDROP_NO_ROUTE:       "no route to the new destination",
	pontoonCounterDROP_FWD_DISABLED:   "the host does not forward on this interface",
	pontoonCounterDROP_FRAG_NEEDED:    "larger than the way out takes",
	pontoonCounterDROP_REWRITE:        "the kernel refused to change the packet",
	pontoonCounterDROP_SNAT_CONFLICT:  "its tuple was given to another connection meanwhile",
	pontoonCounterDROP_FLOOD:          "more new connections a second than the service allows",
	pontoonCounterDROP_MALFORMED:      "malformed",
	pontoonCounterDROP_ICMP_UNKNOWN:   "an ICMP error about no connection of ours",
	pontoonCounterDROP_TRANSLATE:      "the other IP family cannot say this",
	pontoonCounterDROP_DOOMED:         "of a connection whose endpoint is gone",
	pontoonCounterDROP_LAND:           "source and destination are the same",

	pontoonCounterCOUNTER_REFUSED:        "answer sent",
	pontoonCounterCOUNTER_CREATED:        "",
	pontoonCounterCOUNTER_PROMOTED:       "handshake complete: moved to the flow table",
	pontoonCounterCOUNTER_ADOPTED:        "adopted: this node owns the connection from here on",
	pontoonCounterCOUNTER_TAKEN_OVER:     "a closed connection gave its tuple away",
	pontoonCounterCOUNTER_REPLACED:       "a new SYN ends the closed connection of this tuple",
	pontoonCounterCOUNTER_REVIVED:        "the connection lives on after a reset nobody believed",
	pontoonCounterCOUNTER_RING_LOST:      "its record for replication found no room",
	pontoonCounterCOUNTER_INSERT_FAILED:  "the flow table refused the entry",
	pontoonCounterCOUNTER_NEXT_HOP_MISS:  "",
	pontoonCounterCOUNTER_NEIGHBOUR_MISS: "",
	pontoonCounterCOUNTER_ECHO:           "an echo request: the host answers it",
	pontoonCounterCOUNTER_FLOOD_REPEATED: "admitted in a flood, because the SYN was repeated",
	pontoonCounterCOUNTER_ICMP_ERROR:     "an ICMP error about a connection: translated and passed on",
	pontoonCounterCOUNTER_FRAGMENT:       "follows the first fragment of its datagram",
	pontoonCounterCOUNTER_TRANSLATED:     "translated into the other IP family",
	pontoonCounterCOUNTER_ENCAPSULATED:   "encapsulated for the tunnel to the endpoint",
	pontoonCounterCOUNTER_TOO_BIG:        "a \"too big\" answer sent",
	pontoonCounterCOUNTER_AFFINITY:       "the endpoint is the one the client was with",
}

// malformedWhy finds what the parser objected to, from the headers it saw. The parser itself keeps
// one bit only: it has no room for more.
func malformedWhy(frame []byte, l3 int, p *pontoonPacket) string {
	if l3 > len(frame) {
		return "the frame ends early"
	}
	ip := frame[l3:]
	if p.Flags&uint8(pontoonPacketFlagPACKET_F_V6) != 0 {
		return malformedV6(ip, p)
	}
	if len(ip) < 20 {
		return "the IP header ends early"
	}
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	switch {
	case total < header:
		return "the IP length is less than the header's"
	case uint32(total) > p.Bytes:
		return "the IP length is more than there is"
	case header == 20 && checksum(ip[:20]) != 0xffff:
		return "the IP header's checksum is wrong"
	case p.Flags&uint8(pontoonPacketFlagPACKET_F_LATER) != 0:
		return "a fragment that would overlay the TCP header"
	}
	return malformedL4(ip[min(header, len(ip)):], p)
}

func malformedV6(ip []byte, p *pontoonPacket) string {
	if len(ip) < 40 {
		return "the IP header ends early"
	}
	switch {
	case uint32(binary.BigEndian.Uint16(ip[4:]))+40 > p.Bytes:
		return "the IP length is more than there is"
	case p.Flags&uint8(pontoonPacketFlagPACKET_F_LATER) != 0:
		return "a fragment that would overlay the TCP header"
	case p.Flags&uint8(pontoonPacketFlagPACKET_F_OPTIONS) != 0 && p.Key.Sport == 0:
		return "extension headers that contradict each other, or what follows them"
	}
	return malformedL4(ip[40:], p)
}

func malformedL4(l4 []byte, p *pontoonPacket) string {
	switch {
	case p.Key.Proto == protoTCP && (len(l4) < 20 || p.Payload < 20):
		return "the TCP header ends early"
	case p.Key.Proto == protoTCP:
		return "the TCP header's length is impossible"
	case p.Key.Proto == protoUDP && len(l4) < 8:
		return "the UDP header ends early"
	case p.Key.Proto == protoUDP:
		return "the UDP length contradicts the IP length"
	}
	return "the headers contradict each other"
}

// checksum is the one's complement sum of RFC 1071.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
