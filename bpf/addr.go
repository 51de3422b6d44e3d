package bpf

import (
	"math/bits"
	"net/netip"
)

const (
	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132
)

// toAddr maps IPv4 into the 128 bit form of the tables. The zero Addr becomes all zero.
func toAddr(a netip.Addr) pontoonAddr {
	if !a.IsValid() {
		return pontoonAddr{}
	}
	return pontoonAddr{B: a.As16()}
}

// fromAddr undoes toAddr.
func fromAddr(a pontoonAddr) netip.Addr {
	if a.B == ([16]byte{}) {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a.B).Unmap()
}

// swap16 turns a port between host order and the network order of the tables (the objects are
// built for little-endian machines).
func swap16(port uint16) uint16 { return bits.ReverseBytes16(port) }

func addrPort(a pontoonAddr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(fromAddr(a), swap16(port))
}

// otherKey is the tuple of the other half of the connection whose half f matches key.
func otherKey(key *pontoonFlowKey, f *pontoonFlow) pontoonFlowKey {
	return pontoonFlowKey{
		Saddr: f.NewDaddr, Daddr: f.NewSaddr,
		Sport: f.NewDport, Dport: f.NewSport,
		Proto: key.Proto,
	}
}

const (
	flagReply   = uint8(pontoonFlowFlagFLOW_F_REPLY)
	flagReplica = uint8(pontoonFlowFlagFLOW_F_REPLICA)
	flagQuiet   = uint8(pontoonFlowFlagFLOW_F_QUIET)
	flagGuest   = flagReplica | flagQuiet
	flagDoomed  = uint8(pontoonFlowFlagFLOW_F_DOOMED)
	flagOwn     = uint8(pontoonFlowFlagFLOW_F_OWN_FIN | pontoonFlowFlagFLOW_F_OWN_RST)
	flagFins    = uint8(pontoonFlowFlagFLOW_F_OWN_FIN | pontoonFlowFlagFLOW_F_PEER_FIN)
	flagPeer    = uint8(pontoonFlowFlagFLOW_F_PEER_FIN | pontoonFlowFlagFLOW_F_PEER_RST)
)

// oneHalf tells whether the connection has a forward half only, because its replies pass elsewhere.
func (f *pontoonFlow) oneHalf() bool { return Mode(f.Mode) >= ModeDSR }

// told tells whether the sender of this half of a doomed connection has heard of its end.
func (f *pontoonFlow) told() bool { return f.Flags&uint8(pontoonFlowFlagFLOW_F_OWN_RST) != 0 }

func (f *pontoonFlow) reply() bool     { return f.Flags&flagReply != 0 }
func (f *pontoonFlow) doomed() bool    { return f.Flags&flagDoomed != 0 }
func (f *pontoonFlow) replica() bool   { return f.Flags&flagReplica != 0 }
func (f *pontoonFlow) packets() uint64 { return uint64(f.PacketsHi)<<32 | uint64(f.PacketsLo) }
func (f *pontoonFlow) bytes() uint64   { return uint64(f.BytesHi)<<32 | uint64(f.BytesLo) }

// quiet tells whether nobody else is told of this node's flow.
func (f *pontoonFlow) quiet() bool { return f.Flags&flagGuest == flagQuiet }

// guest tells whether this half of a replica is forwarded here beside its owner.
func (f *pontoonFlow) guest() bool { return f.Flags&flagGuest == flagGuest }

func (f *pontoonFlow) setCounters(packets, bytes uint64) {
	f.PacketsLo, f.PacketsHi = uint32(packets), uint16(packets>>32)
	f.BytesLo, f.BytesHi = uint32(bytes), uint16(bytes>>32)
}
