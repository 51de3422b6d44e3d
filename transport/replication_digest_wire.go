package transport

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// replDigest is the payload of a digest frame.
type replDigest struct {
	number  uint64
	version uint32 // ReplicationConfig.DigestVersion of the sender
	orphans bool   // of owners that died, and not of the sender's own records
	view    uint64 // of orphans: ReplicationOrphanDigest.View
	sums    []uint64
}

// frame is the type of the frame that d travels in.
func (d *replDigest) frame() replFrameType {
	if d.orphans {
		return replFrameOrphanDigest
	}
	return replFrameDigest
}

func appendReplDigest(b []byte, d replDigest) []byte {
	b = slices.Grow(b, 20+8*len(d.sums))
	b = binary.BigEndian.AppendUint64(b, d.number)
	b = binary.BigEndian.AppendUint32(b, d.version)
	if d.orphans {
		b = binary.BigEndian.AppendUint64(b, d.view)
	}
	for _, sum := range d.sums {
		b = binary.BigEndian.AppendUint64(b, sum)
	}
	return b
}

// parseReplDigest decodes a payload whose length replFrame.check has accepted.
func parseReplDigest(b []byte, orphans bool) replDigest {
	d := replDigest{number: binary.BigEndian.Uint64(b), version: binary.BigEndian.Uint32(b[8:]), orphans: orphans}
	b = b[12:]
	if orphans {
		d.view, b = binary.BigEndian.Uint64(b), b[8:]
	}
	d.sums = make([]uint64, 0, len(b)/8)
	for ; len(b) > 0; b = b[8:] {
		d.sums = append(d.sums, binary.BigEndian.Uint64(b))
	}
	return d
}

// replDigestStatus says whether a digest could be compared.
type replDigestStatus uint8

const (
	replDigestCompared replDigestStatus = 1
	replDigestOther    replDigestStatus = 2
	replDigestFailed   replDigestStatus = 3
	replDigestNotNow   replDigestStatus = 4
)

func (s replDigestStatus) String() string {
	switch s {
	case replDigestCompared:
		return "compared"
	case replDigestOther:
		return "the peer makes its digests in another way"
	case replDigestFailed:
		return "the peer could not read its records"
	case replDigestNotNow:
		return "the peer takes other nodes for dead at present"
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// replDigestAnswer is the payload of the answer to a digest frame.
type replDigestAnswer struct {
	number uint64 // of the digest
	status replDigestStatus
	differ []replDifference // in rising order of buckets
}

func appendReplDigestAnswer(b []byte, a replDigestAnswer) []byte {
	b = slices.Grow(b, 9+12*len(a.differ))
	b = binary.BigEndian.AppendUint64(b, a.number)
	b = append(b, byte(a.status))
	for _, d := range a.differ {
		b = binary.BigEndian.AppendUint32(b, d.bucket)
		b = binary.BigEndian.AppendUint64(b, d.xor)
	}
	return b
}

// parseReplDigestAnswer decodes a payload whose length replFrame.check has
// accepted. A status that is not known here reads as one that is not a comparison.
func parseReplDigestAnswer(b []byte) (replDigestAnswer, error) {
	a := replDigestAnswer{number: binary.BigEndian.Uint64(b), status: replDigestStatus(b[8])}
	for b = b[9:]; len(b) > 0; b = b[12:] {
		d := replDifference{bucket: binary.BigEndian.Uint32(b), xor: binary.BigEndian.Uint64(b[4:])}
		if n := len(a.differ); n > 0 && a.differ[n-1].bucket >= d.bucket {
			return a, fmt.Errorf("bucket %d follows bucket %d: %w", d.bucket, a.differ[n-1].bucket, ErrReplicationMalformed)
		}
		a.differ = append(a.differ, d)
	}
	return a, nil
}

// parseReplBuckets decodes the list of a repair, which must rise.
func parseReplBuckets(b []byte) ([]uint32, error) {
	out := make([]uint32, 0, len(b)/4)
	for ; len(b) > 0; b = b[4:] {
		bucket := binary.BigEndian.Uint32(b)
		if n := len(out); n > 0 && out[n-1] >= bucket {
			return nil, fmt.Errorf("bucket %d follows bucket %d: %w", bucket, out[n-1], ErrReplicationMalformed)
		}
		out = append(out, bucket)
	}
	return out, nil
}

// compareReplDigest is the answer to a digest, from what is held here.
func compareReplDigest(theirs replDigest, version uint32, held []uint64) replDigestAnswer {
	a := replDigestAnswer{number: theirs.number, status: replDigestCompared}
	if theirs.version != version || len(theirs.sums) != len(held) {
		a.status = replDigestOther
		return a
	}
	for i, sum := range theirs.sums {
		if xor := sum ^ held[i]; xor != 0 {
			a.differ = append(a.differ, replDifference{uint32(i), xor})
		}
	}
	return a
}
