package health

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Chunk types (RFC 9260, 3.2) and sizes.
const (
	sctpInit    = 1
	sctpInitAck = 2
	sctpAbort   = 6

	sctpHead     = 12 // common header
	sctpInitSize = 20 // INIT chunk, and the fixed part of INIT ACK
)

// Our ports are below those that the kernel gives out by itself. There are enough of them that some are
// left when those are taken away that Prober.AvoidPorts names.
const (
	sctpPort  = 16384
	sctpPorts = 1 << 14
)

// sctpSocket is the raw socket that the SCTP probes of one family share. The kernel need not know
// SCTP. If it does it aborts the association by itself as well, which does no harm.
type sctpSocket struct {
	fd    int
	v6    bool
	slots *slots
}

func (l *loop) sctpFor(a netip.Addr) (*sctpSocket, error) {
	if s := l.sockets.sctp[version(a)]; s != nil {
		return s, nil
	}
	if _, err := l.icmpFor(a); err != nil { // tells that a host speaks no SCTP
		return nil, err
	}
	fd, err := rawSocket(a, unix.IPPROTO_SCTP)
	if err != nil {
		return nil, err
	}
	s := &sctpSocket{fd: fd, v6: a.Is6(), slots: newSlots(sctpPort, sctpPorts)}
	if err := l.share(fd, s); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	l.sockets.sctp[version(a)] = s
	return s, nil
}

// sctpPacket puts a common header before chunks. The checksum is the CRC32c of RFC 9260, appendix A.
func sctpPacket(from, to uint16, tag uint32, chunks []byte) []byte {
	b := make([]byte, sctpHead, sctpHead+len(chunks))
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint32(b[4:], tag)
	b = append(b, chunks...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// initChunk is an INIT (RFC 9260, 3.3.2) of an association that will never be.
func initChunk(tag uint32) []byte {
	b := make([]byte, sctpInitSize)
	b[0] = sctpInit
	binary.BigEndian.PutUint16(b[2:], sctpInitSize)
	binary.BigEndian.PutUint32(b[4:], tag)
	binary.BigEndian.PutUint32(b[8:], 64<<10) // receiver window
	binary.BigEndian.PutUint16(b[12:], 1)     // streams out
	binary.BigEndian.PutUint16(b[14:], 1)     // streams in
	binary.BigEndian.PutUint32(b[16:], tag)   // initial TSN
	return b
}

// abortChunk is an ABORT (RFC 9260, 3.3.7) without a cause.
func abortChunk() []byte { return []byte{sctpAbort, 0, 0, 4} }

// sctpKind begins an association and gives it up when the endpoint agrees.
type sctpKind struct{}

func (sctpKind) begin(l *loop, o *op) (outcome, bool) {
	s, err := l.sctpFor(o.check.addr.Addr())
	if err != nil {
		return o.judge(err), true
	}
	if !s.slots.give(o, l.ports) {
		return void("too many SCTP probes are under way"), true
	}
	o.token = max(rand.Uint32(), 1) // a tag is not 0
	if err := o.check.sendRaw(s.fd, sctpPacket(o.slot, o.check.addr.Port(), 0, initChunk(o.token))); err != nil {
		return o.judge(err), true
	}
	return outcome{}, false
}

func (sctpKind) ready(*loop, *op, uint32) (outcome, bool) { return outcome{}, false }
func (sctpKind) late(_ *loop, o *op) (outcome, bool)      { return o.noAnswer(), true }

// sctpAnswer is what is read of an answer.
type sctpAnswer struct {
	from, to uint16
	tag      uint32
	chunk    byte
	initiate uint32 // of an INIT ACK
}

// parseSCTP reads a packet. Its checksum is not looked at: what comes by a virtual interface often has
// none yet, and the tag says better than any checksum that this is the answer.
func parseSCTP(b []byte) (a sctpAnswer, ok bool) {
	if len(b) < sctpHead+4 {
		return a, false
	}
	a = sctpAnswer{
		from: binary.BigEndian.Uint16(b), to: binary.BigEndian.Uint16(b[2:]),
		tag: binary.BigEndian.Uint32(b[4:]), chunk: b[sctpHead],
	}
	if a.chunk == sctpInitAck {
		if len(b) < sctpHead+sctpInitSize {
			return a, false
		}
		a.initiate = binary.BigEndian.Uint32(b[sctpHead+4:])
	}
	return a, true
}

// ready is handler's.
func (s *sctpSocket) ready(l *loop, _ uint32) {
	l.drain(s.fd, func(packet []byte, from netip.Addr) {
		b := packet
		if !s.v6 {
			var ok bool
			if _, b, ok = split4(packet); !ok {
				return
			}
		}
		a, ok := parseSCTP(b)
		if !ok {
			return
		}
		o := s.slots.ops[a.to]
		if o == nil || a.tag != o.token || a.from != o.check.addr.Port() || from != o.check.addr.Addr().WithZone("") {
			return
		}
		switch a.chunk {
		case sctpInitAck:
			// The endpoint keeps nothing before the cookie comes back; but its answers are counted, and
			// this one is not to look as if its sender had vanished.
			_ = o.check.sendRaw(s.fd, sctpPacket(a.to, a.from, a.initiate, abortChunk()))
			l.finish(o, pass)
		case sctpAbort:
			l.finish(o, failed("association refused"))
		default:
			l.finish(o, failed("answered with SCTP chunk %d, want INIT ACK", a.chunk))
		}
	})
}
