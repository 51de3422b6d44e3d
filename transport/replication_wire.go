package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// ErrReplicationMalformed is wrapped by every error about bytes that are not
// the replication protocol. The stream they came on is ended.
var ErrReplicationMalformed = errors.New("malformed replication stream")

// ErrReplicationRefused is wrapped when two nodes cannot replicate to each
// other: another protocol, record size, or no record version in common.
var ErrReplicationRefused = errors.New("replication refused")

// ReplicationMaxPayload is the largest payload of a frame in bytes.
const ReplicationMaxPayload = 1 << 20

const (
	replMagic          = "PTRP"
	replProtocol       = 1
	replGreetingHeader = 8
	replMaxGreeting    = 2048
	replFrameHeader    = 20
	replMaxReason      = 512
)

type replFrameType uint8

const (
	replFrameSnapshotBegin replFrameType = 1
	replFrameRecords       replFrameType = 2
	replFrameSnapshotEnd   replFrameType = 3
	replFrameKeepalive     replFrameType = 4
	replFrameAck           replFrameType = 5
	replFrameBye           replFrameType = 6
)

// replFlagSnapshot marks records that come from the snapshot and not from a change.
const replFlagSnapshot = 1

// replFrame is a frame's header. REPLICATION.md has it byte by byte.
type replFrame struct {
	length   uint32 // of the payload, in bytes
	typ      replFrameType
	flags    uint8
	sequence uint64
	count    uint32 // records in the payload
}

func appendReplFrame(b []byte, f replFrame) []byte {
	b = binary.BigEndian.AppendUint32(b, f.length)
	b = append(b, byte(f.typ), f.flags, 0, 0)
	b = binary.BigEndian.AppendUint64(b, f.sequence)
	return binary.BigEndian.AppendUint32(b, f.count)
}

// parseReplFrame decodes a header and checks everything about it that does not
// depend on what came before.
func parseReplFrame(b []byte, recordSize int) (replFrame, error) {
	if len(b) != replFrameHeader {
		return replFrame{}, fmt.Errorf("frame header of %d bytes: %w", len(b), ErrReplicationMalformed)
	}
	f := replFrame{
		length:   binary.BigEndian.Uint32(b),
		typ:      replFrameType(b[4]),
		flags:    b[5],
		sequence: binary.BigEndian.Uint64(b[8:]),
		count:    binary.BigEndian.Uint32(b[16:]),
	}
	if b[6] != 0 || b[7] != 0 {
		return f, fmt.Errorf("reserved bytes are not zero: %w", ErrReplicationMalformed)
	}
	return f, f.check(recordSize)
}

func (f replFrame) check(recordSize int) error {
	if f.flags&^replFlagSnapshot != 0 || (f.flags != 0 && f.typ != replFrameRecords) {
		return fmt.Errorf("frame type %d with flags %#x: %w", f.typ, f.flags, ErrReplicationMalformed)
	}
	if f.typ != replFrameRecords && f.count != 0 {
		return fmt.Errorf("frame type %d with %d records: %w", f.typ, f.count, ErrReplicationMalformed)
	}
	ok := false
	switch f.typ {
	case replFrameRecords:
		ok = f.count > 0 && f.length <= ReplicationMaxPayload && uint64(f.count)*uint64(recordSize) == uint64(f.length)
	case replFrameSnapshotBegin:
		ok = f.length == 8
	case replFrameSnapshotEnd:
		ok = f.length == 16
	case replFrameKeepalive, replFrameAck:
		ok = f.length == 0
	case replFrameBye:
		ok = f.length <= replMaxReason
	default:
		return fmt.Errorf("unknown frame type %d: %w", f.typ, ErrReplicationMalformed)
	}
	if !ok {
		return fmt.Errorf("frame type %d with %d bytes and %d records: %w", f.typ, f.length, f.count, ErrReplicationMalformed)
	}
	return nil
}

// readReplFrame reads one frame. payload is buf, grown if need be.
func readReplFrame(rd io.Reader, recordSize int, buf []byte) (f replFrame, payload []byte, err error) {
	if cap(buf) < replFrameHeader {
		buf = make([]byte, replFrameHeader)
	}
	header := buf[:replFrameHeader]
	if _, err := io.ReadFull(rd, header); err != nil {
		return f, buf, fmt.Errorf("read frame header: %w", err)
	}
	if f, err = parseReplFrame(header, recordSize); err != nil {
		return f, buf, err
	}
	if cap(buf) < int(f.length) {
		buf = make([]byte, f.length)
	}
	payload = buf[:f.length]
	if _, err := io.ReadFull(rd, payload); err != nil {
		return f, buf, fmt.Errorf("read frame payload of %d bytes: %w", f.length, err)
	}
	return f, payload, nil
}

