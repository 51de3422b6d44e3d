package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrReplicationMalformed is wrapped by every error about bytes that are not
// the replication protocol. The stream they came on is ended.
var ErrReplicationMalformed = errors.New("malformed replication stream")

// ErrReplicationRefused is wrapped when two nodes cannot replicate to each
// other: another protocol, record size, or no record version in common.
var ErrReplicationRefused = errors.New("replication refused")

// ReplicationMaxPayload is the largest payload of a frame in bytes.
const ReplicationMaxPayload = 1 << 20

// The stream protocols. The second adds digests and repairs (frame types 7 to 10),
// the third what survivors hold of an owner that died (11, 12 and a flag).
const (
	replProtocolPlain   = 1
	replProtocolDigests = 2
	replProtocolOrphans = 3
)

// replMaxBuckets is the most buckets a digest may have: its answer, twelve bytes
// for each, then still fits a frame.
const replMaxBuckets = 1 << 16

const (
	replMagic          = "PTRP"
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
	replFrameDigest        replFrameType = 7
	replFrameDigestAnswer  replFrameType = 8
	replFrameRepairBegin   replFrameType = 9
	replFrameRepairEnd     replFrameType = 10
	replFrameOrphanDigest  replFrameType = 11
	replFrameOrphansEnd    replFrameType = 12
)

// replFlagSnapshot marks records that come from the snapshot, or from a repair,
// and not from a change.
const replFlagSnapshot = 1

// replFlagOrphans marks records of owners that died: neither a change nor part of
// a snapshot or a repair.
const replFlagOrphans = 2

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
	if f.flags > replFlagOrphans || (f.flags != 0 && f.typ != replFrameRecords) {
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
	case replFrameSnapshotEnd, replFrameRepairEnd, replFrameOrphansEnd:
		ok = f.length == 16
	case replFrameDigest:
		ok = replIsList(f.length, 12, 8) && f.length > 12
	case replFrameOrphanDigest:
		ok = replIsList(f.length, 20, 8) && f.length > 20
	case replFrameDigestAnswer:
		ok = replIsList(f.length, 9, 12)
	case replFrameRepairBegin:
		ok = replIsList(f.length, 8, 4) && f.length > 8
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

// replIsList says whether length bytes are a head and whole elements, not more of
// them than there may be buckets.
func replIsList(length, head, element uint32) bool {
	return length >= head && (length-head)%element == 0 && (length-head)/element <= replMaxBuckets
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
