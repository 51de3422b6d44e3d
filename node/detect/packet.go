package detect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Ports of BFD on a single hop (RFC 5881, 4).
const (
	ControlPort = 3784
	EchoPort    = 3785
)

// Version is the version of BFD spoken here.
const Version = 1

// PacketLen is the length in bytes of a control packet without authentication.
const PacketLen = 24

// ErrPacket is wrapped by every error about bytes that are not a control packet
// that a session may take (RFC 5880, 6.8.6).
var ErrPacket = errors.New("bad control packet")

// State is the state of a session (RFC 5880, 4.1). The zero value is AdminDown.
type State uint8

// The states of a session.
const (
	AdminDown State = 0
	Down      State = 1
	Init      State = 2
	Up        State = 3
)

// String is the state as people are shown it.
func (s State) String() string {
	switch s {
	case AdminDown:
		return "admin-down"
	case Down:
		return "down"
	case Init:
		return "init"
	case Up:
		return "up"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Diag is why a session left the state Up (RFC 5880, 4.1).
type Diag uint8

// The diagnostic codes that are used here; others may be received.
const (
	DiagNone             Diag = 0
	DiagExpired          Diag = 1 // control detection time
	DiagEchoFailed       Diag = 2
	DiagNeighbourDown    Diag = 3 // the neighbour said so
	DiagForwardingReset  Diag = 4 // the forwarding plane was reset
	DiagPathDown         Diag = 5
	DiagConcatPathDown   Diag = 6
	DiagAdminDown        Diag = 7
	DiagReverseConcatted Diag = 8
)

// String is the code in the RFC's words.
func (d Diag) String() string {
	words := [...]string{
		"no diagnostic", "control detection time expired", "echo function failed", "neighbour signalled session down",
		"forwarding plane reset", "path down", "concatenated path down", "administratively down", "reverse concatenated path down",
	}
	if int(d) < len(words) {
		return words[d]
	}
	return fmt.Sprintf("diagnostic %d", uint8(d))
}

// Packet is a control packet (RFC 5880, 4.1). Intervals have microseconds on the wire.
type Packet struct {
	Diag              Diag
	State             State
	Poll, Final       bool
	ControlPlaneIndep bool // the sender's BFD does not share fate with its control plane
	Authenticated     bool // has an authentication section, which is not read
	Demand            bool
	Multipoint        bool
	DetectMult        uint8
	MyDiscr           uint32
	YourDiscr         uint32
	DesiredMinTx      time.Duration
	RequiredMinRx     time.Duration
	RequiredMinEchoRx time.Duration
}

const (
	bitPoll       = 0x20
	bitFinal      = 0x10
	bitCPI        = 0x08
	bitAuth       = 0x04
	bitDemand     = 0x02
	bitMultipoint = 0x01
)

// Append writes the packet behind b. Intervals beyond 32 bits of microseconds are
// cut to the longest there is.
func (p Packet) Append(b []byte) []byte {
	flags := byte(p.State&3) << 6
	for _, f := range []struct {
		set bool
		bit byte
	}{
		{p.Poll, bitPoll},
		{p.Final, bitFinal},
		{p.ControlPlaneIndep, bitCPI},
		{p.Authenticated, bitAuth},
		{p.Demand, bitDemand},
		{p.Multipoint, bitMultipoint},
	} {
		if f.set {
			flags |= f.bit
		}
	}
	b = append(b, Version<<5|byte(p.Diag&31), flags, p.DetectMult, PacketLen)
	b = binary.BigEndian.AppendUint32(b, p.MyDiscr)
	b = binary.BigEndian.AppendUint32(b, p.YourDiscr)
	b = binary.BigEndian.AppendUint32(b, micros(p.DesiredMinTx))
	b = binary.BigEndian.AppendUint32(b, micros(p.RequiredMinRx))
	return binary.BigEndian.AppendUint32(b, micros(p.RequiredMinEchoRx))
}

func micros(d time.Duration) uint32 {
	return uint32(min(max(d.Microseconds(), 0), 1<<32-1))
}

// ParsePacket reads a control packet and checks what can be checked without a
// session (RFC 5880, 6.8.6). Its errors wrap ErrPacket.
func ParsePacket(b []byte) (Packet, error) {
	if len(b) < PacketLen {
		return Packet{}, fmt.Errorf("%w: %d bytes", ErrPacket, len(b))
	}
	duration := func(at int) time.Duration {
		return time.Duration(binary.BigEndian.Uint32(b[at:])) * time.Microsecond
	}
	p := Packet{
		Diag:              Diag(b[0] & 31),
		State:             State(b[1] >> 6),
		Poll:              b[1]&bitPoll != 0,
		Final:             b[1]&bitFinal != 0,
		ControlPlaneIndep: b[1]&bitCPI != 0,
		Authenticated:     b[1]&bitAuth != 0,
		Demand:            b[1]&bitDemand != 0,
		Multipoint:        b[1]&bitMultipoint != 0,
		DetectMult:        b[2],
		MyDiscr:           binary.BigEndian.Uint32(b[4:]),
		YourDiscr:         binary.BigEndian.Uint32(b[8:]),
		DesiredMinTx:      duration(12),
		RequiredMinRx:     duration(16),
		RequiredMinEchoRx: duration(20),
	}
	return p, p.check(b)
}

// check goes through the first rules of RFC 5880, 6.8.6 in their order.
func (p Packet) check(b []byte) error {
	length, least := int(b[3]), PacketLen
	if p.Authenticated {
		least += 2
	}
	switch {
	case b[0]>>5 != Version:
		return fmt.Errorf("%w: version %d", ErrPacket, b[0]>>5)
	case length < least:
		return fmt.Errorf("%w: length field %d", ErrPacket, length)
	case length > len(b):
		return fmt.Errorf("%w: length field %d, %d bytes came", ErrPacket, length, len(b))
	case p.DetectMult == 0:
		return fmt.Errorf("%w: detect multiplier 0", ErrPacket)
	case p.Multipoint:
		return fmt.Errorf("%w: multipoint", ErrPacket)
	case p.MyDiscr == 0:
		return fmt.Errorf("%w: no discriminator", ErrPacket)
	case p.YourDiscr == 0 && p.State != Down && p.State != AdminDown:
		return fmt.Errorf("%w: state %v without our discriminator", ErrPacket, p.State)
	case p.Poll && p.Final:
		return fmt.Errorf("%w: poll and final together", ErrPacket)
	}
	return nil
}