// replOffer is what the dialling side says first.
type replOffer struct {
	recordSize uint32
	node       string
	versions   []uint16 // that it can write, newest first
}

// replReply is the answer: a chosen version, or a reason why not.
type replReply struct {
	accepted bool
	version  uint16
	node     string
	reason   string
}

const (
	replStatusAccept = 1
	replStatusRefuse = 2
)

func appendReplGreeting(b []byte, protocol uint16, body []byte) []byte {
	b = append(b, replMagic...)
	b = binary.BigEndian.AppendUint16(b, protocol)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

// readReplGreeting reads the part that is the same in every version of the
// protocol: magic, version, length, body.
func readReplGreeting(rd io.Reader) (protocol uint16, body []byte, err error) {
	var header [replGreetingHeader]byte
	if _, err := io.ReadFull(rd, header[:]); err != nil {
		return 0, nil, fmt.Errorf("read replication greeting: %w", err)
	}
	if string(header[:4]) != replMagic {
		return 0, nil, fmt.Errorf("greeting begins with %q: %w", header[:4], ErrReplicationMalformed)
	}
	length := binary.BigEndian.Uint16(header[6:])
	if length > replMaxGreeting {
		return 0, nil, fmt.Errorf("greeting of %d bytes: %w", length, ErrReplicationMalformed)
	}
	body = make([]byte, length)
	if _, err := io.ReadFull(rd, body); err != nil {
		return 0, nil, fmt.Errorf("read replication greeting: %w", err)
	}
	return binary.BigEndian.Uint16(header[4:]), body, nil
}

func (o replOffer) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, o.recordSize)
	b = append(append(b, byte(len(o.node))), o.node...)
	b = append(b, byte(len(o.versions)))
	for _, v := range o.versions {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

func parseReplOffer(b []byte) (replOffer, error) {
	bad := fmt.Errorf("replication offer of %d bytes: %w", len(b), ErrReplicationMalformed)
	if len(b) < 6 {
		return replOffer{}, bad
	}
	o := replOffer{recordSize: binary.BigEndian.Uint32(b)}
	name := int(b[4])
	b = b[5:]
	if len(b) < name+1 {
		return replOffer{}, bad
	}
	o.node = string(b[:name])
	n := int(b[name])
	b = b[name+1:]
	if len(b) != 2*n {
		return replOffer{}, bad
	}
	for ; len(b) > 0; b = b[2:] {
		o.versions = append(o.versions, binary.BigEndian.Uint16(b))
	}
	return o, nil
}

func (a replReply) encode() []byte {
	status := byte(replStatusRefuse)
	if a.accepted {
		status = replStatusAccept
	}
	reason := replReason(a.reason)
	b := binary.BigEndian.AppendUint16([]byte{status}, a.version)
	b = append(append(b, byte(len(a.node))), a.node...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(reason)))
	return append(b, reason...)
}

func parseReplReply(b []byte) (replReply, error) {
	bad := fmt.Errorf("replication reply of %d bytes: %w", len(b), ErrReplicationMalformed)
	if len(b) < 4 || (b[0] != replStatusAccept && b[0] != replStatusRefuse) {
		return replReply{}, bad
	}
	a := replReply{accepted: b[0] == replStatusAccept, version: binary.BigEndian.Uint16(b[1:])}
	name := int(b[3])
	b = b[4:]
	if len(b) < name+2 {
		return replReply{}, bad
	}
	a.node = string(b[:name])
	b = b[name:]
	if len(b) != 2+int(binary.BigEndian.Uint16(b)) {
		return replReply{}, bad
	}
	a.reason = string(b[2:])
	return a, nil
}

// replReason cuts a text to what a frame may carry.
func replReason(s string) string { return s[:min(len(s), replMaxReason)] }

// chooseReplVersion picks the newest version that both sides speak.
func chooseReplVersion(offered, spoken []uint16) (uint16, error) {
	for _, v := range offered {
		if slices.Contains(spoken, v) {
			return v, nil
		}
	}
	return 0, fmt.Errorf("record versions %v are offered and %v are spoken here: %w", offered, spoken, ErrReplicationRefused)
}
